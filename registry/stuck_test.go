package registry_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// largeManifest is an index of more than size bytes.
func largeManifest(size int, seed string) []byte {
	return []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"pad":"` + strings.Repeat(seed, size/len(seed)) + `"}}`)
}

// TestClientsThatDoNotReadAreCut: whatever a client asks for that isn't a blob, it is cut off
// when it doesn't read the answer, in time for a server that stops.
func TestClientsThatDoNotReadAreCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, request string }{
		{"ping", "GET /v2/"},
		{"an error", "GET /v2/library/app/manifests/none"},
		{"a bad path", "GET /x"},
		{"HEAD", "HEAD /v2/library/app/manifests/small"},
		{"a manifest in memory", "GET /v2/library/app/manifests/small"},
		{"a large manifest", "GET /v2/library/app/manifests/large"},
		{"a large manifest that isn't cached", "GET /v2/library/app/manifests/new"},
		{"a manifest that isn't kept", "GET /v2/library/app/manifests/huge"},
		{"tags", "GET /v2/library/app/tags/list"},
		{"referrers", "GET /v2/library/app/referrers/" + string(digest.FromString("x"))},
		{"the catalogue", "GET /v2/_catalog"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				budget := int64(64 * mib)
				if c.name == "a manifest that isn't kept" {
					budget = mib
				}
				l := newLab(t, labOptions{anonymous: true, budget: budget, hub: hubtest.Options{AnonymousLimit: -1}})
				for tag, size := range map[string]int{"small": 5000, "large": 3_900_000, "new": 3_800_000, "huge": 3_700_000} {
					if tag == "small" || strings.HasSuffix(c.request, "/"+tag) {
						l.hub.AddManifest("library/app", tag, "application/vnd.oci.image.index.v1+json", largeManifest(size, "0123456789"))
					}
				}
				cached := []string{"small"}
				if c.name == "a large manifest" {
					cached = append(cached, "large")
				}
				for _, tag := range cached {
					if r := l.get("/v2/library/app/manifests/" + tag); r.status != 200 {
						t.Fatalf("%s: %d %.200s", tag, r.status, r.body)
					}
				}
				near, far := hubtest.Pipe()
				defer near.Close()
				srv := &http.Server{Handler: l.reg, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
				ln := &oneConn{conn: far, done: make(chan struct{})}
				go srv.Serve(ln)
				if _, err := io.WriteString(near, c.request+" HTTP/1.1\r\nHost: cache.test\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second) // the answer is there, and nobody reads it
				ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
				defer cancel()
				if err := srv.Shutdown(ctx); err != nil {
					t.Errorf("the server can't stop: %v", err)
				}
				srv.Close()
			})
		})
	}
}

// TestSlowClientsGetTheWholeAnswer: a client that is slow, but reads, gets all of a manifest,
// and then the next one on the same connection, even after a pause.
func TestSlowClientsGetTheWholeAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{AnonymousLimit: -1}})
		near, far := hubtest.Pipe()
		defer near.Close()
		srv := &http.Server{Handler: l.reg, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		defer srv.Close()
		ln := &oneConn{conn: far, done: make(chan struct{})}
		defer ln.Close()
		go srv.Serve(ln)
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
		defer tr.CloseIdleConnections()
		for tag, size := range map[string]int{"small": 100_000, "large": 1_000_000} {
			body := largeManifest(size, "0123456789")
			l.hub.AddManifest("library/app", tag, "application/vnd.oci.image.index.v1+json", body)
			for _, path := range []string{"/v2/library/app/manifests/" + tag, "/v2/library/app/manifests/" + string(digest.FromBytes(body))} {
				for range 2 {
					req, _ := http.NewRequest("GET", "http://cache.test"+path, nil)
					resp, err := tr.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					got, err := readAll(slowReader{resp.Body}, -1)
					resp.Body.Close()
					if err != nil || !equal(got, body) {
						t.Fatalf("%s: %d of %d bytes, %v\n%s", path, len(got), len(body), err, l.log)
					}
					time.Sleep(90 * time.Second) // longer than any deadline, and the connection is used again
				}
			}
		}
	})
}

// slowReader reads 8 KiB a second.
type slowReader struct{ from io.Reader }

func (r slowReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p[:min(len(p), 4<<10)])
	time.Sleep(time.Duration(n) * time.Second / (8 << 10))
	return n, err
}

// stuckResponse is a response to a client that doesn't read.
type stuckResponse struct {
	header  http.Header
	arrived chan<- struct{}
	reads   <-chan struct{} // closed when the client reads
}

func (w *stuckResponse) Header() http.Header { return w.header }

func (w *stuckResponse) WriteHeader(int) {}

func (w *stuckResponse) Write(p []byte) (int, error) {
	select {
	case <-w.reads:
	default:
		w.arrived <- struct{}{}
		<-w.reads
	}
	return len(p), nil
}

// TestStuckClientsShareOneManifest: 200 clients that don't read a manifest of 3.9 MB take
// little more memory than one, whether they come at once or one after the other, and whether
// it is cached or not.
func TestStuckClientsShareOneManifest(t *testing.T) {
	const clients = 200
	ttl := time.Hour
	l := newLab(t, labOptions{
		hub: hubtest.Options{AnonymousLimit: -1}, anonymous: true, logger: slog.New(slog.DiscardHandler),
		policy: func(p *registry.Policy) { p.TagTTL = &ttl },
	})
	body := largeManifest(3_900_000, "0123456789")
	l.hub.AddManifest("library/app", "1", "application/vnd.oci.image.index.v1+json", body)
	paths := []string{"/v2/library/app/manifests/" + string(digest.FromBytes(body)), "/v2/library/app/manifests/1"}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, atOnce := range []bool{true, false} { // the first time it isn't cached
		before := heap()
		arrived, reads, done := make(chan struct{}), make(chan struct{}), make(chan struct{}, clients)
		for n := range clients {
			go func() {
				l.reg.ServeHTTP(&stuckResponse{http.Header{}, arrived, reads}, httptest.NewRequest("GET", paths[n%2], nil))
				done <- struct{}{}
			}()
			if !atOnce {
				<-arrived
			}
		}
		for range clients {
			if atOnce {
				<-arrived
			}
		}
		// 128 KiB for the buffer of each, where sendfile can't be used.
		if grew := heap() - before; grew > clients*(128<<10)+32*mib {
			t.Errorf("at once: %v: %d clients take %d MiB", atOnce, clients, grew/mib)
		}
		close(reads)
		for range clients {
			<-done
		}
	}
}
