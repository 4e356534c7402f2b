package registry_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// from answers a request of the client at an address.
func (l *lab) from(ctx context.Context, client, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	req := httptest.NewRequestWithContext(ctx, method, path, nil)
	req.RemoteAddr = client
	func() {
		defer func() { recover() }() // http.ErrAbortHandler
		l.reg.ServeHTTP(w, req)
	}()
	return w
}

// The clients of these tests: two hosts, and two addresses in the network of a third.
const (
	greedy   = "192.0.2.1:999"
	modest   = "192.0.2.2:999"
	greedyV6 = "[2001:db8::%x]:999"
)

// TestOneClientDelaysNoOther: while one client wants thousands of things, another one pulls an
// image, and waits for no answer as long as a second.
func TestOneClientDelaysNoOther(t *testing.T) {
	t.Parallel()
	blobs := func(n int) (requests [][2]string) {
		for i := range n {
			requests = append(requests, [2]string{http.MethodGet, "/v2/coop/app/blobs/" + string(digest.FromString(fmt.Sprint(i)))})
		}
		return requests
	}
	for name, c := range map[string]struct {
		requests func(l *lab) [][2]string
		network  bool // the greedy client uses many addresses of its IPv6 network
	}{
		"blobs that are nowhere": {requests: func(*lab) [][2]string { return blobs(2000) }},
		"from many addresses":    {requests: func(*lab) [][2]string { return blobs(2000) }, network: true},
		"questions":              {requests: func(*lab) [][2]string { return inventions(300) }},
		"slow downloads": {requests: func(l *lab) (requests [][2]string) {
			for i := range int64(50) { // each takes a minute
				d := l.zeroImage(fmt.Sprint("coop/large-", i), 4*mib+i)
				requests = append(requests, [2]string{http.MethodGet, fmt.Sprintf("/v2/coop/large-%d/blobs/%s", i, d)})
			}
			return requests
		}},
		"what can't be kept": {requests: func(l *lab) (requests [][2]string) {
			d := l.zeroImage("coop/huge", 320*mib)
			for range 60 {
				requests = append(requests, [2]string{http.MethodGet, "/v2/coop/huge/blobs/" + string(d)})
			}
			return requests
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{budget: 300 * mib, policy: func(p *registry.Policy) { p.Limits.Orphans = 1 }})
				l.pull(l.smallImage("coop/app", "1"))
				requests := c.requests(l)
				img := l.hub.AddImage("coop/other", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 8<<10)})
				huge := l.zeroImage("coop/too-large", 310*mib)
				l.hub.Set(func(o *hubtest.Options) { o.Latency, o.Bandwidth = 50*time.Millisecond, 64<<10 })
				ctx, stop := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for i, q := range requests {
					client := greedy
					if c.network {
						client = fmt.Sprintf(greedyV6, i)
					}
					wg.Go(func() { l.from(ctx, client, q[0], q[1]) })
				}
				time.Sleep(200 * time.Millisecond)
				paths := []string{manifestPath(img), "/v2/coop/other/tags/list"}
				for _, b := range img.Blobs() {
					paths = append(paths, blobPath("coop/other", b.Digest))
				}
				for _, path := range paths {
					start := time.Now()
					if w := l.from(ctx, modest, http.MethodGet, path); w.Code != 200 || time.Since(start) > time.Second {
						t.Errorf("%s: %d after %s", path, w.Code, time.Since(start))
					}
				}
				// And one that passes through, of which the first byte counts.
				first, cancel := context.WithCancel(ctx)
				start := time.Now()
				w := &firstByte{header: http.Header{}, then: func() {
					if took := time.Since(start); took > time.Second {
						t.Errorf("the first byte of a large blob came after %s", took)
					}
					cancel()
				}}
				req := httptest.NewRequestWithContext(first, http.MethodGet, blobPath("coop/too-large", huge), nil)
				req.RemoteAddr = modest
				func() {
					defer func() { recover() }()
					l.reg.ServeHTTP(w, req)
				}()
				if w.n == 0 {
					t.Errorf("no byte of a large blob: %d", w.status)
				}
				stop()
				wg.Wait()
			})
		})
	}
}

// firstByte is a response that calls then with its first byte and takes no more.
type firstByte struct {
	header http.Header
	status int
	n      int
	then   func()
}

func (w *firstByte) Header() http.Header              { return w.header }
func (w *firstByte) WriteHeader(status int)           { w.status = status }
func (w *firstByte) SetWriteDeadline(time.Time) error { return nil }

func (w *firstByte) Write(p []byte) (int, error) {
	if w.status < 400 && w.n == 0 && len(p) > 0 {
		w.n = len(p)
		w.then()
	}
	return 0, io.ErrClosedPipe
}

// TestClientLimit: with limits.client set, one client has only so many requests that want
// something from upstream. It gets what is cached all the same, other clients and those on this
// machine have no part in it, and the limit counts what goes on, not what has been.
func TestClientLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.ClientLimit = 5 }})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		l.hub.Set(func(o *hubtest.Options) { o.Latency = 400 * time.Millisecond })
		count := func(client string) map[int]int {
			var mu sync.Mutex
			statuses := map[int]int{}
			var wg sync.WaitGroup
			for i := range 30 {
				kind := []string{"manifests", "blobs"}[i%2]
				wg.Go(func() {
					w := l.from(t.Context(), client, http.MethodGet, fmt.Sprintf("/v2/coop/app/%s/%s", kind, digest.FromString(fmt.Sprint(client, time.Now(), i))))
					mu.Lock()
					defer mu.Unlock()
					statuses[w.Code]++
					if w.Code == 429 && w.Header().Get("Retry-After") == "" {
						t.Error("429 without Retry-After")
					}
				})
			}
			time.Sleep(time.Millisecond)
			layer := blobPath("coop/app", img.Manifests[0].Layers[0].Digest)
			for path, want := range map[string]string{manifestPath(img): "", layer: "hit"} {
				if w := l.from(t.Context(), client, http.MethodGet, path); w.Code != 200 || want != "" && w.Header().Get("X-Hubcache") != want {
					t.Errorf("%s: what is cached: %d %v", path, w.Code, w.Header())
				}
			}
			wg.Wait()
			return statuses
		}
		for client, want := range map[string]int{greedy: 5, modest: 5, "127.0.0.1:9": 30, "[::1]:9": 30, "@": 30} {
			for range 2 {
				if got := count(client); got[404] != want || got[429] != 30-want {
					t.Errorf("%s: %v, not %d served", client, got, want)
				}
			}
		}
	})
}
