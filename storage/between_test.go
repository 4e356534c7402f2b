package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
)

// begun writes all but the end of b; nil when it is there already.
func begun(t *testing.T, s *Store, o Origin, b []byte) *Ingest {
	t.Helper()
	in, err := s.Begin(o, digest.FromBytes(b), int64(len(b)))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b[:len(b)-100], 0); err != nil {
		t.Fatal(err)
	}
	return in
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Evicted, fetched again, committed; a crash before the index is written. Its old record is
// there still, and names another inode.
func TestCrashAfterEvictionAndRefetch(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	b := noise(1, 2<<20)
	d := put(t, s, b)
	s.house.flush()
	copyFile(t, s.files.layout.index(), filepath.Join(dir, "then"))
	s.Remove(d)
	put(t, s, noise(2, 2<<20)) // takes the inode
	put(t, s, b)
	shut(t, s)
	os.Rename(filepath.Join(dir, "then"), filepath.Join(dir, "index.db")) // what a crash leaves
	s = open(t, dir, 100<<20)
	settleDown(t, s)
	if get(t, s, d) == nil {
		t.Error("a committed blob is lost")
	}
}

// settleDown waits for the first look at the files.
func settleDown(t *testing.T, s *Store) {
	t.Helper()
	for range 1000 {
		if s.house.walked.Load() {
			time.Sleep(10 * time.Millisecond) // and the sweep
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the files are still being looked at")
}

// unwalked opens a store of a few blobs, one of which the index doesn't know after a crash,
// and stops where Open begins to serve: the files have not been compared with the index yet.
func unwalked(t *testing.T, unknown []byte) *Store {
	t.Helper()
	dir := t.TempDir()
	shut(t, open(t, dir, 10<<20))
	s := newStore(Options{Dir: dir, Budget: 10 << 20, Log: slog.New(slog.DiscardHandler)})
	path := s.files.layout.blob(digest.FromBytes(unknown))
	os.MkdirAll(filepath.Dir(path), 0o700)
	if err := os.WriteFile(path, unknown, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := s.house.load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.catalogue.index.Close() })
	return s
}

// A file the index doesn't know of is asked for before the walk has come to it, and the
// download breaks off.
func TestAdoptOverPartial(t *testing.T) {
	b := noise(1, 2<<20)
	s := unwalked(t, b)
	if in := begun(t, s, Origin{Repository: repo}, b); in != nil {
		in.Abort(io.ErrUnexpectedEOF)
	}
	s.house.reconcile()         // gets there now
	put(t, s, noise(10, 9<<20)) // both have to leave: close of a nil channel
	balanced(t, s)
}

// The same, and the walk comes by while the download goes on.
func TestAdoptDuringIngest(t *testing.T) {
	b := noise(1, 2<<20)
	s := unwalked(t, b)
	in := begun(t, s, Origin{Repository: repo}, b)
	s.house.reconcile()
	if in != nil {
		in.Abort(io.ErrUnexpectedEOF)
	}
	balanced(t, s)
}

// The index is found damaged at run time: what comes in until the restart is found in repos/.
func TestWhatComesAfterDamageIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	s.catalogue.index.MarkDamaged(fmt.Errorf("%w: by a bad disk", index.ErrDamaged))
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", body); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "7", Tag{Digest: d, MediaType: "application/x", Size: int64(len(body)), Checked: time.Now()})
	time.Sleep(2500 * time.Millisecond) // "tags of the newest second before the crash"
	s.Close()
	s.catalogue.index = nil
	s = open(t, dir, 100<<20)
	if _, err := s.Tag(repo, "7"); err != nil {
		t.Error("tag:", err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Error("manifest:", err)
	}
	if _, err := s.Link(repo, d); err != nil {
		t.Error("link:", err)
	}
}

// With -race: the bits of an entry change under mu only.
func TestRaceOnBits(t *testing.T) {
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

// A record and its entry say the same, whoever changes them at once.
func TestAmendLosesUpdate(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	for n := range 4000 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, n%50)
		d := digest.FromBytes(body)
		s.Remove(d)
		put(t, s, body)
		s.room.mu.Lock()
		s.room.lru.Peek(d).Value.bits |= unverified // as adopt books it
		s.room.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() {
			if b, err := s.Open(d); err == nil {
				b.Close()
			}
		})
		err := s.PutManifest(Origin{Repository: repo}, d, "x", body)
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Manifest(d); err != nil {
			again := s.PutManifest(Origin{Repository: repo}, d, "x", body)
			_, err2 := s.Manifest(d)
			t.Fatalf("try %d: %v; put again: %v, %v", n, err, again, err2)
		}
	}
}

