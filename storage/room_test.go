package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// TestEvictionByLastUse: the least recently used blob leaves first.
func TestEvictionByLastUse(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 5<<20)
	var ds []digest.Digest
	for i := range 4 {
		ds = append(ds, put(t, s, noise(uint64(10+i), 1<<20)))
	}
	s.room.mu.Lock()
	for _, d := range ds { // long ago, since uses within a second are one
		s.room.lru.Peek(d).Value.used = 0
	}
	s.room.mu.Unlock()
	s.Touch(ds[0])
	put(t, s, noise(20, 2<<20))
	for i, want := range []bool{true, false, true, true} {
		if _, ok := s.Has(ds[i]); ok != want {
			t.Errorf("blob %d: there = %v", i, ok)
		}
	}
	if st := s.Stats(); st.Evictions != 1 || st.EvictedBytes != 1<<20 || st.EvictedFor[ForBudget] != (Evicted{1, 1 << 20}) {
		t.Errorf("%+v", st)
	}
	balanced(t, s)
}

// TestBlobsUsedOnceDoNotEvictThoseUsedAgain: a job that fetches more than the budget once does not
// evict a blob that came in before and is used again, also across a restart. Uses within minutes of
// its arrival count as the first.
func TestBlobsUsedOnceDoNotEvictThoseUsedAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *Store {
		s, err := Open(Options{Dir: dir, Budget: 100 << 10, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	put := func(s *Store, n int) digest.Digest {
		body := []byte(fmt.Sprintf("%01024d", n))
		d := digest.FromBytes(body)
		in, err := s.Begin(Origin{Repository: "docker.io/library/redis"}, d, int64(len(body)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.WriteAt(body, 0); err != nil {
			t.Fatal(err)
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	s := open()
	daily, once := put(s, 1), put(s, 2)
	for d, ago := range map[digest.Digest]time.Duration{daily: 24 * time.Hour, once: firstUse / 2} {
		came := time.Now().Add(-ago)
		s.room.mu.Lock()
		e := s.room.lru.Peek(d)
		e.Value.mtime, e.Value.used = came.UnixNano(), came.UnixNano()
		s.room.mu.Unlock()
		s.catalogue.amend(d, func(r *record) { r.mtime = came.UnixNano() })
		os.Chtimes(s.files.layout.blob(d), came, came)
		s.Touch(d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	for n := range 200 {
		put(s, 1000+n)
	}
	if _, ok := s.Has(daily); !ok {
		t.Error("a blob that was used again was evicted")
	}
	if _, ok := s.Has(once); ok {
		t.Error("a blob that was used for one pull only is still there")
	}
}

// TestReadersKeepEvictedBytesAndTheyCount: a blob that is removed while somebody reads it can be read
// to its end, and counts until it is closed.
func TestReadersKeepEvictedBytesAndTheyCount(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 2<<20)
	body := noise(30, 2<<20)
	d := put(t, s, body)
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(Origin{Repository: repo}, digest.FromString("x"), 1<<20); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Begin beside a reader = %v", err)
	}
	s.Remove(d)
	if st := s.Stats(); st.Bytes != 2<<20 {
		t.Errorf("an unlinked file that is being read counts %d", st.Bytes)
	}
	if got, _ := io.ReadAll(b.File); !bytes.Equal(got, body) {
		t.Error("the reader did not get its bytes")
	}
	b.Close()
	balanced(t, s)
}

// TestEvictedCountsUntilClosed: a blob is evicted after its commit and before its owner has closed
// it. The file is open, so its room has not come back yet.
func TestEvictedCountsUntilClosed(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 4<<20)
	b := noise(1, 2<<20)
	in, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.verify(); err != nil {
		t.Fatal(err)
	}
	if err := s.files.commit(in); err != nil {
		t.Fatal(err)
	}
	r, ok := in.Reader()
	if !ok {
		t.Fatal("no reader of an ingest that its owner has not closed")
	}
	s.Remove(in.Digest())
	for _, step := range []struct {
		what  string
		do    func()
		bytes int64
	}{
		{"evicted", func() {}, 2 << 20},
		{"closed by its reader", func() { r.Close() }, 2 << 20},
		{"closed by its owner", in.finish, 0},
	} {
		step.do()
		if got := s.Stats().Bytes; got != step.bytes {
			t.Errorf("%s: %d bytes are accounted for, want %d", step.what, got, step.bytes)
		}
	}
}

// TestVictimIsGivenBackOnce: the last reader of a victim leaves after the victim was chosen and before
// its file is unlinked.
func TestVictimIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	put(t, s, noise(1, 1<<20))
	d := put(t, s, noise(2, 2<<20))
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	s.room.evicting.Lock()
	s.room.mu.Lock()
	e := s.room.lru.Remove(d)
	s.room.beginUnlink(e)
	s.room.mu.Unlock()
	b.Close()
	if st := s.Stats(); st.Bytes != 3<<20 {
		t.Errorf("%d bytes are accounted for while the file is there", st.Bytes)
	}
	s.room.unlink([]*entry{e})
	s.room.evicting.Unlock()
	balanced(t, s)
}

// TestHeldPartialIsNoVictim: to unlink a partial that somebody still reads gives no room, so nothing
// leaves for it in vain.
func TestHeldPartialIsNoVictim(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 10<<20)
	settleDown(t, s)
	b := noise(1, 6<<20)
	in := begun(t, s, Origin{Repository: repo}, b)
	r, _ := in.Reader()
	defer r.Close()
	in.Abort(io.ErrUnexpectedEOF)
	keep := put(t, s, noise(2, 2<<20))
	if err := (&reservation{room: &s.room}).grow(7 << 20); !errors.Is(err, ErrNoRoom) {
		t.Fatal(err)
	}
	if _, ok := s.Has(keep); !ok {
		t.Error("a blob left in vain")
	}
	if size, _ := s.Partial(digest.FromBytes(b)); size == 0 {
		t.Error("a partial left in vain")
	}
}

// TestPartialThatIsResumedIsNoVictim: a partial is about to be resumed while somebody else chooses
// victims. If it were one, the file of the new ingest would be unlinked.
func TestPartialThatIsResumedIsNoVictim(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 10<<20)
	settleDown(t, s)
	b := noise(1, 4<<20)
	d := digest.FromBytes(b)
	begun(t, s, Origin{Repository: repo}, b).Abort(io.ErrUnexpectedEOF)

	// Begin claims the digest.
	in := &Ingest{s: s, reservation: reservation{room: &s.room}, digest: d, from: Origin{Repository: repo}, size: int64(len(b)), hasher: d.Algorithm().Hash()}
	if err := s.files.claim(in); err != nil {
		t.Fatal(err)
	}
	// Somebody else picks victims to make room.
	s.room.evicting.Lock()
	s.room.mu.Lock()
	victims := s.room.evict(s.room.lru.Victims(7<<20, 0), ForBudget)
	s.room.mu.Unlock()
	// Begin opens the file.
	if err := in.open(); err != nil {
		t.Fatal(err)
	}
	in.hashing.Add(1)
	go in.hash()
	// Somebody else unlinks the victims.
	s.room.unlink(victims)
	s.room.evicting.Unlock()

	if _, err := in.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Error(err)
	}
	balanced(t, s)
}

// TestTouchReachesTheClosure: a use of an index is one of its images and their layers.
func TestTouchReachesTheClosure(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	layer, config := put(t, s, noise(40, 2000)), put(t, s, noise(41, 100))
	image := []byte(`{"schemaVersion":2,"config":{"digest":"` + config.String() + `","size":100},"layers":[{"digest":"` + layer.String() + `","size":2000}]}`)
	di := digest.FromBytes(image)
	index := []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + di.String() + `","size":3},{"digest":"` + digest.FromString("other").String() + `","size":3}]}`)
	dx := digest.FromBytes(index)
	for d, b := range map[digest.Digest][]byte{di: image, dx: index} {
		if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", b); err != nil {
			t.Fatal(err)
		}
	}
	s.room.mu.Lock()
	s.room.lru.All(func(e *entry) { e.Value.used = 1 })
	s.room.mu.Unlock()
	s.Touch(dx)
	s.room.lru.All(func(e *entry) {
		if e.Value.used == 1 {
			t.Errorf("%s was not touched", e.Key)
		}
	})
	m, err := s.Manifest(dx)
	if err != nil || m.MediaType != "application/x" || len(m.Children) != 2 || !bytes.Equal(m.Body, index) {
		t.Errorf("%+v, %v", m, err)
	}
	if l, err := s.Link(repo, digest.FromString("other")); err != nil || l.Confirmed || l.Size != 3 {
		t.Errorf("link of a child %+v, %v", l, err)
	}
}

