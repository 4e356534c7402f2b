package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// pipes is a listener whose connections are pipes in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.done); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// serve starts a server of the lab's registry, and returns what connects to it.
func (l *lab) serve(t *testing.T) *http.Transport {
	ln := &pipes{make(chan net.Conn), make(chan struct{})}
	srv := &http.Server{Handler: l.reg, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.Serve(ln)
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		near, far := hubtest.Pipe()
		if client, _ := ctx.Value(clientKey{}).(string); client != "" {
			far = addressed{far, client}
		}
		select {
		case ln.conns <- far:
			return near, nil
		case <-ln.done:
			return nil, net.ErrClosed
		}
	}}
	t.Cleanup(func() { tr.CloseIdleConnections(); srv.Close() })
	return tr
}

// slowClient reads a path at a speed.
type slowClient struct {
	tr    *http.Transport
	path  string
	speed int           // bytes a second
	pause time.Duration // after each MiB
}

// read reads from byte off on, until ctx is done or all is there.
func (c *slowClient) read(ctx context.Context, off int) ([]byte, error) {
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://cache.test"+c.path, nil)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	resp, err := c.tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return nil, errors.New(resp.Status)
	}
	var got bytes.Buffer
	for p := make([]byte, 16<<10); ; {
		n, err := io.ReadFull(resp.Body, p)
		got.Write(p[:n])
		if err == io.EOF || err == io.ErrUnexpectedEOF && int64(got.Len()) == resp.ContentLength {
			return got.Bytes(), nil
		}
		if err != nil {
			return got.Bytes(), err
		}
		time.Sleep(time.Duration(n) * time.Second / time.Duration(c.speed))
		if got.Len()%mib == 0 {
			time.Sleep(c.pause)
		}
	}
}

// resume reads on whenever it is cut, until ctx is done.
func (c *slowClient) resume(ctx context.Context, size int) {
	for off := 0; ctx.Err() == nil && off < size; {
		got, err := c.read(ctx, off)
		off += len(got)
		if err != nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestSlowReadersDoNotFreezeTheCache: whoever reads all that is cached, however slowly, and however
// often they come back, there is room for a new blob within two minutes. A client that takes 64
// KiB/s gets all of its blob, even with pauses. The budget holds.
func TestSlowReadersDoNotFreezeTheCache(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 6 * mib
				rnd := rand.New(rand.NewPCG(seed, 1))
				l := newLab(t, labOptions{anonymous: true, budget: 4*size + mib, hub: hubtest.Options{AnonymousLimit: -1}})
				layers := l.addImage("library/app", "1", size, size, size, size)
				wanted := l.addImage("library/new", "1", 3*mib)[0]
				tr := l.serve(t)
				ctx, cancel := context.WithCancel(t.Context())
				var clients sync.WaitGroup
				defer clients.Wait()
				defer cancel()
				for i, d := range layers {
					path := "/v2/library/app/blobs/" + string(d)
					if cached := rnd.IntN(3) > 0 || i == 3; cached { // otherwise they read the download
						if r := l.get(path); r.status != 200 {
							t.Fatal(r.status)
						}
						l.waitIdle()
					}
					if i == 3 {
						continue
					}
					for range 1 + rnd.IntN(4) {
						c := &slowClient{tr: tr, path: path, speed: []int{256, 1 << 10, 4 << 10, 24 << 10}[rnd.IntN(4)]}
						clients.Go(func() { c.resume(ctx, size) })
					}
				}
				clients.Go(func() {
					c := &slowClient{tr: tr, path: "/v2/library/app/blobs/" + string(layers[3]), speed: 64 << 10, pause: 12 * time.Second}
					if got, err := c.read(ctx, 0); err != nil || digest.FromBytes(got) != layers[3] {
						t.Errorf("a client that reads well got %d bytes, %v", len(got), err)
					}
				})
				time.Sleep(time.Duration(rnd.IntN(40)) * time.Second)
				for began := time.Now(); ; time.Sleep(7300 * time.Millisecond) {
					r := l.get("/v2/library/new/blobs/" + string(wanted))
					if st := l.store.Stats(); st.Bytes+st.ReservedBytes > st.BudgetBytes {
						t.Fatalf("%d bytes, and %d reserved, of %d", st.Bytes, st.ReservedBytes, st.BudgetBytes)
					}
					if r.status != 200 || digest.FromBytes(r.body) != wanted {
						t.Fatalf("%d, %d bytes", r.status, len(r.body))
					}
					if r.header.Get("X-Hubcache") != "bypass" {
						break
					}
					if time.Since(began) > 2*time.Minute {
						t.Fatal("after two minutes there is no room for a new blob")
					}
				}
				if l.store.Stats().SlowReaders == 0 {
					t.Error("no slow reader was counted")
				}
				time.Sleep(4 * time.Minute) // the good client gets its end
			})
		})
	}
}

// TestSlowReadersGoOnWhileThereIsRoom: nobody is cut for the room when all that comes in finds
// some.
func TestSlowReadersGoOnWhileThereIsRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 3 * mib
		l := newLab(t, labOptions{anonymous: true, budget: 12 * mib, hub: hubtest.Options{AnonymousLimit: -1}})
		held := l.addImage("library/app", "1", size)[0]
		others := l.addImage("library/new", "1", 4*mib, 4*mib, 4*mib, 4*mib, 4*mib)
		tr := l.serve(t)
		path := "/v2/library/app/blobs/" + string(held)
		l.get(path)
		c := &slowClient{tr: tr, path: path, speed: 8 << 10}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if got, err := c.read(t.Context(), 0); err != nil || digest.FromBytes(got) != held {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		}()
		for _, d := range others { // each evicts the one before
			time.Sleep(time.Minute)
			if r := l.get("/v2/library/new/blobs/" + string(d)); r.header.Get("X-Hubcache") != "miss" {
				t.Errorf("%d %v", r.status, r.header)
			}
			l.waitIdle()
		}
		<-done
		if n := l.store.Stats().SlowReaders; n > 0 {
			t.Errorf("%d readers were cut", n)
		}
	})
}

// TestSlowReaderOfALongListIsCut: a list that is streamed has the deadline of other answers, not
// that of blobs.
func TestSlowReaderOfALongListIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, intercept: func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.StatusCode == 200 && bytes.HasSuffix([]byte(req.URL.Path), []byte("/tags/list")) {
				resp.Body.Close()
				resp.ContentLength = -1
				resp.Header.Del("Content-Length")
				resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader([]byte(`{"name":"library/app","tags":["`)), io.LimitReader(letters{}, 6*mib), bytes.NewReader([]byte(`"]}`))))
			}
			return resp, err
		}})
		l.addImage("library/app", "1", 1000)
		tr := l.serve(t)
		req, _ := http.NewRequest("GET", "http://cache.test/v2/library/app/tags/list", nil)
		resp, err := tr.RoundTrip(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		defer resp.Body.Close()
		time.Sleep(time.Minute)
		if n, err := io.Copy(io.Discard, resp.Body); err == nil || n > mib {
			t.Errorf("after a minute without reading: %d bytes, %v", n, err)
		}
	})
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}
