package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// What is counted here is what performance is made of: allocations, requests, bytes. Times
// are the business of integration/bench.

// stand is a Registry before a Hub in memory, on the real clock.
type stand struct {
	hub *hubtest.Hub
	reg *registry.Registry
}

func newStand(tb testing.TB, log *slog.Logger) *stand {
	tb.Helper()
	s := &stand{hub: hubtest.New(hubtest.Options{AnonymousLimit: -1})}
	store, err := storage.Open(storage.Options{Dir: tb.TempDir(), Budget: 1 << 30, Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	up, _ := url.Parse(s.hub.RegistryURL())
	ttl := time.Hour
	s.reg, err = registry.New(registry.Options{
		Store: store, Log: log, Upstreams: []registry.Upstream{{Options: upstream.Options{URL: up, Transport: s.hub.Transport()}}},
		Policy: registry.Policy{TagTTL: &ttl, ReadAhead: true},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.reg.Close(ctx); err != nil {
			tb.Error(err)
		}
		if err := store.Close(); err != nil {
			tb.Error(err)
		}
		s.hub.Close()
	})
	return s
}

// get asks without a connection, and returns status and body.
func (s *stand) get(path string) (int, []byte) {
	w := httptest.NewRecorder()
	s.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.Bytes()
}

// pull asks for everything that an image is made of.
func (s *stand) pull(img *hubtest.Image) error {
	paths := []string{"manifests/" + img.Tag, "manifests/" + img.Digest.String()}
	for _, m := range img.Manifests {
		paths = append(paths, "manifests/"+m.Digest.String())
	}
	for _, b := range img.Blobs() {
		paths = append(paths, "blobs/"+b.Digest.String())
	}
	for _, p := range paths {
		status, body := s.get("/v2/" + img.Repository + "/" + p)
		if status != http.StatusOK {
			return fmt.Errorf("%s: %d %s", p, status, body)
		}
		if _, d, ok := strings.Cut(p, "/sha256:"); ok && !bytes.HasSuffix([]byte(img.Digest.Algorithm().FromBytes(body)), []byte(d)) {
			return fmt.Errorf("%s: other bytes", p)
		}
	}
	return nil
}

// discardWriter is a ResponseWriter that costs nothing.
type discardWriter struct{ header http.Header }

func (n *discardWriter) Header() http.Header { return n.header }

func (n *discardWriter) Write(p []byte) (int, error) { return len(p), nil }

func (n *discardWriter) WriteHeader(int) {}

// hotManifest returns a function that answers one request for a manifest in memory.
func hotManifest(tb testing.TB, byTag bool, log *slog.Logger) func() {
	s := newStand(tb, log)
	img := s.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(8, 4<<10)})
	if err := s.pull(img); err != nil {
		tb.Fatal(err)
	}
	path := "/v2/library/redis/manifests/" + img.Digest.String()
	if byTag {
		path = "/v2/library/redis/manifests/7"
	}
	req := httptest.NewRequest(http.MethodGet, path, nil)
	w := &discardWriter{http.Header{}}
	return func() {
		clear(w.header)
		s.reg.ServeHTTP(w, req)
	}
}

func accessLog() *slog.Logger { return slog.New(slog.NewJSONHandler(io.Discard, nil)) }

func BenchmarkHotManifest(b *testing.B) {
	for _, log := range []struct {
		name string
		to   *slog.Logger
	}{{"logged", accessLog()}, {"silent", slog.New(slog.DiscardHandler)}} {
		for _, byTag := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/tag=%t", log.name, byTag), func(b *testing.B) {
				serve := hotManifest(b, byTag, log.to)
				b.ReportAllocs()
				for b.Loop() {
					serve()
				}
			})
		}
	}
}

// BenchmarkClients is 200 clients at once, each with a connection of its own: a manifest by
// tag, and a blob. Run with -mutexprofile it shows which locks they meet at.
func BenchmarkClients(b *testing.B) {
	s := newStand(b, accessLog())
	img := s.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(8, 64<<10)})
	if err := s.pull(img); err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(s.reg)
	defer server.Close()
	var paths []string
	for _, l := range img.Manifests[0].Layers {
		paths = append(paths, "/v2/library/redis/manifests/7", "/v2/library/redis/blobs/"+l.Digest.String())
	}
	b.SetParallelism(200 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		for n := 0; pb.Next(); n++ {
			resp, err := client.Get(server.URL + paths[n%len(paths)])
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

// TestHotManifestHitAllocatesNothing: a hot hit allocates nothing but for its line in the log.
func TestHotManifestHitAllocatesNothing(t *testing.T) {
	for _, byTag := range []bool{false, true} {
		serve := hotManifest(t, byTag, slog.New(slog.DiscardHandler))
		if n := testing.AllocsPerRun(1000, serve); n > 0 {
			t.Errorf("by tag %t: %v allocations for a hot hit", byTag, n)
		}
		serve = hotManifest(t, byTag, accessLog())
		// slog's own four; under the race detector its sync.Pools forget on purpose.
		if n := testing.AllocsPerRun(1000, serve); n > 8 {
			t.Errorf("by tag %t: %v allocations for a hot hit that is logged", byTag, n)
		}
	}
}
