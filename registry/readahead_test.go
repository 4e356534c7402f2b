package registry_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestReadAheadFetchesTheLayersOfThePlatformInUse: manifests and a config cause no
// read-ahead. The first layer does: the other layers of the same platform are fetched, and
// no blob is fetched twice.
func TestReadAheadFetchesTheLayersOfThePlatformInUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.ReadAhead = true }})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(6, 2*mib), Platforms: []string{"linux/amd64", "linux/arm64"}})
		m := img.Manifests[0]
		l.get(manifestPath(img))
		for _, m := range img.Manifests {
			l.get("/v2/library/redis/manifests/" + string(m.Digest))
		}
		l.blob("library/redis", string(m.Config.Digest))
		l.drain()
		if n := l.hub.Ledger().BlobGETs(); n != 1 {
			t.Errorf("manifests and a config caused %d blob GETs", n)
		}
		l.blob("library/redis", string(m.Layers[0].Digest))
		for range 5 {
			time.Sleep(time.Second)
			l.drain()
		}
		for _, layer := range m.Layers {
			if _, ok := l.store.Has(layer.Digest); !ok {
				t.Error("a layer was not read ahead")
			}
		}
		for _, layer := range img.Manifests[1].Layers {
			if _, ok := l.store.Has(layer.Digest); ok {
				t.Error("a layer of another platform was read ahead")
			}
		}
		l.blob("library/redis", string(m.Layers[1].Digest))
		if n := l.hub.Ledger().BlobGETs(); n != 7 {
			t.Errorf("%d blob GETs for 7 blobs", n)
		}
		time.Sleep(11 * time.Minute)
		if n := l.reg.Stats().ReadAheadUnused; n != 4*2*mib {
			t.Errorf("%d bytes counted as read ahead and unused", n)
		}
	})
}

// TestReadAheadIsNoHitOfEarlierWork: the first pull of an image hits nothing, though read-ahead has
// most of its layers when the client asks for them: as a whole or in parts, after they have come
// or on their way. A second pull hits everything.
func TestReadAheadIsNoHitOfEarlierWork(t *testing.T) {
	t.Parallel()
	const layers, size = 6, 2 * mib
	for name, c := range map[string]struct {
		wait  time.Duration // between the first layer and the others
		parts int           // requests for each layer
		head  bool          // before each layer
	}{
		"there already": {wait: time.Minute, parts: 1},
		"on their way":  {wait: time.Second, parts: 1},
		"in parts":      {wait: time.Minute, parts: 4},
		"after a HEAD":  {wait: time.Minute, parts: 1, head: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.ReadAhead = true }, hub: hubtest.Options{Bandwidth: mib}})
				img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(layers, size)})
				pull := func(wait time.Duration) {
					l.get("/v2/library/redis/manifests/" + string(img.Digest))
					for i, layer := range img.Manifests[0].Layers {
						if c.head && i > 0 {
							l.do("HEAD", blobPath("library/redis", layer.Digest))
						}
						for part := range int64(c.parts) {
							from, to := part*size/int64(c.parts), (part+1)*size/int64(c.parts)-1
							if r := l.get(blobPath("library/redis", layer.Digest), "Range", fmt.Sprintf("bytes=%d-%d", from, to)); r.status != 206 {
								t.Fatal(r.status)
							}
						}
						if i == 0 {
							time.Sleep(wait)
						}
					}
				}
				pull(c.wait)
				synctest.Wait() // a request is counted when its client has all
				s := l.reg.Stats()
				if s.Blob.Hit+s.Blob.Shared == 0 || s.Blob.Miss == 0 {
					t.Fatalf("nothing was read ahead: %+v", s.Blob)
				}
				// The parts of the first layer but the first are hits of the first, or share its download.
				earlier := int64(c.parts) - s.Blob.Miss
				if got := s.Blob.Hit + s.Blob.Shared - s.Blob.ReadAhead; got != earlier {
					t.Errorf("%d requests are hits of earlier work, want %d: %+v", got, earlier, s.Blob)
				}
				if want := earlier * size / int64(c.parts); s.Hit != want {
					t.Errorf("%d of %d bytes are hits of earlier work, want %d", s.Hit, s.Served, want)
				}
				pull(0)
				synctest.Wait()
				again := l.reg.Stats()
				if again.Blob.ReadAhead != s.Blob.ReadAhead || again.Served-s.Served != again.Hit-s.Hit {
					t.Errorf("a second pull: %+v, %d of %d bytes were hits", again.Blob, again.Hit-s.Hit, again.Served-s.Served)
				}
				time.Sleep(time.Hour)
				if n := l.reg.Stats().ReadAheadUnused; n != img.Manifests[0].Config.Size { // for which nobody has asked
					t.Errorf("%d bytes were read ahead in vain", n)
				}
			})
		})
	}
}

