package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestHeadDownloadsNothing: a HEAD tells the size of a blob, whether a manifest has named
// it or not, and fetches no byte of it. Neither does a GET whose If-None-Match names the
// digest.
func TestHeadDownloadsNothing(t *testing.T) {
	t.Parallel()
	for _, headOK := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{hub: hubtest.Options{HeadBlobOK: headOK}})
			d := l.oneLayerImage(3 * mib)
			unnamed := l.hub.AddBlobAt("library/one", "", digest.FromBytes([]byte("blob")), bytes.NewReader([]byte("blob")), 4)
			for blob, size := range map[digest.Digest]string{d: fmt.Sprint(3 * mib), unnamed.Digest: "4"} {
				r := l.do("HEAD", blobPath("library/one", blob))
				if r.status != 200 || r.header.Get("Content-Length") != size || r.header.Get("Docker-Content-Digest") != string(blob) {
					t.Errorf("%d %v", r.status, r.header)
				}
			}
			if n := l.hub.Ledger().BlobBytes(); n != 0 {
				t.Errorf("a HEAD fetched %d bytes", n)
			}
			if r := l.do("HEAD", blobPath("library/one", digest.FromString("none"))); r.status != 404 {
				t.Errorf("HEAD of an unknown blob: %d", r.status)
			}
			l.blob("library/one", string(d))
			l.drain()
			l.hub.ResetLedger()
			r := l.do("HEAD", blobPath("library/one", d))
			if r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(3*mib) || r.header.Get("X-Hubcache") != "hit" {
				t.Errorf("HEAD of a cached blob: %d %v", r.status, r.header)
			}
			r = l.get(blobPath("library/one", d), "If-None-Match", `"`+string(d)+`"`)
			if r.status != 304 || len(r.body) != 0 {
				t.Errorf("If-None-Match: %d", r.status)
			}
			if r := l.get(blobPath("library/one", d), "If-None-Match", `"other"`); r.status != 200 {
				t.Errorf("If-None-Match with another ETag: %d", r.status)
			}
			if len(l.hub.Ledger()) > 0 {
				t.Errorf("upstream saw\n%s", l.hub.Ledger())
			}
		})
	}
}

// TestHeadersComeBeforeTheLastByte: the headers of a blob that takes a minute come within a
// second.
func TestHeadersComeBeforeTheLastByte(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 5 << 18 / 60}})
		d := l.addImage("library/app", "1", 5<<18)[0]
		l.get("/v2/library/app/manifests/1")
		start := time.Now()
		c := &client{name: "patient"}
		c.get(l, "library/app", d)
		c.check(t, l, d, whole)
		if c.took > time.Second {
			t.Errorf("headers after %s", c.took)
		}
		if total := time.Since(start); total < 50*time.Second {
			t.Errorf("the blob took %s: the test is too fast", total)
		}
	})
}

// TestStalledSmallBlobIsAnsweredInTime: a small blob whose body stalls upstream is answered
// within the 30 s that containerd waits for headers.
func TestStalledSmallBlobIsAnsweredInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("library/redis", "7")
		l.get(manifestPath(img))
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(100))
		defer l.hub.ClearFaults()
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		resp, err := l.ask(ctx, "GET", blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
		took := time.Since(start)
		if err == nil {
			resp.Body.Close()
		}
		if took > 30*time.Second {
			t.Errorf("no headers for %s: %v", took, err)
		}
	})
}

// TestColdBlobIsNeverAHit: a blob that this very request has fetched is a miss, also when it has
// come in before the request could read along.
func TestColdBlobIsNeverAHit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/cold", "1", hubtest.ImageSpec{Layers: hubtest.Layers(80, 128<<10)})
		for i, d := range img.Manifests[0].Layers {
			if got := l.blob("library/cold", string(d.Digest)).header.Get("X-Hubcache"); got != "miss" {
				t.Errorf("layer %d: %s", i, got)
			}
		}
		if st := l.reg.Stats(); st.Blob.Hit != 0 || st.Blob.Miss != 80 {
			t.Errorf("%d hits, %d misses", st.Blob.Hit, st.Blob.Miss)
		}
	})
}

