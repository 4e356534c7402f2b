package registry_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestTagIsNotRecheckedInsideTheTTL: a hundred pulls by tag inside the TTL ask upstream for
// nothing.
func TestTagIsNotRecheckedInsideTheTTL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		l.hub.ResetLedger()
		for range 100 {
			l.pull(img)
			if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "hit" {
				t.Fatal(r.status, r.header)
			}
		}
		if ledger := l.hub.Ledger(); len(ledger) > 0 {
			t.Errorf("upstream saw\n%s", ledger)
		}
	})
}

// TestUnofficialTagIsRecheckedEveryTime: without a TTL of its own, a tag outside library/
// is checked by one HEAD at every pull.
func TestUnofficialTagIsRecheckedEveryTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		l.hub.ResetLedger()
		for range 3 {
			l.pull(img)
		}
		if ledger := l.hub.Ledger(); ledger.ManifestHEADs() != 3 || ledger.ManifestGETs()+ledger.BlobGETs() != 0 {
			t.Errorf("upstream saw\n%s", ledger)
		}
	})
}

// TestMovedAndDeletedTagsAreSeenAfterTheTTL: inside the TTL a moved tag is answered as
// before. After it the tag is answered with the new manifest, or with 404 when upstream has
// deleted it; a tag that is pushed again is seen after negative_ttl.
func TestMovedAndDeletedTagsAreSeenAfterTheTTL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		old := l.smallImage("library/redis", "7")
		l.pull(old)
		moved := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 99<<10)})
		if r := l.get(manifestPath(old)); !equal(r.body, old.Bytes) {
			t.Error("inside the TTL another manifest")
		}
		time.Sleep(61 * time.Second)
		l.pull(moved)
		if r := l.get(manifestPath(old)); !equal(r.body, moved.Bytes) {
			t.Error("after the TTL still the old manifest")
		}
		l.hub.Untag("library/redis", "7")
		time.Sleep(61 * time.Second)
		for range 3 {
			if r := l.get(manifestPath(old)); r.status != 404 || !strings.Contains(string(r.body), "MANIFEST_UNKNOWN") {
				t.Errorf("a deleted tag: %d %s", r.status, r.body)
			}
		}
		if r := l.get("/v2/library/redis/manifests/" + string(moved.Digest)); r.status != 200 {
			t.Errorf("the manifest of a deleted tag by digest: %d", r.status)
		}
		if r := l.do("HEAD", manifestPath(old)); r.status != 404 {
			t.Errorf("HEAD of a deleted tag: %d", r.status)
		}
		// A push is seen as soon as the 404 is no longer remembered.
		l.hub.Tag("library/redis", "7", moved.Digest)
		time.Sleep(11 * time.Second)
		l.pull(moved)
	})
}

// TestDeletedTagIsServedStaleWithKeepGone: with tags.on_gone set to keep, a tag that
// upstream has deleted is served, and marked as stale.
func TestDeletedTagIsServedStaleWithKeepGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.KeepGone = true }})
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		l.hub.Untag("library/redis", "7")
		time.Sleep(61 * time.Second)
		if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Error(r.status, r.header)
		}
	})
}

// TestSlowUpstreamDelaysACachedTagOnlyOnce: while upstream is slow, the first request for a
// cached tag waits 1.5 s and the next not at all. The check goes on and moves the tag.
func TestSlowUpstreamDelaysACachedTagOnlyOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		old := l.smallImage("coop/app", "1")
		l.pull(old)
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}, hubtest.Delay(2*time.Second))
		moved := l.hub.AddImage("coop/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		start := time.Now()
		r := l.get(manifestPath(old))
		if took := time.Since(start); r.header.Get("X-Hubcache") != "stale" || took != 1500*time.Millisecond {
			t.Errorf("%s after %s", r.header.Get("X-Hubcache"), took)
		}
		start = time.Now()
		r = l.get(manifestPath(old))
		if took := time.Since(start); r.header.Get("X-Hubcache") != "stale" || took != 0 {
			t.Errorf("the second request: %s after %s", r.header.Get("X-Hubcache"), took)
		}
		time.Sleep(10 * time.Second)
		l.hub.ClearFaults()
		if tag, err := l.store.Tag("docker.io/coop/app", "1"); err != nil || tag.Digest != moved.Digest {
			t.Errorf("the check did not move the tag: %+v, %v", tag, err)
		}
	})
}

