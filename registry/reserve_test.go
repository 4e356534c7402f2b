package registry_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestBelowTheReserveNothingCostsPulls: warm fetches no manifest, but layers, which don't count;
// a cached tag is asked for with a HEAD and answered with what is cached if it has changed; and what
// clients wait for is fetched. See docs/use/quota.md.
func TestBelowTheReserveNothingCostsPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{
			hub: hubtest.Options{Accounts: []hubtest.Account{{Username: username, PAT: pat, Limit: 100}}},
			policy: func(p *registry.Policy) {
				p.QuotaReserve = 0.1
				p.Tags = []registry.TagRule{{Match: "org/strict:*", MaxStale: new(time.Duration)}}
			},
		})
		old := map[string]*hubtest.Image{}
		for _, repository := range []string{"org/app", "org/strict", "org/half"} {
			old[repository] = l.hub.AddImage(repository, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
			if res := l.warm(registry.WarmOptions{}, repository+":1"); res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		l.store.Remove(old["org/half"].Manifests[0].Layers[0].Digest)
		fresh := l.hub.AddImage("org/new", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
		moved := l.hub.AddImage("org/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 2<<20)})
		movedStrict := l.hub.AddImage("org/strict", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 3<<20)})
		l.hub.SetUsed(username, 95)
		pulls := func() int { return l.hub.Used(username) - 95 }
		if res := l.warm(registry.WarmOptions{Refresh: true}, "org/half:1"); res.Err != nil || pulls() != 0 { // the HEAD tells what is left
			t.Errorf("a layer: %v, %d pulls", res.Err, pulls())
		}
		if res := l.warm(registry.WarmOptions{}, "org/new:1"); !errors.Is(res.Err, registry.ErrReserve) || pulls() != 0 {
			t.Errorf("a new image: %v, %d pulls", res.Err, pulls())
		}
		if res := l.warm(registry.WarmOptions{Refresh: true}, "org/app:1"); !errors.Is(res.Err, registry.ErrReserve) || pulls() != 0 {
			t.Errorf("a changed tag: %v, %d pulls", res.Err, pulls())
		}
		if res := l.warm(registry.WarmOptions{}, "org/app:1"); res.Err != nil || !res.Stale || res.Digest != old["org/app"].Digest {
			t.Errorf("a changed tag that may be stale: %+v", res)
		}
		for _, method := range []string{"HEAD", "GET"} {
			r := l.do(method, "/v2/org/app/manifests/1")
			if r.header.Get("X-Hubcache") != "stale" || r.header.Get("Docker-Content-Digest") != string(old["org/app"].Digest) || pulls() != 0 {
				t.Errorf("%s of a changed tag: %v, %d pulls", method, r.header, pulls())
			}
		}
		if r := l.get("/v2/org/strict/manifests/1"); r.header.Get("Docker-Content-Digest") != string(movedStrict.Digest) || pulls() != 1 {
			t.Errorf("a tag that must not be stale: %v, %d pulls", r.header, pulls())
		}
		l.pull(fresh)
		if pulls() != 2 {
			t.Errorf("%d pulls", pulls())
		}
		l.hub.SetUsed(username, 20)
		if r := l.get("/v2/org/app/manifests/1"); r.header.Get("Docker-Content-Digest") != string(moved.Digest) {
			t.Errorf("when there are pulls again: %v", r.header)
		}
	})
}

// TestTagIsRefreshedWhileItIsInUse: until a day after its last use, whether clients ask in time or
// not, and not below the quota reserve.
func TestTagIsRefreshedWhileItIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ttl := 10 * time.Minute
		l := newLab(t, labOptions{
			hub: hubtest.Options{Accounts: []hubtest.Account{{Username: username, PAT: pat, Limit: 100}}},
			policy: func(p *registry.Policy) {
				p.QuotaReserve = 0.1
				p.Tags = []registry.TagRule{{Match: "org/app:1", TTL: &ttl, Refresh: true}, {Match: "org/*:*", TTL: &ttl}}
			},
		})
		img := l.smallImage("org/app", "1")
		other := l.smallImage("org/app", "2")
		l.get(manifestPath(img))
		l.get(manifestPath(other))
		l.hub.ResetLedger()
		time.Sleep(3 * time.Hour) // no client asks
		heads := l.hub.Ledger().ManifestHEADs()
		if want := int(3 * time.Hour / (8 * time.Minute)); heads != want {
			t.Errorf("%d checks in three hours, want %d", heads, want)
		}
		moved := l.smallImage("org/app", "1")
		time.Sleep(9 * time.Minute)
		if r := l.get(manifestPath(img)); r.header.Get("X-Hubcache") != "hit" || r.header.Get("Docker-Content-Digest") != string(moved.Digest) {
			t.Errorf("%v", r.header)
		}
		l.hub.SetUsed(username, 95)
		l.smallImage("org/app", "1")
		time.Sleep(17 * time.Minute) // the HEAD says how much is left
		l.hub.ResetLedger()
		time.Sleep(time.Hour)
		if n := len(l.hub.Ledger()); n != 0 {
			t.Errorf("%d requests below the reserve", n)
		}
		l.hub.SetUsed(username, 0)
		time.Sleep(23 * time.Hour)
		l.hub.ResetLedger()
		time.Sleep(time.Hour)
		if n := len(l.hub.Ledger()); n != 0 {
			t.Errorf("%d requests for a tag that nobody has used for a day", n)
		}
	})
}