// TestLayersReadAheadAfterARepositoryBecamePrivateArePrivate: read-ahead goes on after the
// request that began it. What it fetches after the repository was made private, and was named
// in upstream.private, isn't served to another repository whose manifest names it.
func TestLayersReadAheadAfterARepositoryBecamePrivateArePrivate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		readAhead := func(p *registry.Policy) { p.ReadAhead, p.Limits.Orphans = true, 1 }
		l := newLab(t, labOptions{policy: readAhead, hub: hubtest.Options{Bandwidth: mib}})
		img := l.hub.AddImage("corp/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(4, 2*mib)})
		layers := img.Manifests[0].Layers
		l.get(manifestPath(img))
		first := make(chan struct{})
		go func() { defer close(first); l.blob("corp/app", string(layers[0].Digest)) }()
		time.Sleep(time.Second) // the first layer and the second are on their way
		l.hub.SetPrivate("corp/app", true)
		l.setPolicy(func(p *registry.Policy) { readAhead(p); p.Private = []string{"corp/*"} })
		<-first
		l.drain()
		manifest := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":%d}]}`, layers[3].Digest, layers[3].Size)
		evil := l.hub.AddManifest("evil/public", "1", "application/vnd.oci.image.manifest.v1+json", manifest)
		l.get("/v2/evil/public/manifests/" + string(evil.Digest))
		if _, ok := l.store.Has(layers[3].Digest); !ok {
			t.Error("the last layer was not read ahead")
		}
		if r := l.get(blobPath("evil/public", layers[3].Digest)); r.status != 404 {
			t.Errorf("a private layer was served to another repository: %d, %d bytes", r.status, len(r.body))
		}
	})
}

// TestNothingIsReadAheadWhenItIsOff: a layer causes one download, its own.
func TestNothingIsReadAheadWhenItIsOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(6, 2*mib)})
		l.get(manifestPath(img))
		l.blob("library/redis", string(img.Manifests[0].Layers[0].Digest))
		l.drain()
		if n := l.hub.Ledger().BlobGETs(); n != 1 {
			t.Errorf("%d blob GETs", n)
		}
	})
}

// TestReadAheadStaysWithinLimits: read-ahead for several images at once runs no more
// downloads without a reader than limits.orphans, and the clients still get the layers they
// ask for.
func TestReadAheadStaysWithinLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) { p.ReadAhead = true }, hub: hubtest.Options{Bandwidth: 40_000}})
		var first []digest.Digest
		var names []string
		for n := range 5 {
			name := fmt.Sprintf("library/image%d", n)
			// Each image has layers of another size, so that they share none.
			layers := l.addImage(name, "1", slices.Repeat([]int64{5*mib/4 + int64(n)}, 9)...)
			if len(layers) != 9 {
				t.Fatal(len(layers))
			}
			l.get("/v2/" + name + "/manifests/1")
			first = append(first, layers[0])
			names = append(names, name)
		}
		status := make(chan string, 10)
		for n := range first {
			go func() {
				r, err := l.ask(context.Background(), "GET", blobPath(names[n], first[n]))
				if err != nil {
					status <- err.Error()
					return
				}
				io.Copy(io.Discard, r.Body)
				r.Body.Close()
				status <- fmt.Sprint(r.StatusCode)
			}()
			time.Sleep(time.Second)
		}
		idle := 0
		for _, i := range l.reg.Stats().Inflight {
			if i.Readers == 0 {
				idle++
			}
		}
		if idle > fetch.DefaultLimits().Orphans {
			t.Errorf("%d downloads without a reader, limits.orphans is %d", idle, fetch.DefaultLimits().Orphans)
		}
		for range first {
			if s := <-status; s != "200" {
				t.Errorf("the layer that a client asked for: %s", s)
			}
		}
		l.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 0 }) // for the rest, which nobody waits for
		l.drain()
	})
}

