package registry_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// inventions are requests for n things that upstream hasn't got, of every kind that is asked
// for without a body.
func inventions(n int) (requests [][2]string) {
	for i := range n {
		d := digest.FromString(fmt.Sprint("invented ", i))
		requests = append(requests, [][2]string{
			{http.MethodGet, fmt.Sprintf("/v2/coop/app/manifests/invented-%d", i)},
			{http.MethodHead, fmt.Sprintf("/v2/coop/app/manifests/invented-head-%d", i)},
			{http.MethodGet, "/v2/coop/app/manifests/" + string(d)},
			{http.MethodHead, "/v2/coop/app/blobs/" + string(d)},
			{http.MethodGet, fmt.Sprintf("/v2/coop/app/tags/list?last=%d", i)},
			{http.MethodGet, "/v2/coop/app/referrers/" + string(d)},
			{http.MethodGet, fmt.Sprintf("/v2/coop/invented-%d/manifests/1", i)},
		}...)
	}
	return requests
}

// TestQuestionsAreLimited: however many questions clients have, upstream is asked 64 at a
// time. Who can't wait gets an answer, and never a 5xx; a cached tag is served.
func TestQuestionsAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.MaxStale = time.Hour }})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		l.hub.Set(func(o *hubtest.Options) { o.Latency = 400 * time.Millisecond })
		l.hub.ResetLedger()
		var mu sync.Mutex
		statuses := map[int]int{}
		var wg sync.WaitGroup
		for _, q := range inventions(250) {
			wg.Go(func() {
				start := time.Now()
				r := l.do(q[0], q[1])
				mu.Lock()
				defer mu.Unlock()
				statuses[r.status]++
				if r.status >= 500 || r.status == 429 && r.header.Get("Retry-After") == "" || time.Since(start) > 10*time.Second {
					t.Errorf("%s %s: %d after %s", q[0], q[1], r.status, time.Since(start))
				}
			})
		}
		time.Sleep(time.Second)
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Errorf("a cached tag meanwhile: %d %v", r.status, r.header)
		}
		wg.Wait()
		t.Log(statuses)
		if n := maxConcurrent(l.hub.Ledger()); n > 64 || n < 32 {
			t.Errorf("%d requests upstream at once", n)
		}
		time.Sleep(10 * time.Second)
		l.hub.Set(func(o *hubtest.Options) { o.Latency = 0 })
		if r := l.get(manifestPath(img)); r.header.Get("X-Hubcache") != "revalidated" {
			t.Errorf("afterwards: %d %v", r.status, r.header)
		}
	})
}

// TestNothingGoesOnForNobody: a question to upstream ends when those who asked have left, and
// one that waits for its turn is not asked any more.
func TestNothingGoesOnForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		l.hub.ResetLedger()
		for _, face := range []hubtest.Face{hubtest.Registry, hubtest.Token} {
			l.hub.Inject(hubtest.Match{Face: face}, hubtest.Delay(time.Hour))
		}
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, q := range append(inventions(100), [2]string{http.MethodGet, manifestPath(img)}) {
			wg.Go(func() {
				if resp, err := l.ask(ctx, q[0], q[1]); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
		time.Sleep(300 * time.Millisecond)
		leave()
		wg.Wait()
		time.Sleep(100 * time.Millisecond)
		if n := l.hub.Ledger().Count(func(e hubtest.Entry) bool { return e.Ended.IsZero() }); n > 0 {
			t.Errorf("%d requests of %d go on upstream though all clients have left", n, len(l.hub.Ledger()))
		}
		asked := len(l.hub.Ledger())
		if n := maxConcurrent(l.hub.Ledger()); n > 64 {
			t.Errorf("%d requests upstream at once", n)
		}
		l.hub.ClearFaults()
		time.Sleep(time.Minute)
		if n := len(l.hub.Ledger()); n > asked {
			t.Errorf("%d more requests for nobody", n-asked)
		}
	})
}
