package registry_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// Blobs that begin when all lanes are taken get more of them as soon as there are any: they
// used to stay with the one they had, to the end.
func TestFreedSlotsGoToRunningDownloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes, rate, size = 8, 20e6, 24 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = lanes }})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, size)})
		l.get(manifestPath(img))
		var ds []digest.Digest
		for _, layer := range img.Manifests[0].Layers {
			ds = append(ds, layer.Digest)
		}
		took := slices.Max(l.timeBlobs("library/app", ds...))
		// Each chunk, 4 MiB at least, costs a round trip; two at the beginning; and at the
		// end not all lanes have something to do.
		ideal := time.Duration(3 * size / float64(lanes*rate) * float64(time.Second))
		if limit := ideal*5/4 + 300*time.Millisecond; took > limit {
			t.Errorf("%s for what %d lanes bring in %s", took, lanes, ideal)
		}
		l.drain()
		for _, d := range ds {
			if got := bodyBytes(l.cdnRequests(d)); got != size {
				t.Errorf("%d bytes came of %d", got, size)
			}
		}
		if n := maxConcurrent(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN })); n > lanes {
			t.Errorf("%d connections at once", n)
		}
	})
}

// Where one connection brings all that the machine can take in, there is one, and the bytes
// come in order; no time passes between one chunk and the next.
func TestFastConnectionStaysTheOnlyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 256 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond}})
		d := l.zeroImage("library/app", size)
		took := l.timeBlobs("library/app", d)[0]
		// Two round trips before the first byte, and some time until the pace is known.
		if limit := time.Duration(size/rate*float64(time.Second)) + 80*time.Millisecond; took > limit {
			t.Errorf("it took %s, more than %s", took, limit)
		}
		l.drain()
		all := l.cdnRequests(d)
		if n := maxConcurrent(all); n > 2 { // one ends while the next begins
			t.Errorf("%d connections at once:\n%s", n, all)
		}
		if got := bodyBytes(all); got != size {
			t.Errorf("%d bytes came of %d:\n%s", got, size, all)
		}
	})
}

// A connection that was fast and is slow now is helped.
func TestConnectionThatSlowsDownGetsHelp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 800e6, Latency: 30 * time.Millisecond}})
		d := l.zeroImage("library/app", size)
		go func() {
			time.Sleep(150 * time.Millisecond)
			l.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 40e6 })
		}()
		took := l.timeBlobs("library/app", d)[0]
		l.drain()
		if n := maxConcurrent(l.cdnRequests(d)); n != 6 {
			t.Errorf("%d connections at once", n)
		}
		if limit := 4 * time.Second; took > limit { // it takes 13 s without help
			t.Errorf("it took %s", took)
		}
	})
}

// No round trip is spent on a scrap that a division left over.
func TestNoRangeRequestIsTiny(t *testing.T) {
	for _, size := range []int64{8 * mib, 8*mib + 1, 24*mib - 1, 24*mib + 5, 64 * mib, 64*mib + 4} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 20e6, Latency: 30 * time.Millisecond}})
				d := l.zeroImage("library/app", size)
				l.timeBlobs("library/app", d)
				l.drain()
				all := l.cdnRequests(d)
				for _, e := range all {
					if e.BodyBytes < 2*mib {
						t.Errorf("a request for %d bytes:\n%s", e.BodyBytes, all)
					}
				}
				if got := bodyBytes(all); got != size {
					t.Errorf("%d bytes came of %d", got, size)
				}
			})
		})
	}
}

// A blob whose bytes are all here is whole for its client at once, whoever else has the
// lanes that it wanted more of.
func TestCompleteBlobWaitsForNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 20e6
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1 }})
		first, second := l.zeroImage("library/a", 48*mib), l.zeroImage("library/b", 400*mib)
		took := l.timeWithLaterBlob("library/a", first, time.Second, "library/b", second)
		if ideal := time.Duration(48 * mib / rate * float64(time.Second)); took > ideal+2*time.Second {
			t.Errorf("%s for what takes %s", took, ideal)
		}
		l.drain()
	})
}

// A download that is the only one of its blob keeps its lane until another connection has one.
func TestOnlyConnectionOfABlobKeepsItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1 }})
		second := l.zeroImage("library/b", 7*mib)
		l.wrapBodies(second, func(b io.ReadCloser) io.ReadCloser { return throttledBody{b, 16 << 10} }) // 45 s
		first := l.zeroImage("library/a", size)
		l.get("/v2/library/b/manifests/1")
		took := l.timeWithLaterBlob("library/a", first, 200*time.Millisecond, "library/b", second)
		if took > 5*time.Second {
			t.Errorf("%s for what takes %s", took, time.Duration(size/rate*float64(time.Second)))
		}
		l.drain()
	})
}

// A flight that is cancelled because nobody reads it is no failure: who comes for it gets it.
func TestDownloadCancelledWithoutASlotStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1; p.Limits.Orphans = 1 }})
		second := l.zeroImage("library/b", 7*mib)
		l.wrapBodies(second, func(b io.ReadCloser) io.ReadCloser { return throttledBody{b, 128 << 10} }) // 6 s
		first := l.zeroImage("library/a", size)
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
		l.drain()
	})
}
