package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

const repo = "docker.io/library/redis"

func open(t *testing.T, dir string, budget int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.catalogue.index != nil {
			s.Close()
			s.catalogue.index = nil
		}
	})
	return s
}

func shut(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.catalogue.index = nil
}

// noise returns n bytes that seed determines.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func put(t *testing.T, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	return d
}

// get reads blob d, nil when it isn't there.
func get(t *testing.T, s *Store, d digest.Digest) []byte {
	t.Helper()
	b, err := s.Open(d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(b.File)
	if err != nil || digest.FromBytes(got) != d {
		t.Fatalf("%s: %d bytes, %v", d, len(got), err)
	}
	return got
}

// bytesOnDisk adds up the files in blobs/ and ingest/, state files not among them.
func bytesOnDisk(t *testing.T, s *Store) (n int64) {
	t.Helper()
	for _, dir := range []string{s.files.layout.blobs(), s.files.layout.ingest()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".json") && !strings.HasPrefix(d.Name(), tempPrefix) {
				if fi, err := d.Info(); err == nil {
					n += fi.Size()
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// balanced fails when the books and the disk differ, or something stays reserved.
func balanced(t *testing.T, s *Store) {
	t.Helper()
	st := s.Stats()
	if n := bytesOnDisk(t, s); n != st.Bytes || st.ReservedBytes != 0 || st.Bytes > st.BudgetBytes {
		t.Errorf("on disk %d, booked %d, reserved %d, budget %d", n, st.Bytes, st.ReservedBytes, st.BudgetBytes)
	}
}

func TestBlobSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	small, large := noise(1, 1000), noise(2, 3<<20)
	ds, dl := put(t, s, small), put(t, s, large)
	shut(t, s)
	s = open(t, dir, 100<<20)
	if !bytes.Equal(get(t, s, ds), small) || !bytes.Equal(get(t, s, dl), large) {
		t.Error("other bytes after a restart")
	}
	if l, err := s.Link(repo, dl); err != nil || !l.Confirmed || l.Size != 3<<20 {
		t.Errorf("link %+v, %v", l, err)
	}
	balanced(t, s)
}

func TestReadersFollowTheWriteHead(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	body := noise(3, 5<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		r, _ := in.Reader()
		wg.Go(func() {
			defer r.Close()
			if got, err := io.ReadAll(&follow{r: r}); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	// Ranges arrive out of order.
	const chunk = 100 << 10
	var order []int
	for at := 0; at < len(body); at += chunk {
		order = append(order, at)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, at := range order {
		if _, err := in.WriteAt(body[at:min(at+chunk, len(body))], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	balanced(t, s)
}

// follow makes an io.Reader of a Reader.
type follow struct {
	r  *Reader
	at int64
}

func (f *follow) Read(p []byte) (int, error) {
	n, err := f.r.ReadAt(context.Background(), p, f.at)
	f.at += int64(n)
	return n, err
}

func TestLastByteIsHeldUntilTheDigestIsRight(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	for _, size := range []int{0, 1, 1000, VerifyFirst, VerifyFirst + 1, 3 << 20} {
		body := noise(uint64(size), size)
		d := digest.FromString("something else")
		in, err := s.Begin(Origin{Repository: repo}, d, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		r, _ := in.Reader()
		if size > 0 {
			if _, err := in.WriteAt(body, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Commit(); !errors.Is(err, ErrDigest) {
			t.Fatalf("%d bytes: Commit = %v", size, err)
		}
		got, err := io.ReadAll(&follow{r: r})
		if !errors.Is(err, ErrDigest) {
			t.Errorf("%d bytes: reader got %v", size, err)
		}
		if len(got) >= max(size, 1) || size <= VerifyFirst && len(got) > 0 {
			t.Errorf("of %d wrong bytes a reader got %d", size, len(got))
		}
		r.Close()
		if get(t, s, d) != nil {
			t.Error("wrong bytes were kept")
		}
		balanced(t, s)
	}
}

func TestMissingBytesAreNotCommitted(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	body := noise(4, 2<<20)
	in, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	in.WriteAt(body[:1<<20], 0)
	if _, err := in.WriteAt(body, 1<<20); err == nil {
		t.Error("more bytes than announced were taken")
	}
	if err := in.Commit(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Commit = %v", err)
	}
	balanced(t, s)
}

func TestUnknownSizeGrowsInSteps(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	body := noise(5, 20<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, -1)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(body); at += 1 << 20 {
		if _, err := in.WriteAt(body[at:at+1<<20], int64(at)); err != nil {
			t.Fatal(err)
		}
		if st := s.Stats(); st.Bytes != int64(at+1<<20) || st.ReservedBytes > growStep {
			t.Fatalf("at %d: %+v", at, st)
		}
	}
	if err := in.SetSize(int64(len(body))); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, s, d), body) {
		t.Error("other bytes")
	}
	balanced(t, s)
}

func TestPartialIsTakenUpAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	body := noise(6, 4<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	resumed := func() bool {
		r, _ := in.Reader()
		defer r.Close()
		return r.Resumed()
	}
	if resumed() {
		t.Error("a new one is said to be resumed")
	}
	in.WriteAt(body[:1<<20], 0)
	in.WriteAt(body[2<<20:3<<20], 2<<20)
	in.Abort(errors.New("upstream went away"))
	balanced(t, s)
	shut(t, s)

	s = open(t, dir, 100<<20)
	balanced(t, s)
	in, err = s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Span{{1 << 20, 2 << 20}, {3 << 20, 4 << 20}}, in.Missing()); diff != "" {
		t.Error(diff)
	}
	if !resumed() {
		t.Error("a resumed one is said to be new")
	}
	for _, g := range in.Missing() {
		in.WriteAt(body[g.From:g.To], g.From)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, s, d), body) {
		t.Error("other bytes")
	}
	balanced(t, s)
}

func TestPartialOfAnotherBootIsDropped(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	body := noise(7, 2<<20)
	in, _ := s.Begin(Origin{Repository: repo}, digest.FromBytes(body), int64(len(body)))
	in.WriteAt(body[:1<<20], 0)
	in.Abort(errors.New("upstream went away"))
	path := s.files.layout.partialState(in.digest)
	shut(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path, bytes.Replace(b, []byte(bootID()), []byte("another"), 1), 0o600)
	s = open(t, dir, 100<<20)
	if files, _ := os.ReadDir(s.files.layout.ingest()); len(files) > 0 {
		t.Errorf("%d files stay in ingest/", len(files))
	}
	balanced(t, s)
}

func TestEvictionByLastUse(t *testing.T) {
	s := open(t, t.TempDir(), 5<<20)
	var ds []digest.Digest
	for i := range 4 {
		ds = append(ds, put(t, s, noise(uint64(10+i), 1<<20)))
	}
	s.room.mu.Lock()
	for _, d := range ds { // uses within a second are one
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
	if st := s.Stats(); st.Evictions != 1 || st.EvictedBytes != 1<<20 {
		t.Errorf("%+v", st)
	}
	balanced(t, s)
}

func TestReadersKeepEvictedBytesAndTheyCount(t *testing.T) {
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
		t.Error("the reader lost its bytes")
	}
	b.Close()
	balanced(t, s)
}

func TestLostFileIsAMiss(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { os.Chmod(path, 0o600); return os.Truncate(path, 100) },
		"replaced": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, noise(99, 2<<20), 0o400))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), 100<<20)
			d := put(t, s, noise(31, 2<<20))
			if err := harm(s.files.layout.blob(d)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open = %v", err)
			}
			put(t, s, noise(31, 2<<20))
			balanced(t, s)
		})
	}
}

func TestTouchReachesTheClosure(t *testing.T) {
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

// What has left is forgotten, but for what a manifest that stayed names.
func TestSweep(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	kept, gone := put(t, s, noise(60, 2000)), put(t, s, noise(61, 2000))
	image := []byte(`{"layers":[{"digest":"` + kept.String() + `","size":2000}]}`)
	di := digest.FromBytes(image)
	if err := s.PutManifest(Origin{Repository: repo}, di, "application/x", image); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.SetTag(repo, "here", Tag{Digest: di, Checked: now})
	s.SetTag(repo, "left", Tag{Digest: gone, Checked: now})
	s.Remove(kept)
	s.Remove(gone)
	s.house.sweep(now.Add(time.Hour))
	if _, err := s.Link(repo, kept); err != nil {
		t.Errorf("a link that a manifest names: %v", err)
	}
	if _, err := s.Link(repo, gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that nothing needs: %v", err)
	}
	if _, err := s.Tag(repo, "left"); err != nil {
		t.Errorf("a young tag: %v", err)
	}
	s.house.sweep(now.Add(tagsKept + time.Hour))
	if _, err := s.Tag(repo, "left"); err == nil {
		t.Error("an old tag without its manifest stays")
	}
	if _, err := s.Tag(repo, "here"); err != nil {
		t.Error(err)
	}
}

func TestDamagedIndexIsRebuilt(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 9000) },
		"short":     func(path string) error { return os.Truncate(path, 100) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"zeroed":    func(path string) error { return os.WriteFile(path, make([]byte, 64<<10), 0o600) },
		"text":      func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("no "), 20000), 0o600) },
		"condemned": func(path string) error { return os.WriteFile(path+".damaged", nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, 100<<20)
			layer := put(t, s, noise(50, 2000))
			image := []byte(`{"layers":[{"digest":"` + layer.String() + `","size":2000}]}`)
			di := digest.FromBytes(image)
			if err := s.PutManifest(Origin{Repository: repo}, di, "application/x", image); err != nil {
				t.Fatal(err)
			}
			s.SetTag(repo, "7", Tag{Digest: di, MediaType: "application/x", Size: int64(len(image))})
			s.SetVisibility(repo, Visibility{Public: true})
			shut(t, s)
			if err := harm(filepath.Join(dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, 100<<20)
			if tag, err := s.Tag(repo, "7"); err != nil || tag.Digest != di {
				t.Errorf("tag %+v, %v", tag, err)
			}
			if v, err := s.Visibility(repo); err != nil || !v.Public {
				t.Errorf("verdict %+v, %v", v, err)
			}
			if m, err := s.Manifest(di); err != nil || m.MediaType != "application/x" || !bytes.Equal(m.Body, image) {
				t.Errorf("manifest %+v, %v", m, err)
			}
			if _, err := s.Link(repo, layer); err != nil {
				t.Error(err)
			}
			get(t, s, layer)
			if st := s.Stats(); st.Manifests != 1 || st.Blobs != 1 || st.Tags != 1 {
				t.Errorf("%+v", st)
			}
			balanced(t, s)
		})
	}
}

// Any byte of the index may be wrong: the store opens, and what it serves is right.
func FuzzDamagedIndex(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 300 {
		s.SetTag(repo, "tag"+string(rune('a'+i%26))+strings.Repeat("x", i%50), Tag{Digest: digest.FromString("x")})
	}
	s.Close()
	good, err := os.ReadFile(filepath.Join(dir, "index.db"))
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i < len(good); i += 997 {
		f.Add(uint32(i), byte(0xff))
	}
	f.Fuzz(func(t *testing.T, at uint32, x byte) {
		dir := t.TempDir()
		bad := bytes.Clone(good)
		bad[int(at)%len(bad)] ^= x
		if err := os.WriteFile(filepath.Join(dir, "index.db"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, 100<<20)
		s.SetTag(repo, "new", Tag{Digest: digest.FromString("y")})
		d := put(t, s, []byte("blob"))
		if get(t, s, d) == nil {
			t.Error("a blob was lost")
		}
		balanced(t, s)
	})
}
