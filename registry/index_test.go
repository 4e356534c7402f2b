package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/storage"
)

// TestPullsGoOnWhileTheIndexIsRemapped: bbolt maps a file that has grown anew. While that
// waits for a long read, no other read of the index begins, for as long as it takes. Requests
// that need nothing of the index go on: reading a download, joining one, a manifest in memory,
// the stats.
func TestPullsGoOnWhileTheIndexIsRemapped(t *testing.T) {
	t.Parallel()
	var db *bbolt.DB
	l := newLab(t, labOptions{anonymous: true, index: func(opened *bbolt.DB) { db = opened }})
	img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 3*mib)})
	layer := img.Manifests[0].Layers[0].Digest
	l.get(manifestPath(img))
	rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(2*mib))
	first := l.start1MiB(t, layer)

	long, err := db.Begin(false)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Rollback()
	// A change that makes the file grow, and is written at once.
	go l.store.SetTag("docker.io/x/y", "large", storage.Tag{Digest: img.Digest, MediaType: strings.Repeat("x", 8<<20)})
	for blocked := false; !blocked; {
		read := make(chan error, 1)
		go func() { read <- db.View(func(*bbolt.Tx) error { return nil }) }()
		select {
		case <-read:
		case <-time.After(200 * time.Millisecond):
			blocked = true
		}
	}
	uncached := l.hub.AddImage("library/other", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1000)})
	waiting := make(chan int, 1)
	go func() { waiting <- l.get(blobPath("library/other", uncached.Manifests[0].Layers[0].Digest)).status }()

	done := make(chan func() error)
	go func() {
		defer close(done)
		second := l.start1MiB(t, layer)
		if r := l.get(manifestPath(img)); r.status != http.StatusOK {
			t.Errorf("a manifest in memory: %d", r.status)
		}
		if s := l.reg.Stats(); len(s.Inflight) == 0 || s.Inflight[0].Readers == 0 {
			t.Errorf("in flight: %+v", s.Inflight)
		}
		done <- second
	}()
	second := func() error { return nil }
	select {
	case second = <-done:
	case <-time.After(time.Minute):
		t.Error("a request that needs nothing of the index waits for it")
	}
	select {
	case status := <-waiting:
		t.Errorf("the index was not held: a request that needs it got %d", status)
	default:
	}
	long.Rollback()
	rule.Release()
	rule.Remove()
	for _, rest := range []func() error{first, second} {
		if err := rest(); err != nil {
			t.Error(err)
		}
	}
	if status := <-waiting; status != http.StatusOK {
		t.Errorf("the request that waited got %d", status)
	}
}

// start1MiB asks for a layer of library/app, reads its first MiB, and returns what reads the
// rest and compares the digest.
func (l *lab) start1MiB(t *testing.T, d digest.Digest) (rest func() error) {
	resp, err := l.ask(t.Context(), http.MethodGet, blobPath("library/app", d))
	if err != nil {
		t.Error(err)
		return func() error { return nil }
	}
	v := d.Verifier()
	if _, err := io.CopyN(v, resp.Body, mib); err != nil {
		t.Errorf("the first MiB: %v", err)
	}
	return func() error {
		defer resp.Body.Close()
		if _, err := io.Copy(v, resp.Body); err != nil {
			return err
		}
		if !v.Verified() {
			return fmt.Errorf("the bytes are not those of %s", d)
		}
		return nil
	}
}