// TestTouchCountsAfterTheClockWentBack: a use that was noted with a wrong clock, in the future, doesn't
// keep later uses from counting, neither of a manifest nor of what it names.
func TestTouchCountsAfterTheClockWentBack(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	layer := put(t, s, noise(1, 1000))
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":1000}]}`, layer)
	d := digest.FromBytes(body)
	s.PutManifest(Origin{Repository: repo}, d, "x", body)
	later := time.Now().Add(30 * 24 * time.Hour).UnixNano()
	s.room.touch(d, later, 0) // a host that started with a wrong clock
	now := time.Now()
	s.room.touch(d, now.Add(time.Hour).UnixNano(), 0) // the clock is right again
	s.room.mu.Lock()
	used := time.Unix(0, s.room.lru.Peek(layer).Value.used)
	s.room.mu.Unlock()
	if used.After(now.Add(24 * time.Hour)) {
		t.Error("used an hour from now, and noted as used", used)
	}
}

// TestTouchOfAnIndexThatNamesItselfEnds: indexes may name each other in a circle, or very deeply.
func TestTouchOfAnIndexThatNamesItselfEnds(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	// No manifest can contain its own digest, but a record can be made to say so.
	a := []byte(`{"manifests":[]}`)
	d := digest.FromBytes(a)
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", a); err != nil {
		t.Fatal(err)
	}
	s.catalogue.amend(d, func(r *record) {
		r.children = []image.Child{{Digest: d, Size: int64(len(a)), Role: image.RoleManifest}}
	})
	s.Touch(d)
	// 50 indexes, each of which names the one before.
	for range 50 {
		b := fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":1}]}`, d)
		d = digest.FromBytes(b)
		if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", b); err != nil {
			t.Fatal(err)
		}
	}
	s.Touch(d)
}

