package registry_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// addressed is a connection of a client at an address.
type addressed struct {
	net.Conn
	client string
}

func (a addressed) RemoteAddr() net.Addr { return named(a.client) }

type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }

// at connects to the same server as tr, as the client at an address; "" is a client of this
// machine.
func at(tr *http.Transport, client string) *http.Transport {
	tr = tr.Clone()
	dial := tr.DialContext
	tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(context.WithValue(ctx, clientKey{}, client), network, address)
	}
	return tr
}

type clientKey struct{}

// waitForByte asks for a blob again and again until its first byte comes, and returns how long that
// took.
func waitForByte(t *testing.T, tr *http.Transport, path string) time.Duration {
	t.Helper()
	for began := time.Now(); ; time.Sleep(7300 * time.Millisecond) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://cache.test"+path, nil)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = resp.Body.Read(make([]byte, 1))
		if resp.StatusCode == 200 && err == nil {
			took := time.Since(began)
			go func() { io.Copy(io.Discard, resp.Body); resp.Body.Close() }()
			return took
		}
		resp.Body.Close()
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("no first byte in ten minutes: %d, %v", resp.StatusCode, err)
		}
	}
}

// TestSlowReadersDoNotHoldAllSlots: clients that read slowly what can't be kept, and come back
// whenever they are cut, don't keep another client from its first byte for longer than the two
// minutes in which they may still count as fast. After the first minute they keep nobody waiting.
func TestSlowReadersDoNotHoldAllSlots(t *testing.T) {
	t.Parallel()
	const bypasses = 4
	for name, c := range map[string]struct {
		size    int64
		slow    []string // addresses of the slow clients, in turns
		other   string
		speed   int
		later   time.Duration // how long the other client may wait later; 0: no longer than its first request does
		chunked bool          // nobody knows the size, so that the download is given up in its middle
	}{
		"one machine":             {size: 5 * mib, slow: []string{""}, speed: 4 << 10},
		"one client":              {size: 5 * mib, slow: []string{greedy}, other: modest, speed: 4 << 10},
		"behind the same address": {size: 5 * mib, slow: []string{greedy}, other: greedy, speed: 4 << 10},
		"many clients":            {size: 5 * mib, slow: []string{greedy, "192.0.2.3:1", "192.0.2.4:1", "192.0.2.5:1", "192.0.2.6:1"}, other: modest, speed: 1 << 10},
		"small blobs":             {size: mib, slow: []string{""}, speed: 7 << 10},
		"as fast as it gets":      {size: 5 * mib, slow: []string{""}, speed: 24 << 10, later: 2 * time.Minute},
		"the rest of a download":  {size: 5 * mib, slow: []string{""}, speed: 4 << 10, chunked: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true, budget: mib - 1, hub: hubtest.Options{AnonymousLimit: -1},
					policy: func(p *registry.Policy) { p.Limits.Bypass = bypasses }})
				slow := l.addImage("library/app", "1", c.size)[0]
				wanted := l.addImage("library/new", "1", 1, 2*mib)[1]
				for _, repository := range []string{"app", "new"} {
					l.get("/v2/library/" + repository + "/manifests/1")
				}
				if c.chunked {
					l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
				}
				tr := l.serve(t)
				ctx, cancel := context.WithCancel(t.Context())
				var clients sync.WaitGroup
				defer clients.Wait()
				defer cancel()
				for i := range bypasses + 3 {
					s := &slowClient{tr: at(tr, c.slow[i%len(c.slow)]), path: blobPath("library/app", slow), speed: c.speed}
					clients.Go(func() { s.resume(ctx, int(c.size)) })
				}
				time.Sleep(time.Second)
				other := at(tr, c.other)
				if took := waitForByte(t, other, blobPath("library/new", wanted)); took > 2*time.Minute {
					t.Errorf("the first byte came after %s", took)
				}
				for range 3 { // the slow ones hold slots as long as they may
					time.Sleep(70 * time.Second)
					if took := waitForByte(t, other, blobPath("library/new", wanted)); took > cmp.Or(c.later, 15*time.Second) {
						t.Errorf("later the first byte came after %s", took)
					}
				}
				if l.reg.Stats().SlowReaders == 0 {
					t.Error("no slow reader was counted")
				}
			})
		})
	}
}

// TestNoMoreSlowReadersAreCutThanSlotsAreWanted: as many slow clients are cut as others wait for slots,
// those first that have been slow for longest; and none while nobody waits. Who isn't slow goes on.
func TestNoMoreSlowReadersAreCutThanSlotsAreWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 5 * mib
		l := newLab(t, labOptions{anonymous: true, budget: mib, hub: hubtest.Options{AnonymousLimit: -1},
			policy: func(p *registry.Policy) { p.Limits.Bypass = 4 }})
		read := l.addImage("library/app", "1", size)[0]
		wanted := l.addImage("library/new", "1", 1, 2*mib)[1]
		for _, repository := range []string{"app", "new"} {
			l.get("/v2/library/" + repository + "/manifests/1")
		}
		tr := l.serve(t)
		var clients sync.WaitGroup
		var mu sync.Mutex
		cut := map[int]bool{}
		for i, speed := range []int{64 << 10, 12 << 10, 10 << 10, 8 << 10} { // they become slow in this order
			c := &slowClient{tr: tr, path: blobPath("library/app", read), speed: speed}
			if i == 0 {
				c.pause = 12 * time.Second
			}
			clients.Go(func() {
				got, err := c.read(t.Context(), 0)
				if err == nil && digest.FromBytes(got) != read {
					t.Errorf("client %d: %d wrong bytes", i, len(got))
				}
				mu.Lock()
				defer mu.Unlock()
				cut[i] = err != nil
			})
			time.Sleep(5 * time.Second)
		}
		time.Sleep(80 * time.Second)
		if n := l.reg.Stats().SlowReaders; n != 0 {
			t.Errorf("%d were cut while nobody waited", n)
		}
		if took := waitForByte(t, tr, blobPath("library/new", wanted)); took > time.Second {
			t.Errorf("the first byte came after %s", took)
		}
		if n := l.reg.Stats().SlowReaders; n != 1 {
			t.Errorf("%d were cut for one", n)
		}
		clients.Wait()
		if want := map[int]bool{0: false, 1: true, 2: false, 3: false}; fmt.Sprint(cut) != fmt.Sprint(want) {
			t.Errorf("cut: %v, not %v", cut, want)
		}
	})
}
