//go:build integration

package integration

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// crashRounds is how often the server is killed: 200 times with HUBCACHE_SOAK.
func crashRounds() int {
	if os.Getenv("HUBCACHE_SOAK") != "" {
		return 200
	}
	return 20
}

// crashDamages are what befalls index.db between a kill and the next start.
var crashDamages = []struct {
	name   string
	damage func(path string, size int64) error
}{
	{"nothing", func(string, int64) error { return nil }},
	{"truncated", func(path string, size int64) error { return os.Truncate(path, rand.Int64N(size)) }},
	{"nothing", func(string, int64) error { return nil }},
	{"zeroed", func(path string, size int64) error { return os.WriteFile(path, make([]byte, size), 0o600) }},
	{"nothing", func(string, int64) error { return nil }},
	{"deleted", func(path string, _ int64) error { return os.Remove(path) }},
	{"nothing", func(string, int64) error { return nil }},
	{"corrupt", func(path string, size int64) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		junk := make([]byte, 4096)
		rand.NewChaCha8([32]byte{byte(rand.Uint32())}).Read(junk)
		_, err = f.WriteAt(junk, rand.Int64N(size-4096))
		return err
	}},
}

// crashLoad is what goes on when the server is killed: 8 clients pull from a catalogue
// that is larger than the budget, tags move, and one image is in use all the time.
type crashLoad struct {
	t      *testing.T
	hub    *hubtest.Hub
	images []*hubtest.Image
	steady *hubtest.Image
	wrong  sync.Map // errors that must not be
}

// run pulls until ctx ends. Connections break, that is the point; bytes are never wrong.
func (l *crashLoad) run(ctx context.Context, base string) {
	var clients sync.WaitGroup
	loop := func(f func() error) {
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil && strings.Contains(err.Error(), "bytes of digest") {
					l.wrong.Store(err.Error(), true)
				}
			}
		})
	}
	for range 8 {
		loop(func() error {
			img := l.images[rand.IntN(len(l.images))]
			return pullImage(ctx, base, img, img.Digest.String())
		})
	}
	loop(func() error {
		a, b := l.images[0], l.images[1]
		l.hub.Tag(a.Repository, "moving", []digest.Digest{a.Digest, b.Digest}[rand.IntN(2)])
		_, err := request(ctx, "GET", base+"/v2/"+a.Repository+"/manifests/moving")
		return err
	})
	loop(func() error {
		defer time.Sleep(20 * time.Millisecond)
		return pullImage(ctx, base, l.steady, "")
	})
	clients.Wait()
}

// crashIntact checks a data directory at rest: all that is in blobs/ has its digest.
func crashIntact(t *testing.T, data string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if got, err := digest.SHA256.FromReader(f); err != nil || got.Encoded() != d.Name() {
			t.Errorf("%s has digest %s, %v", path, got, err)
		}
		fi, err := f.Stat()
		if err == nil && fi.Mode().Perm() != 0o400 {
			t.Errorf("%s has mode %o", path, fi.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// crashAccounted compares the books with the disk. A partial's state beside it, of some
// hundred bytes, isn't counted.
func crashAccounted(t *testing.T, s *server) {
	t.Helper()
	var booked, onDisk int64
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		booked, onDisk = s.Stats().Store.Bytes, cacheSize(t, s.Data)
		states, _ := filepath.Glob(filepath.Join(s.Data, "ingest", "*.json"))
		for _, path := range states {
			if fi, err := os.Stat(path); err == nil {
				onDisk -= fi.Size()
			}
		}
		if booked == onDisk {
			return
		}
	}
	t.Errorf("store.bytes is %d, on disk are %d", booked, onDisk)
}

// TestKillLosesNothingCommitted kills the server in the middle of its work, damages the index
// every other time, and looks at what the next start makes of it.
func TestKillLosesNothingCommitted(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, TotalBandwidth: 15 << 20})
	l := &crashLoad{t: t, hub: hub, steady: hub.AddImage("library/steady", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 1<<20), Index: true})}
	for i := range 40 { // small enough for what is on its way at one time to leave room for the steady one

		l.images = append(l.images, hub.AddImage("library/app", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(2, int64(200<<10)<<(i%4))}))
	}
	s := startServer(t, serverOptions{Hub: hub, Args: []string{"--budget", "40MiB", "--min-free", "1MiB"}})
	if err := pullImage(t.Context(), s.URL, l.steady, ""); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // its tag is in repos/
	slowest := time.Duration(0)
	for round := range crashRounds() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.run(ctx, s.URL); close(done) }()
		time.Sleep(time.Duration(100+rand.IntN(700)) * time.Millisecond)
		s.Kill()
		cancel()
		<-done
		crashIntact(t, s.Data)
		damage := crashDamages[round%len(crashDamages)]
		index := filepath.Join(s.Data, "index.db")
		if fi, err := os.Stat(index); err != nil {
			t.Fatal(err)
		} else if err := damage.damage(index, fi.Size()); err != nil {
			t.Fatal(err)
		}
		rule := hub.Inject(hubtest.Match{}, hubtest.Reset()) // the Hub is dead
		start := time.Now()
		s.Start()
		slowest = max(slowest, time.Since(start))
		if err := pullImage(t.Context(), s.URL, l.steady, ""); err != nil {
			t.Errorf("round %d, index %s: a cached pull: %v", round, damage.name, err)
		}
		crashAccounted(t, s)
		rule.Remove()
		if t.Failed() {
			t.Fatalf("round %d, index %s", round, damage.name)
		}
	}
	l.wrong.Range(func(err, _ any) bool { t.Error(err); return true })
	t.Logf("%d rounds, slowest start %s", crashRounds(), slowest)
	if slowest > 6*time.Second { // three times the promise, on a busy machine
		t.Errorf("a start took %s", slowest)
	}
	if err := pullImage(t.Context(), s.URL, l.images[5], ""); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestKillKeepsPartialDownload: what had arrived of a large blob isn't fetched again.