// TestBudgetHoldsAndLeastRecentlyUsedIsEvicted: 16 clients together pull ten times the
// budget, and the store never exceeds it. What was used least recently is evicted first.
func TestBudgetHoldsAndLeastRecentlyUsedIsEvicted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const budget = 4 * mib
		l := newLab(t, labOptions{budget: budget})
		var blobs []digest.Digest
		for i := range 20 {
			img := l.hub.AddImage("library/many", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(4, mib/2)})
			for _, d := range img.Manifests[0].Layers {
				blobs = append(blobs, d.Digest)
			}
		}
		next := make(chan digest.Digest)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for d := range next {
					l.blob("library/many", string(d))
					if st := l.store.Stats(); st.Bytes+st.ReservedBytes > budget {
						t.Errorf("%d bytes stored and reserved", st.Bytes+st.ReservedBytes)
					}
				}
			})
		}
		for _, d := range blobs {
			next <- d
		}
		close(next)
		wg.Wait()
		l.drain()
		// One client alone, so that the order of use is known.
		for i := range 12 {
			time.Sleep(2 * time.Second)
			l.blob("library/many", string(blobs[i]))
		}
		l.drain()
		for i, cached := range map[int]bool{2: false, 3: false, 10: true, 11: true} {
			if _, ok := l.store.Has(blobs[i]); ok != cached {
				t.Errorf("blob %d: cached is %v", i, ok)
			}
		}
	})
}

// TestHeadOfATagKeepsItsLayersCached: a client that has the image asks only HEAD for its
// tag. That counts as a use of the layers, so they are not evicted.
func TestHeadOfATagKeepsItsLayersCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 2 * mib})
		base := l.hub.AddImage("library/base", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10), Index: true})
		l.pull(base)
		for i := range 30 {
			time.Sleep(10 * time.Minute)
			if r := l.do("HEAD", manifestPath(base)); r.status != 200 {
				t.Fatal(r.status)
			}
			other := l.hub.AddImage("library/other", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10)})
			l.pull(other)
		}
		l.drain()
		l.hub.ResetLedger()
		l.pullDigest(base)
		if n := l.hub.Ledger().BlobGETs(); n != 0 {
			t.Errorf("%d layers were evicted", n)
		}
	})
}

// TestSharedBaseLayerIsFetchedOnce: a layer that is cached for one public image is not
// requested for another.
func TestSharedBaseLayerIsFetchedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		base := hubtest.Layer{Size: 2 * mib, Seed: 7}
		a := l.hub.AddImage("library/a", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{base, {Size: 5000}}})
		b := l.hub.AddImage("library/b", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{base, {Size: 6000}}})
		l.pull(a)
		l.drain()
		l.hub.ResetLedger()
		l.pull(b)
		ledger := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Reference == string(a.Manifests[0].Layers[0].Digest) })
		if len(ledger) != 0 {
			t.Errorf("upstream saw\n%s", ledger)
		}
	})
}

// TestSharedLayerSurvivesEvictionOfOneImage: two images share a layer. One image is
// evicted, and the file of the shared layer is lost. The other image can still be pulled,
// and is cached afterwards.
func TestSharedLayerSurvivesEvictionOfOneImage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, budget: 10 << 20})
		a := l.addImage("library/a", "1", 5<<18, 3<<20)
		b := l.addImage("library/b", "1", 5<<18, 4<<20)
		if a[0] != b[0] {
			t.Fatal("the images share no layer")
		}
		pull := func(repository string) {
			l.get("/v2/" + repository + "/manifests/1")
			for _, c := range l.addImage(repository, "1", 5<<18, map[string]int64{"library/a": 3 << 20, "library/b": 4 << 20}[repository]) {
				l.fetch(repository, c)
			}
			l.waitIdle()
		}
		pull("library/a")
		time.Sleep(2 * time.Second)
		pull("library/b")
		filler := l.addImage("library/filler", "1", 1000, 5<<20)
		l.get("/v2/library/filler/manifests/1")
		l.fetch("library/filler", filler[1])
		l.waitIdle()
		if _, ok := l.store.Has(a[1]); ok {
			t.Error("a's own layer was not evicted")
		}
		if err := os.Remove(l.blobFile(b[0])); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		pull("library/b")
		l.hub.ResetLedger()
		pull("library/b")
		if g := l.hub.Ledger(); g.BlobGETs() > 0 {
			t.Errorf("pulled again:\n%s", g)
		}
		l.checkStore(append(a, b...)...)
	})
}