// TestSlowTagMakesNoOtherTagStale: upstream takes 3 s for one tag and 30 ms for all others.
// While a request has waited for the slow one in vain, another repository's tag, and another
// tag of the same repository, are still checked, and a moved one is answered with what it
// names now.
func TestSlowTagMakesNoOtherTagStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Latency: 30 * time.Millisecond}})
		slow := l.smallImage("coop/slow", "1")
		l.pull(slow)
		for _, img := range []*hubtest.Image{l.smallImage("coop/other", "1"), l.smallImage("coop/slow", "2"), l.smallImage("library/official", "1")} {
			l.pull(img)
		}
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests", Repository: "coop/slow", Reference: "1"}, hubtest.Delay(3*time.Second))
		time.Sleep(2 * time.Minute)
		for round := range 3 {
			if r := l.get(manifestPath(slow)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
				t.Fatalf("the slow tag: %d %s", r.status, r.header.Get("X-Hubcache"))
			}
			for i, name := range []string{"coop/other:1", "coop/slow:2", "library/official:1"} {
				repository, tag, _ := strings.Cut(name, ":")
				moved := l.hub.AddImage(repository, tag, hubtest.ImageSpec{Layers: hubtest.Layers(1, int64(5000+10*round+i))})
				start := time.Now()
				r := l.get(manifestPath(moved))
				if r.status != 200 || r.header.Get("X-Hubcache") == "stale" || !equal(r.body, moved.Bytes) {
					t.Errorf("%s: %d %s, the manifest is the new one: %v", name, r.status, r.header.Get("X-Hubcache"), equal(r.body, moved.Bytes))
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("%s took %s", name, took)
				}
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// TestStaleTagIsNotServedAfterMaxStale: a cached tag is served while upstream fails, but
// not longer than max_stale after its last check.
func TestStaleTagIsNotServedAfterMaxStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.MaxStale = time.Hour }})
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		time.Sleep(50 * time.Minute)
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Error(r.status)
		}
		time.Sleep(20 * time.Minute)
		if r := l.get(manifestPath(img)); r.status != 502 {
			t.Error(r.status)
		}
	})
}

// TestColdTagIsAnsweredWithinFiveSeconds: an uncached tag is answered in time although
// upstream is slow at each step.
func TestColdTagIsAnsweredWithinFiveSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("library/redis", "7")
		l.pull(l.smallImage("library/redis", "6"))
		l.hub.Inject(hubtest.Match{Kind: "manifests", Method: "HEAD"}, hubtest.Delay(3*time.Second))
		l.hub.Inject(hubtest.Match{Kind: "manifests", Method: "GET"}, hubtest.Hang())
		defer l.hub.ClearFaults()
		start := time.Now()
		r := l.get(manifestPath(img))
		t.Log(r.status, time.Since(start), l.hub.Ledger())
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%d after %s", r.status, took)
		}
	})
}

// TestTagRulesSetTheTTL: the first rule that matches a tag sets its TTL.
func TestTagRulesSetTheTTL(t *testing.T) {
	t.Parallel()
	day, no := 24*time.Hour, time.Duration(0)
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) {
			p.Tags = []registry.TagRule{{Match: "library/*:*-alpine", TTL: &day}, {Match: "redis:*", TTL: &no}}
		}})
		for tag, heads := range map[string]int{"7-alpine": 0, "7": 1} {
			img := l.smallImage("library/redis", tag)
			l.get(manifestPath(img))
			l.hub.ResetLedger()
			time.Sleep(time.Hour)
			l.get(manifestPath(img))
			if n := l.hub.Ledger().ManifestHEADs(); n != heads {
				t.Errorf("%s: %d HEADs", tag, n)
			}
		}
	})
}

// TestUsedTagIsRefreshedBeforeItsTTLEnds: a tag in use whose rule says refresh is checked
// in the background before its TTL ends, however short that is, and no client waits for it.
func TestUsedTagIsRefreshedBeforeItsTTLEnds(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{10 * time.Minute, time.Minute, 30 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{policy: func(p *registry.Policy) {
				p.Tags = []registry.TagRule{{Match: "library/*:*", TTL: &ttl, Refresh: true}}
			}})
			img := l.smallImage("library/redis", "7")
			l.get(manifestPath(img))
			l.hub.ResetLedger()
			for range 30 {
				time.Sleep(ttl / 10)
				if r := l.get(manifestPath(img)); r.header.Get("X-Hubcache") != "hit" {
					t.Errorf("TTL %s: the client had to wait: %s", ttl, r.header.Get("X-Hubcache"))
				}
				synctest.Wait()
			}
			if n := l.hub.Ledger().ManifestHEADs(); n < 3 || n > 4 {
				t.Errorf("TTL %s: %d checks in three TTLs", ttl, n)
			}
			if n := l.hub.Ledger().ManifestGETs(); n != 0 {
				t.Errorf("TTL %s: %d GETs", ttl, n)
			}
		})
	}
}