// TestReadAheadDoesNotEvictWhatItFetched: an image larger than the budget costs no more
// downloads with read-ahead than without.
func TestReadAheadDoesNotEvictWhatItFetched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, on := range []bool{false, true} {
			l := newLab(t, labOptions{anonymous: true, budget: 10 * mib, policy: func(p *registry.Policy) { p.ReadAhead = on }})
			img := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(8, 3*mib)})
			l.get(manifestPath(img))
			l.hub.ResetLedger()
			for _, layer := range img.Manifests[0].Layers {
				l.blob("library/big", string(layer.Digest))
				time.Sleep(time.Second)
			}
			l.drain()
			if n := l.hub.Ledger().BlobGETs(); n > 8 {
				t.Errorf("read-ahead %v: 8 layers cost %d downloads", on, n)
			}
		}
	})
}

// TestReadAheadAsksEachRepositoryForItsOwnLayers: two images have their first layer in
// common. The other layers of each are read ahead under its own repository, whichever
// manifest was served last.
func TestReadAheadAsksEachRepositoryForItsOwnLayers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Latency: 20 * time.Millisecond}, policy: func(p *registry.Policy) { p.ReadAhead = true }})
		one := l.addImage("library/one", "1", 1000, 5<<18)
		two := l.addImage("library/two", "1", 1000, 6<<18)
		l.get("/v2/library/one/manifests/1")
		l.get("/v2/library/two/manifests/1")
		l.fetch("library/one", one[0])
		synctest.Wait()
		for _, e := range l.hub.Ledger() {
			if e.Status == 404 {
				t.Errorf("requested under the wrong repository: %s", e)
			}
		}
		l.waitIdle()
		l.hub.ResetLedger()
		l.fetch("library/one", one[1])
		if g := l.hub.Ledger(); len(g) > 0 {
			t.Errorf("not read ahead:\n%s", g)
		}
		l.checkStore(append(one, two...)...)
	})
}

// TestReadAheadLeavesSlotsForClients: a layer that a client asks for is served, however few
// the slots are and however slow the CDN is.
func TestReadAheadLeavesSlotsForClients(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 200e3, Latency: 30 * time.Millisecond},
					policy: func(p *registry.Policy) { p.ReadAhead = true; p.Limits.Transfers = slots }})
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
				l.drain()
			})
		})
	}
}

// TestOnlySlotIsUsedForReadAheadWhileNoClientNeedsIt: with limits.transfers 1, the other layers of
// an image are fetched when the first one is here. A client that asks for another blob meanwhile
// gets it at once, and what had been read ahead by then isn't fetched again.
func TestOnlySlotIsUsedForReadAheadWhileNoClientNeedsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 2e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.ReadAhead = true; p.Limits.Transfers = 1 }})
		layers := l.addImage("library/app", "1", 3*mib, 20*mib, 3*mib, 100, 3*mib+7)
		other := l.addImage("library/other", "1", 3*mib+1, 3*mib+2)
		l.get("/v2/library/app/manifests/1")
		l.get("/v2/library/other/manifests/1")
		l.hub.ResetLedger()
		l.fetch("library/app", layers[0])
		time.Sleep(5 * time.Second) // the large one is on its way
		if n := len(l.reg.Stats().Inflight); n != 1 {
			t.Errorf("%d downloads", n)
		}
		for _, d := range other[:1] {
			start := time.Now()
			l.fetch("library/other", d)
			if took := time.Since(start); took > 3*time.Second { // 1.6 s at this speed
				t.Errorf("another client's layer took %s", took)
			}
		}
		for range 60 {
			time.Sleep(time.Second)
		}
		l.waitIdle()
		total := int64(0)
		for _, d := range append(layers, other...) {
			size, ok := l.store.Has(d)
			if total += size; !ok {
				t.Error("a layer was not read ahead")
			}
		}
		if n := l.hub.Ledger().BlobBytes(); n > total+mib {
			t.Errorf("upstream sent %d bytes of %d\n%s", n, total, l.hub.Ledger())
		}
		if n := maxConcurrent(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN })); n > 1 {
			t.Errorf("%d connections at once", n)
		}
		l.checkStore(append(layers, other...)...)
	})
}
