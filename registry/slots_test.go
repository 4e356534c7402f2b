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

// TestFreedSlotsGoToRunningDownloads: downloads that begin when all slots are taken get
// more of them as soon as slots become free, and use what the slots can bring.
func TestFreedSlotsGoToRunningDownloads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const slots, rate, size = 8, 20e6, 24 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = slots }})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, size)})
		l.get(manifestPath(img))
		var ds []digest.Digest
		for _, layer := range img.Manifests[0].Layers {
			ds = append(ds, layer.Digest)
		}
		took := slices.Max(l.timeBlobs("library/app", ds...))
		// Each range, 4 MiB at least, costs a round trip, the first one two; and at the end
		// not all slots are busy.
		ideal := time.Duration(3 * size / float64(slots*rate) * float64(time.Second))
		if limit := ideal*5/4 + 300*time.Millisecond; took > limit {
			t.Errorf("%s for what %d slots bring in %s", took, slots, ideal)
		}
		l.drain()
		for _, d := range ds {
			if got := bodyBytes(l.cdnRequests(d)); got != size {
				t.Errorf("upstream sent %d bytes of %d", got, size)
			}
		}
		if n := maxConcurrent(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN })); n > slots {
			t.Errorf("%d connections at once", n)
		}
	})
}

// TestFastConnectionStaysTheOnlyOne: if one connection is as fast as the machine can take,
// no second one is opened: the bytes come in order, and no time passes between two ranges.
func TestFastConnectionStaysTheOnlyOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 256 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond}})
		d := l.zeroImage("library/app", size)
		took := l.timeBlobs("library/app", d)[0]
		// Two round trips before the first byte, and some time to measure the speed.
		if limit := time.Duration(size/rate*float64(time.Second)) + 80*time.Millisecond; took > limit {
			t.Errorf("it took %s, more than %s", took, limit)
		}
		l.drain()
		all := l.cdnRequests(d)
		if n := maxConcurrent(all); n > 2 { // one ends while the next begins
			t.Errorf("%d connections at once:\n%s", n, all)
		}
		if got := bodyBytes(all); got != size {
			t.Errorf("upstream sent %d bytes of %d:\n%s", got, size, all)
		}
	})
}

// TestConnectionThatSlowsDownGetsHelp: other connections are opened when the only one, fast
// at first, slows down.
func TestConnectionThatSlowsDownGetsHelp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 320 * mib
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
		if limit := 4 * time.Second; took > limit { // it takes 6 s without help
			t.Errorf("it took %s", took)
		}
	})
}

// TestNoRangeRequestIsTiny: no request fetches only the small rest of a division.
func TestNoRangeRequestIsTiny(t *testing.T) {
	t.Parallel()
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
					t.Errorf("upstream sent %d bytes of %d", got, size)
				}
			})
		})
	}
}

// TestCompleteBlobWaitsForNoSlot: a blob whose bytes have all come is complete for its
// client at once, whatever other download holds the slots that it was waiting for.
func TestCompleteBlobWaitsForNoSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate = 20e6
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1 }})
		first, second := l.zeroImage("library/a", 48*mib), l.zeroImage("library/b", 160*mib)
		took := l.timeWithLaterBlob("library/a", first, time.Second, "library/b", second)
		if ideal := time.Duration(48 * mib / rate * float64(time.Second)); took > ideal+2*time.Second {
			t.Errorf("%s for what takes %s", took, ideal)
		}
		l.drain()
	})
}

// TestOnlyConnectionOfABlobKeepsItsSlot: the only connection of a download keeps its slot
// until another connection of the same download has one, so a slow download cannot stop a
// fast one.
func TestOnlyConnectionOfABlobKeepsItsSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 256 * mib
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

// TestDownloadCancelledWithoutASlotStartsAgain: a download that is cancelled while it waits
// for a slot, because it has no reader, does not count as failed: a client that comes later
// gets the blob.
func TestDownloadCancelledWithoutASlotStartsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: mib, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 1; p.Limits.Orphans = 1 }})
		const size = 4 * mib // 4 s
		first, second := l.zeroImage("library/a", size), l.zeroImage("library/b", size+1)
		l.get("/v2/library/b/manifests/1")
		read := func(repository string, d digest.Digest) (leave func()) {
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
			time.Sleep(200 * time.Millisecond)
			return func() { cancel(); <-done; synctest.Wait() }
		}
		leaveA := read("library/a", first)
		leaveB := read("library/b", second) // waits for the slot
		leaveA()
		leaveB() // two downloads without readers where one may be: that of b is cancelled
		if n := len(l.reg.Stats().Inflight); n != 1 {
			t.Errorf("%d downloads go on", n)
		}
		resp, err := l.ask(t.Context(), "GET", blobPath("library/b", second))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); resp.StatusCode != 200 || n != size+1 {
			t.Errorf("%s, %d bytes, %v\n%s", resp.Status, n, err, l.log)
		}
		l.drain()
	})
}