// TestTouchDuringReconcile: with -race, what is known of an entry changes under a lock only.
func TestTouchDuringReconcile(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range 50 {
			s.room.touch(d, time.Now().Add(time.Duration(n)*time.Minute).UnixNano(), 0)
		}
	})
	wg.Go(func() {
		for range 50 {
			s.house.reconcile()
		}
	})
	wg.Wait()
}

// TestEndedReservationCannotGrow: a write that comes after the end of its ingest reserves nothing,
// since nobody would give it back.
func TestEndedReservationCannotGrow(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	in, err := s.Begin(Origin{Repository: repo}, digest.FromString("x"), -1)
	if err != nil {
		t.Fatal(err)
	}
	in.Abort(io.ErrUnexpectedEOF)
	if err := in.reservation.grow(1 << 20); !errors.Is(err, ErrNoRoom) {
		t.Errorf("grow = %v", err)
	}
	if err := in.reservation.resize(1 << 20); !errors.Is(err, ErrNoRoom) {
		t.Errorf("resize = %v", err)
	}
	balanced(t, s)
}

// TestHotPathsAllocateNothing: every hit asks for these.
func TestHotPathsAllocateNothing(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	d := put(t, s, noise(1, 1000))
	for name, call := range map[string]func(){
		"Has":   func() { s.Has(d) },
		"Touch": func() { s.Touch(d) }, // within the same second
	} {
		if n := testing.AllocsPerRun(1000, call); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