func TestKillKeepsPartialDownload(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 4 << 20})
	const size = 48 << 20
	img, layer := diskImage(hub, "large", size)
	s := startServer(t, serverOptions{Hub: hub})
	if _, err := request(t.Context(), "GET", s.URL+"/v2/"+img.Repository+"/manifests/"+img.Tag); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		diskRead(ctx, s, hub, img.Repository, layer.Digest, 0, nil)
	}()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if in := s.Stats().Inflight; len(in) > 0 && in[0].Received > size/2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not arrive: %+v", s.Stats().Inflight)
		}
	}
	s.Kill()
	cancel()
	<-done
	hub.ResetLedger()
	s.Start()
	crashAccounted(t, s)
	if err := diskRead(t.Context(), s, hub, img.Repository, layer.Digest, 0, nil); err != nil {
		t.Fatal(err)
	}
	ledger := hub.Ledger()
	// A second's bytes of six connections, or 16 MiB, may be fetched twice.
	if n := ledger.BlobBytes(); n > size/2+26<<20 || n == 0 {
		t.Errorf("%d of %d bytes were fetched after the crash:\n%s", n, size, ledger)
	}
	if n := ledger.Count(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN && e.Range == "" }); n > 0 {
		t.Errorf("%d requests without Range:\n%s", n, ledger)
	}
	waitIdle(t, s)
	crashIntact(t, s.Data)
	checkAccounted(t, s)
}

// TestKillLeavesNoFileThatOthersCanRead: nobody but the owner can read what the server leaves.
func TestKillLeavesNoFileThatOthersCanRead(t *testing.T) {
	hub := startHub(t, hubtest.Options{Bandwidth: 4 << 20})
	img, layer := diskImage(hub, "app", 20<<20)
	s := startServer(t, serverOptions{Hub: hub})
	get(t, s.URL+"/v2/"+img.Repository+"/manifests/"+img.Tag)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	diskRead(ctx, s, hub, img.Repository, layer.Digest, 0, func(int64) {})
	s.Kill()
	seen := map[string]bool{}
	err := filepath.WalkDir(s.Data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(s.Data, path)
		top, _, _ := strings.Cut(rel, "/")
		want := fs.FileMode(0o600)
		switch {
		case d.IsDir():
			want = 0o700
		case top == "blobs":
			want = 0o400
		}
		seen[top] = true
		if top == "ingest" && fi.Mode().Perm() == 0o400 {
			want = 0o400 // on its way into blobs/
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o instead of %o", rel, fi.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, top := range []string{"blobs", "ingest", "repos", "index.db"} {
		if !seen[top] {
			t.Errorf("no %s to look at", top)
		}
	}
}