// A link that sweep has deleted does not come back with a rebuild.
func TestSweptLinkComesBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	body := []byte(`{"schemaVersion":2,"secret":true}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{"docker.io/a/public", false}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	s.SetVisibility("docker.io/a/public", Visibility{true, time.Now()})
	s.house.writeRepos()
	s.Remove(d)
	s.house.sweep(time.Now())
	if err := s.PutManifest(Origin{"docker.io/corp/app", true}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Link("docker.io/a/public", d); err == nil {
		t.Fatal("before")
	}
	shut(t, s)
	os.Remove(filepath.Join(dir, "index.db"))
	s = open(t, dir, 100<<20)
	if l, err := s.Link("docker.io/a/public", d); err == nil {
		t.Errorf("a/public is linked to corp/app's manifest after a rebuild: %+v", l)
	}
}

// Nonsense sizes do not make the free space wrap.
func TestFreeSpaceOverflow(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 5 << 30, nil }
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(10 << 30) // 5 GiB are missing already
	if _, err := s.Begin(Origin{Repository: repo}, digest.FromString("x"), math.MaxInt64); !errors.Is(err, ErrNoRoom) {
		t.Error(err)
	}
	if in, err := s.Begin(Origin{Repository: repo}, digest.FromString("y"), 1<<20); !errors.Is(err, ErrNoRoom) {
		in.Abort(ErrDigest)
		t.Error("room with 5 GiB free and 10 to be kept:", err)
	}
}

// What was promised a moment ago and isn't allocated yet is not promised again.
func TestMinFreePromisedTwice(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 100<<20 - bytesOnDisk(t, s), nil }
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(90 << 20)
	promised := 0
	for range 5 { // Begins between their reserve and their fallocate, or of unknown size
		if (&reservation{room: &s.room}).grow(8<<20) == nil {
			promised += 8
		}
	}
	if promised > 10 {
		t.Errorf("%d MiB were promised of 10", promised)
	}
}

// The note of damage stays until the index is out of the way.
func TestSetAsideFails(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	s.catalogue.index.MarkDamaged(fmt.Errorf("%w: by a bad disk", index.ErrDamaged))
	s.Close()
	s.catalogue.index = nil
	bad := filepath.Join(dir, "index.db.bad")
	os.MkdirAll(filepath.Join(bad, "x"), 0o700) // anything that stops between the two calls
	if _, err := Open(Options{Dir: dir, Budget: 1 << 20}); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(filepath.Join(dir, "index.db.damaged")); err != nil {
		t.Error("the damaged index will be believed:", err)
	}
}

// Open of an entry that was evicted leaves the partial of its successor alone.
func TestOpenRemovesPartialOfSuccessor(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	b := noise(5, 2<<20)
	d := put(t, s, b)
	s.room.mu.Lock()
	e := s.room.lru.Peek(d)
	s.room.lru.Hold(e)
	was := e.Value
	s.room.mu.Unlock()
	s.Remove(d)
	begun(t, s, Origin{Repository: repo}, b).Abort(io.ErrUnexpectedEOF)
	if f, err := s.files.openHeld(e, was); err == nil {
		f.Close()
	}
	if size, _ := s.Partial(d); size == 0 {
		t.Error("the partial was removed")
	}
}

// name does not overwrite what Confirm has set meanwhile.
func TestNameLosesConfirm(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	for n := range 4000 {
		d := digest.FromString(fmt.Sprint(n))
		var wg sync.WaitGroup
		wg.Go(func() { s.Confirm(repo, d, 10) })
		s.catalogue.linkChildren(repo, []image.Child{image.Child{Digest: d, Size: 10, Role: image.RoleLayer}})
		wg.Wait()
		if l, err := s.Link(repo, d); err != nil || !l.Confirmed {
			t.Fatalf("try %d: %+v %v", n, l, err)
		}
	}
}

// A partial that somebody still reads is not taken for room that it doesn't give.
func TestHeldPartialIsNoVictim(t *testing.T) {
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

// A sweep between the naming of a manifest's children and its commit takes no link away.
func TestSweepBetweenNamingAndCommit(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	child := digest.FromString("child")
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":10}]}`, child)
	d := digest.FromBytes(body)
	s.room.evicting.Lock() // PutManifest has to wait for its room behind another one's eviction
	s.room.minFree.Store(1 << 60)
	done := make(chan error)
	go func() { done <- s.PutManifest(Origin{Repository: repo}, d, "x", body) }()
	for {
		if _, err := s.Link(repo, child); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.room.minFree.Store(0)
	// Its claim on d is made by now; none is on the children.
	time.Sleep(50 * time.Millisecond)
	s.house.sweep(time.Now())
	s.room.evicting.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Link(repo, child); err != nil {
		t.Error("the manifest is here and its layer's link is gone:", err)
	}
}

// docs/disk-format.md: a link is written with the synced transaction that follows at once.
func TestNamesWithoutRoomAreWrittenAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), 10)
	settleDown(t, s)
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":10}]}`, digest.FromString("x"))
	if err := s.PutManifest(Origin{Repository: repo}, digest.FromBytes(body), "x", body); !errors.Is(err, ErrNoRoom) {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if n := s.catalogue.index.Pending(); n > 0 {
		t.Errorf("%d changes are still in memory only", n)
	}
}

// A partial that is about to be taken up again is chosen as a victim: its name is unlinked
// after the new ingest has made its own file there.
func TestPartialEvictedBetweenClaimAndResume(t *testing.T) {
	s := open(t, t.TempDir(), 10<<20)
	settleDown(t, s)
	b := noise(1, 4<<20)
	d := digest.FromBytes(b)
	begun(t, s, Origin{Repository: repo}, b).Abort(io.ErrUnexpectedEOF)

	// Begin, as far as its claim.
	in := &Ingest{s: s, room: reservation{room: &s.room}, digest: d, from: Origin{Repository: repo}, size: int64(len(b)), hasher: d.Algorithm().Hash()}
	if err := s.files.claim(in); err != nil {
		t.Fatal(err)
	}
	// Another one's reserve picks its victims.
	s.room.evicting.Lock()
	s.room.mu.Lock()
	victims := s.room.pick(s.room.lru.Victims(7<<20, 0))
	s.room.mu.Unlock()
	// Begin goes on.
	if err := in.open(); err != nil {
		t.Fatal(err)
	}
	in.hashing.Add(1)
	go in.hash()
	// The other one goes on.
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
