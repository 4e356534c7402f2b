package registry_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// A blob whose bytes are all here is whole for its client at once, whoever else has the
// lanes that it wanted more of.
func TestNobodyWaitsForLanesInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 20e6
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1 }})
		first, second := l.zeros("library/a", 48*mib), l.zeros("library/b", 400*mib)
		took := l.after("library/a", first, time.Second, "library/b", second)
		if ideal := time.Duration(48 * mib / rate * float64(time.Second)); took > ideal+2*time.Second {
			t.Errorf("%s for what takes %s", took, ideal)
		}
		l.quiet()
	})
}

// bodies lets f do what it wants with the bodies of one blob.
func (l *lab) bodies(d digest.Digest, f func(io.ReadCloser) io.ReadCloser) {
	l.through(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err == nil && resp.StatusCode/100 == 2 && strings.Contains(req.URL.Path, d.Encoded()) {
			resp.Body = f(resp.Body)
		}
		return resp, err
	})
}

// slowly lets n bytes pass every 100 ms.
type slowly struct {
	io.ReadCloser
	n int
}

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.ReadCloser.Read(p[:min(len(p), s.n)])
}

// A download that is the only one of its blob keeps its lane until another connection has one.
func TestOnlyConnectionKeepsItsLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1 }})
		second := l.zeros("library/b", 7*mib)
		l.bodies(second, func(b io.ReadCloser) io.ReadCloser { return slowly{b, 16 << 10} }) // 45 s
		first := l.zeros("library/a", size)
		l.get("/v2/library/b/manifests/1")
		took := l.after("library/a", first, 200*time.Millisecond, "library/b", second)
		if took > 5*time.Second {
			t.Errorf("%s for what takes %s", took, time.Duration(size/rate*float64(time.Second)))
		}
		l.quiet()
	})
}

// A flight that is cancelled because nobody reads it is no failure: who comes for it gets it.
func TestCancelledBetweenLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1; p.Limits.Orphans = 1 }})
		second := l.zeros("library/b", 7*mib)
		l.bodies(second, func(b io.ReadCloser) io.ReadCloser { return slowly{b, 128 << 10} }) // 6 s
		first := l.zeros("library/a", size)
		l.get("/v2/library/b/manifests/1")
		visit := func(repository string, d digest.Digest) func() {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				resp, err := l.ask(ctx, "GET", blobPath(repository, d))
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			return func() { cancel(); <-done; synctest.Wait() }
		}
		leaveA := visit("library/a", first)
		time.Sleep(200 * time.Millisecond)
		leaveB := visit("library/b", second)
		time.Sleep(2 * time.Second)
		leaveB()
		leaveA() // two without readers, and one may be: a's ends
		time.Sleep(8 * time.Second)
		if r := l.get(blobPath("library/a", first)); r.status != 200 || len(r.body) != size {
			t.Errorf("%d, %.200s\n%s", r.status, r.body, l.log)
		}
		l.quiet()
	})
}

// after pulls a blob, and another one that is asked for later. It returns how long the first took.
func (l *lab) after(repository string, d digest.Digest, later time.Duration, repository2 string, d2 digest.Digest) (took time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() { took = l.pullAll(repository, d)[0] })
	time.Sleep(later)
	wg.Go(func() { l.pullAll(repository2, d2) })
	wg.Wait()
	return took
}

// A client's own layers are served, however few the lanes and slow the CDN.
func TestReadAheadLeavesLanes(t *testing.T) {
	for _, lanes := range []int{2, 4} {
		t.Run(fmt.Sprint(lanes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 200e3, Latency: 30 * time.Millisecond},
					policy: func(p *registry.Policy) { p.ReadAhead = true; p.Limits.Transfers = lanes }})
				var layers []hubtest.Layer
				for range 9 {
					layers = append(layers, hubtest.Layers(1, 5*mib)...)
				}
				img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: layers})
				l.get(manifestPath(img))
				var wg sync.WaitGroup
				for _, d := range img.Manifests[0].Layers[:1] {
					wg.Go(func() {
						if r := l.get(blobPath("library/app", d.Digest)); r.status != 200 {
							t.Errorf("%d %.200s", r.status, r.body)
						}
					})
				}
				wg.Wait()
				l.quiet()
			})
		})
	}
}

// Nobody waits long for the end of what has come whole.
func TestManyBlobsEndWhenTheyHaveCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 5e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 8 }})
		var ds []digest.Digest
		for i := range 8 { // as many as there are lanes
			size := 64*mib + int64(i)
			if i == 0 {
				size = 16 * mib
			}
			ds = append(ds, l.zeros(fmt.Sprintf("library/app%d", i), size))
		}
		start := time.Now()
		took := make([]time.Duration, len(ds))
		var wg sync.WaitGroup
		for i, d := range ds {
			wg.Go(func() { took[i] = l.pullAll(fmt.Sprintf("library/app%d", i), d)[0] })
		}
		wg.Wait()
		l.quiet()
		worst := time.Duration(0)
		for i, d := range ds {
			last := time.Duration(0)
			for _, e := range l.spells(d) {
				last = max(last, e.Ended.Sub(start))
			}
			worst = max(worst, took[i]-last)
		}
		if worst > time.Second {
			t.Errorf("the last byte was held for %s after it had come", worst)
		}
	})
}

// A steady connection that is slower than we are: its reader sees what comes as it comes.
func TestSlowRecordsAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		d := l.zeros("library/a", 6*mib)
		l.bodies(d, func(b io.ReadCloser) io.ReadCloser { return slowly{b, 16 << 10} }) // as whole TLS records
		resp, err := l.ask(t.Context(), "GET", blobPath("library/a", d))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 64<<10)
		worst := time.Duration(0)
		for {
			start := time.Now()
			_, err := resp.Body.Read(buf)
			if worst = max(worst, time.Since(start)); err != nil {
				break
			}
		}
		if worst > 300*time.Millisecond {
			t.Errorf("%s without a byte, and 16 KiB come every 100 ms", worst)
		}
	})
}

// With one connection a blob, what is left of it is one request, or a few.
func TestResumeWithOneRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 256 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 50e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Ranges = 1 }})
		d := l.zeros("library/a", size)
		resp, err := l.ask(t.Context(), "GET", blobPath("library/a", d))
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, 32*mib)
		resp.Body.Close()
		l.stop()
		l.start()
		l.hub.ResetLedger()
		l.pullAll("library/a", d)
		l.quiet()
		if all := l.spells(d); len(all) > 10 {
			t.Errorf("%d requests", len(all))
		}
	})
}
