package registry_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// These tests and benchmarks count allocations and show contention. What it all amounts to
// with real clients is measured in integration/bench.

// discardWriter is a ResponseWriter that allocates nothing.
type discardWriter struct{ header http.Header }

func (w *discardWriter) Header() http.Header { return w.header }

func (w *discardWriter) Write(p []byte) (int, error) { return len(p), nil }

func (w *discardWriter) WriteHeader(int) {}

// hotManifest returns a function that answers one request for a manifest in memory.
func hotManifest(tb testing.TB, byTag bool, log *slog.Logger) func() {
	l := newRealTimeLab(tb, log)
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(8, 4<<10)})
	if err := l.servePull(img); err != nil {
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
		l.reg.ServeHTTP(w, req)
	}
}

// accessLog is a log that is written as the server's is, and discarded.
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

// BenchmarkClients lets 200 clients ask at once, each on its own connection, for a manifest
// by tag and a blob in turn. With -mutexprofile it shows which locks they wait for.
func BenchmarkClients(b *testing.B) {
	l := newRealTimeLab(b, accessLog())
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(8, 64<<10)})
	if err := l.servePull(img); err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(l.reg)
	defer server.Close()
	var paths []string
	for _, layer := range img.Manifests[0].Layers {
		paths = append(paths, "/v2/library/redis/manifests/7", "/v2/library/redis/blobs/"+layer.Digest.String())
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

// TestHotManifestHitAllocatesNothing: a manifest that is in memory is answered without an
// allocation, except those of its line in the log.
func TestHotManifestHitAllocatesNothing(t *testing.T) {
	for _, byTag := range []bool{false, true} {
		serve := hotManifest(t, byTag, slog.New(slog.DiscardHandler))
		if n := testing.AllocsPerRun(1000, serve); n > 0 {
			t.Errorf("by tag %t: %v allocations for a hit in memory", byTag, n)
		}
		serve = hotManifest(t, byTag, accessLog())
		// slog makes four, and more under the race detector, where sync.Pool drops items
		// at random.
		if n := testing.AllocsPerRun(1000, serve); n > 8 {
			t.Errorf("by tag %t: %v allocations for a hit in memory that is logged", byTag, n)
		}
	}
}
