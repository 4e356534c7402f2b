//go:build integration

package integration

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// killRounds is how often the server is killed: 20 times, or 200 with HUBCACHE_SOAK.
func killRounds() int {
	if os.Getenv("HUBCACHE_SOAK") != "" {
		return 200
	}
	return 20
}

// indexDamages are what happens to index.db between a kill and the next start.
var indexDamages = []struct {
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

// killLoad is the load under which the server is killed: 8 clients pull from a catalogue that is
// larger than the budget, a tag moves, images are purged, and one image is in use all the time.
type killLoad struct {
	t      *testing.T
	hub    *hubtest.Hub
	images []*hubtest.Image
	steady *hubtest.Image
	admin  string       // address of the admin listener, where a client purges images
	purged atomic.Int64 // how many
	wrong  sync.Map     // errors that must not happen: wrong bytes
}

// run pulls until ctx ends. Connections may break, but bytes must never be wrong.
func (l *killLoad) run(ctx context.Context, base string) {
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
	loop(func() error { // of what comes back with the next pull
		img := l.images[rand.IntN(len(l.images))]
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+l.admin+"/api/v1/images/docker.io/"+img.Repository+"@"+img.Digest.String(), nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Hubcache-Admin", "1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			l.purged.Add(1)
		}
		time.Sleep(20 * time.Millisecond)
		return nil
	})
	clients.Wait()
}

// TestKillLosesNothingCommitted kills the server at random moments under load, and damages the
// index every other time. After the next start, what was committed must be served while the Hub
// is down, and so must a pinned image.
func TestKillLosesNothingCommitted(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, TotalBandwidth: 15 << 20})
	l := &killLoad{t: t, hub: hub, steady: hub.AddImage("library/steady", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 1<<20), Index: true})}
	for i := range 40 { // so small that all downloads at one time leave room for the steady image
		l.images = append(l.images, hub.AddImage("library/app", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(2, int64(200<<10)<<(i%4))}))
	}
	s := startServer(t, serverOptions{Hub: hub, Args: []string{"--budget", "40MiB", "--min-free", "1MiB"}})
	if err := pullImage(t.Context(), s.URL, l.steady, ""); err != nil {
		t.Fatal(err)
	}
	pinned := hub.AddImage("library/pinned", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10), Index: true}) // and never used
	if err := pullImage(t.Context(), s.URL, pinned, ""); err != nil {
		t.Fatal(err)
	}
	s.Command("pin", "pinned:1")
	l.admin = s.Admin
	time.Sleep(1500 * time.Millisecond) // until its tag is written to repos/
	slowest := time.Duration(0)
	for round := range killRounds() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.run(ctx, s.URL); close(done) }()
		time.Sleep(time.Duration(100+rand.IntN(700)) * time.Millisecond)
		s.Kill()
		cancel()
		<-done
		checkBlobsIntact(t, s.Data)
		damage := indexDamages[round%len(indexDamages)]
		index := filepath.Join(s.Data, "index.db")
		if fi, err := os.Stat(index); err != nil {
			t.Fatal(err)
		} else if err := damage.damage(index, fi.Size()); err != nil {
			t.Fatal(err)
		}
		rule := hub.Inject(hubtest.Match{}, hubtest.Reset()) // the Hub is down
		start := time.Now()
		s.Start()
		slowest = max(slowest, time.Since(start))
		if err := pullImage(t.Context(), s.URL, l.steady, ""); err != nil {
			t.Errorf("round %d, index %s: a cached pull: %v", round, damage.name, err)
		}
		if err := pullImage(t.Context(), s.URL, pinned, ""); err != nil {
			t.Errorf("round %d, index %s: a pinned pull: %v", round, damage.name, err)
		}
		checkAccountedWithPartials(t, s)
		rule.Remove()
		if t.Failed() {
			t.Fatalf("round %d, index %s", round, damage.name)
		}
	}
	l.wrong.Range(func(err, _ any) bool { t.Error(err); return true })
	t.Logf("%d rounds, %d purges, slowest start %s", killRounds(), l.purged.Load(), slowest)
	if l.purged.Load() == 0 {
		t.Error("nothing was purged")
	}
	if slowest > time.Minute { // what is promised is 2 s, but machines are busy
		t.Errorf("a start took %s", slowest)
	}
	if err := pullImage(t.Context(), s.URL, l.images[5], ""); err != nil {
		t.Errorf("a pull after the last round: %v", err)
	}
}

// TestKillKeepsPartialDownload checks that a download that a kill has interrupted goes on where
// it was.
func TestKillKeepsPartialDownload(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 4 << 20})
	const size = 48 << 20
	img, layer := addLayerImage(hub, "large", size)
	s := startServer(t, serverOptions{Hub: hub})
	if _, err := request(t.Context(), "GET", s.URL+"/v2/"+img.Repository+"/manifests/"+img.Tag); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		readBlob(ctx, s, hub, img.Repository, layer.Digest, 0, nil)
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if in := s.Stats().Inflight; len(in) > 0 && in[0].Received > size/2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("half of the blob has not arrived within a minute: %+v", s.Stats().Inflight)
		}
	}
	s.Kill()
	cancel()
	<-done
	hub.ResetLedger()
	s.Start()
	checkAccountedWithPartials(t, s)
	if err := readBlob(t.Context(), s, hub, img.Repository, layer.Digest, 0, nil); err != nil {
		t.Fatal(err)
	}
	ledger := hub.Ledger()
	// The bytes of one second over six connections, or 16 MiB, may be fetched twice.
	if n := ledger.BlobBytes(); n > size/2+26<<20 || n == 0 {
		t.Errorf("%d of %d bytes were fetched after the crash:\n%s", n, size, ledger)
	}
	if n := ledger.Count(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN && e.Range == "" }); n > 0 {
		t.Errorf("%d requests without Range:\n%s", n, ledger)
	}
	waitIdle(t, s)
	checkBlobsIntact(t, s.Data)
	checkAccounted(t, s)
}

// TestKillLeavesNoFileThatOthersCanRead checks the modes of all files and folders that a killed
// server leaves.
func TestKillLeavesNoFileThatOthersCanRead(t *testing.T) {
	hub := startHub(t, hubtest.Options{Bandwidth: 4 << 20})
	img, layer := addLayerImage(hub, "app", 20<<20)
	s := startServer(t, serverOptions{Hub: hub})
	get(t, s.URL+"/v2/"+img.Repository+"/manifests/"+img.Tag)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	readBlob(ctx, s, hub, img.Repository, layer.Digest, 0, func(int64) {})
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
			want = 0o400 // verified, and about to be moved into blobs/
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
			t.Errorf("there is no %s", top)
		}
	}
}
