package storage

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Nested bbolt View inside each() deadlocks with a writer that remaps.
func TestNestedViewDeadlock(t *testing.T) {
	s := open(t, t.TempDir(), 1<<30)
	for n := range 300 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, n)
		if err := s.PutManifest(Origin{Repository: repo}, digest.FromBytes(body), "x", body); err != nil {
			t.Fatal(err)
		}
	}
	s.house.flush()
	stop := make(chan struct{})
	go func() { // what keepHouse does every second for a changed repository
		for {
			select {
			case <-stop:
				return
			default:
				s.house.writeRepo(repo)
			}
		}
	}()
	done := make(chan struct{})
	go func() { // what commits do: the index grows and bbolt maps it anew
		defer close(done)
		for n := range 60 {
			for i := range 20 {
				v := make([]byte, 8000)
				rand.Read(v)
				s.catalogue.index.Set(bucketTags, pair("docker.io/x/y", fmt.Sprint(n, "-", i)), v)
			}
			s.house.flush()
		}
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		s.catalogue.index = nil
		pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
		t.Fatal("the index is deadlocked")
	}
	close(stop)
	time.Sleep(50 * time.Millisecond)
}

// Rebuild makes an unconfirmed link of an index's child a confirmed one.
func TestRebuildConfirmsWhatWasOnlyNamed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	secret := []byte(`{"schemaVersion":2,"secret":true}`)
	d := digest.FromBytes(secret)
	if err := s.PutManifest(Origin{"docker.io/corp/app", true}, d, "application/vnd.oci.image.manifest.v1+json", secret); err != nil {
		t.Fatal(err)
	}
	evil, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []map[string]any{{"digest": d, "size": len(secret)}}})
	if err := s.PutManifest(Origin{"docker.io/evil/public", false}, digest.FromBytes(evil), "application/vnd.oci.image.index.v1+json", evil); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Link("docker.io/evil/public", d); err != nil || l.Confirmed {
		t.Fatal("before", l, err)
	}
	shut(t, s)
	os.Remove(filepath.Join(dir, "index.db"))
	s = open(t, dir, 100<<20)
	if l, err := s.Link("docker.io/evil/public", d); err == nil && l.Confirmed {
		t.Error("after a rebuild evil/public is confirmed to have corp/app's manifest")
	}
}

// A private blob whose manifest isn't here (any more) stays private after a rebuild, or after
// a crash between rename and index, and when whoever backs the cache up changes the other bits.
func TestAdoptedBlobIsPublic(t *testing.T) {
	for _, mode := range []os.FileMode{modePrivate, 0o550} { // chmod -R g+rX
		dir := t.TempDir()
		s := open(t, dir, 100<<20)
		b := noise(9, 2<<20)
		d := digest.FromBytes(b)
		in, _ := s.Begin(Origin{"docker.io/corp/app", true}, d, int64(len(b)))
		in.WriteAt(b, 0)
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		shut(t, s)
		if err := os.Chmod(s.files.layout.blob(d), mode); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, "index.db"))
		s = open(t, dir, 100<<20)
		f, err := s.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !f.Private {
			t.Errorf("%v: a blob that came through a private repository is public now", mode)
		}
	}
}

// A manifest that was adopted as a blob stays a blob, whatever PutManifest says.
func TestAdoptedManifestNeverBecomesOne(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	body := []byte(`{"schemaVersion":2}`)
	d := put(t, s, body) // as adopt books it after a crash: a blob
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/vnd.oci.image.manifest.v1+json", body); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Error("PutManifest returned nil and the manifest isn't there:", err)
	}
}

// A byte written a second time after it was hashed is committed unseen.
func TestOverwriteAfterHash(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	b := noise(3, 4<<20)
	d := digest.FromBytes(b)
	in, _ := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	in.WriteAt(b[:2<<20], 0)
	for {
		in.mu.Lock()
		h := in.hashed
		in.mu.Unlock()
		if h == 2<<20 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	in.WriteAt([]byte("garbage"), 1<<20)
	in.WriteAt(b[2<<20:], 2<<20)
	if err := in.Commit(); err != nil {
		return
	}
	f, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.Verify(context.Background(), d) != nil {
		t.Error("a blob with other bytes was committed as", d)
	}
}

// Out of descriptors between rename and fsync of the folder: the file stays, unbooked.
func TestFailedPlaceLeavesFile(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	put(t, s, noise(1, 100))
	b := noise(4, 2<<20)
	d := digest.FromBytes(b)
	os.MkdirAll(filepath.Dir(s.files.layout.blob(d)), 0o700)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	in.WriteAt(b, 0)
	var old syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old)
	low := old
	low.Cur = 3
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low)
	err = in.Commit()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	if err == nil {
		t.Fatal("no error")
	}
	balanced(t, s)
}

// A clock that went back: the closure of a manifest isn't touched any more.
func TestTouchAfterClockWentBack(t *testing.T) {
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
		t.Error("used an hour from now, and booked for", used)
	}
}

// Open of an entry that was evicted and fetched again meanwhile removes the new one.
func TestOpenRemovesSuccessor(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	b := noise(5, 1000)
	d := put(t, s, b)
	s.room.mu.Lock()
	e := s.room.lru.Peek(d)
	s.room.lru.Hold(e)
	was := e.Value
	s.room.mu.Unlock()
	s.Remove(d) // an eviction between Open's look and its open(2)
	put(t, s, b)
	if b, err := s.files.openHeld(e, was); err == nil {
		b.Close()
	}
	if _, ok := s.Has(d); !ok {
		t.Error("the new, good blob was removed")
	}
}

// A manifest isn't synced when it is committed: after a power cut its file may have the
// right size and no bytes. It must not be read as a blob then, either.
func TestUnsyncedManifestIsNoBlob(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	path := s.files.layout.blob(d)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(make([]byte, len(body)))
	f.Close()
	os.Chmod(path, fi.Mode())
	os.Chtimes(path, fi.ModTime(), fi.ModTime())
	if b, err := s.Open(d); err == nil {
		b.Close()
		t.Error("zeros are served as the blob of a manifest")
	}
	if _, err := s.Manifest(d); err == nil {
		t.Error("zeros are served as the manifest")
	}
}
