package registry_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// within returns how many requests of a Histogram took longer than a bound of it, and at most the
// next one, by that one.
func within(h registry.Histogram) map[time.Duration]int64 {
	m, before := map[time.Duration]int64{}, int64(0)
	for i, n := range h.Buckets {
		if n > before {
			m[registry.FirstByteBounds[i]] = n - before
		}
		before = n
	}
	if h.Count > before {
		m[-1] = h.Count - before
	}
	return m
}

// TestFirstByteIsTimedByKindAndOutcome: the time until the first byte of the body, not until the
// headers or the end, for each kind and outcome of requests, of which each counts once.
func TestFirstByteIsTimedByKindAndOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: mib}})
		layer := l.addImage("library/app", "1", 8*mib)[0] // takes 8 s, in chunks of 4 MiB
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests", Method: http.MethodGet}, hubtest.Delay(700*time.Millisecond))
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(layer)}, hubtest.Delay(2*time.Second))
		l.get("/v2/library/app/manifests/1")
		l.get("/v2/library/app/manifests/1")
		l.get("/v2/library/app/manifests/none")
		l.get(blobPath("library/app", layer))
		rule.Release()
		l.drain()
		l.get(blobPath("library/app", layer))
		l.get(blobPath("library/app", layerDigest(1, 77)))
		synctest.Wait()
		s := l.reg.Stats()
		for _, c := range []struct {
			name    string
			of      registry.Requests
			outcome registry.Outcome
			bound   time.Duration
		}{
			{"manifest", s.Manifest, registry.OutcomeMiss, time.Second},
			{"manifest", s.Manifest, registry.OutcomeHit, 100 * time.Microsecond},
			{"manifest", s.Manifest, registry.OutcomeError, 100 * time.Microsecond},
			{"blob", s.Blob, registry.OutcomeMiss, 2500 * time.Millisecond},
			{"blob", s.Blob, registry.OutcomeHit, 100 * time.Microsecond},
			{"blob", s.Blob, registry.OutcomeError, 100 * time.Microsecond},
		} {
			h := c.of.FirstByte[c.outcome]
			if got := within(h); h.Count != 1 || len(got) != 1 || got[c.bound] != 1 {
				t.Errorf("%s, %s: %v, want one within %s", c.name, c.outcome, got, c.bound)
			}
			if h.Sum < 0 || h.Sum > c.bound {
				t.Errorf("%s, %s: the sum is %s", c.name, c.outcome, h.Sum)
			}
		}
		var all int64
		for _, of := range []registry.Requests{s.Manifest, s.Blob} {
			for _, h := range of.FirstByte {
				all += h.Count
			}
		}
		if all != 6 {
			t.Errorf("%d requests are timed, of 6", all)
		}
	})
}

// TestFirstByteOfASilentBodyIsLate: headers come at once, and the first byte of the body after a
// second.
func TestFirstByteOfASilentBodyIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		layer := l.oneLayerImage(5 * mib)
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(layer)}, hubtest.StallAfter(0))
		go func() {
			time.Sleep(3 * time.Second)
			rule.Release()
		}()
		l.get(blobPath("library/one", layer))
		synctest.Wait()
		if got := within(l.reg.Stats().Blob.FirstByte[registry.OutcomeMiss]); got[5*time.Second] != 1 {
			t.Errorf("%v", got)
		}
	})
}
