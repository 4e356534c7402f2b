package registry_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/registry"
)

const (
	hold      = 72 * time.Hour
	heldImage = "coop/app" // whose tags are asked for every time
)

// held is a policy with a quarantine for all tags of the repository.
func held(p *registry.Policy) {
	p.Tags = []registry.TagRule{{Match: heldImage + ":*", Quarantine: hold}}
}

// pushed is a new image that the tag names now.
func (l *lab) pushed() *hubtest.Image {
	return l.hub.AddImage(heldImage, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000+int64(len(l.hub.Ledger())))})
}

// expectTag checks that GET and HEAD of a tag agree on an image, or on 403 if it is nil, and with which
// header of the cache.
func (l *lab) expectTag(img *hubtest.Image, cache ...string) {
	l.t.Helper()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r := l.do(method, "/v2/"+heldImage+"/manifests/1")
		switch {
		case img == nil:
			if r.status != http.StatusForbidden || method == http.MethodGet && !strings.Contains(string(r.body), "quarantine") {
				l.t.Errorf("%s of the tag: %d %s", method, r.status, r.body)
			}
		case r.status != http.StatusOK || r.header.Get("Docker-Content-Digest") != string(img.Digest):
			l.t.Errorf("%s of the tag: %d %v %s, want %s", method, r.status, r.header, r.body, img.Digest)
		case len(cache) > 0 && r.header.Get("X-Hubcache") != cache[0]:
			l.t.Errorf("%s of the tag: X-Hubcache %s, want %s", method, r.header.Get("X-Hubcache"), cache[0])
		}
	}
}

// TestQuarantineHoldsNewDigestsBack: a tag is answered with what has been known for long enough, and by
// digest everything can be pulled.
func TestQuarantineHoldsNewDigestsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: held})
		first := l.pushed()
		l.expectTag(nil)
		if r := l.get("/v2/" + heldImage + "/manifests/" + string(first.Digest)); r.status != http.StatusOK {
			t.Errorf("by digest: %d", r.status)
		}
		time.Sleep(hold - time.Minute)
		l.expectTag(nil)
		time.Sleep(2 * time.Minute)
		l.expectTag(first)
		second := l.pushed()
		l.expectTag(first, "quarantine")
		l.pullDigest(second)
		time.Sleep(hold / 2)
		third := l.pushed() // two pushes in a row: none comes through before its time
		l.expectTag(first, "quarantine")
		time.Sleep(hold/2 + time.Minute)
		l.expectTag(second, "quarantine") // it has waited, and what came after has not
		time.Sleep(hold / 2)
		l.expectTag(third)
		if n := l.reg.Stats().Manifest.Quarantine; n != 6 {
			t.Errorf("%d answers with an older image are counted, want 6", n)
		}
	})
}

// TestQuarantineTagThatGoesBack: what the tag named for an hour only is not served when it goes back to
// what has waited.
func TestQuarantineTagThatGoesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		good := l.pushed()
		l.pull(good)
		l.setPolicy(held) // what the tag named when the rule came into force has waited
		l.expectTag(good)
		bad := l.pushed()
		l.expectTag(good, "quarantine")
		time.Sleep(time.Hour)
		l.hub.Tag(heldImage, "1", good.Digest)
		l.expectTag(good, "revalidated")
		time.Sleep(2 * hold)
		l.expectTag(good, "revalidated")
		next := l.pushed()
		l.expectTag(good, "quarantine")
		if bad.Digest == next.Digest {
			t.Fatal("the images are the same")
		}
	})
}

// TestQuarantineOutlivesTheIndex: a restart, with and without the index, changes nothing; an emptied
// cache waits again.
func TestQuarantineOutlivesTheIndex(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var book *quarantine.Book
		open := func(o *registry.Options) {
			book = quarantine.Open(filepath.Join(o.Store.Dir(), "quarantine.json"), o.Log)
			o.Quarantine = book
		}
		l := newLab(t, labOptions{policy: held, options: open})
		defer func() { book.Close() }()
		first := l.pushed()
		l.expectTag(nil)
		time.Sleep(hold / 2)
		l.stop()
		book.Close()
		l.start()
		time.Sleep(hold/2 + time.Minute)
		l.expectTag(first)
		l.pull(first)
		second := l.pushed()
		l.expectTag(first)
		l.stop()
		book.Close()
		l.removeIndex()
		l.start()
		l.expectTag(first, "quarantine")
		time.Sleep(hold + time.Minute)
		l.expectTag(second)
	})
}

// TestQuarantineWithTheUpstreamDown: what has waited is served stale, and nothing else is.
func TestQuarantineWithTheUpstreamDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		good := l.pushed()
		l.pull(good)
		l.setPolicy(held)
		l.pushed()
		l.expectTag(good, "quarantine")
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		time.Sleep(time.Minute)
		l.expectTag(good, "stale")
	})
}

// TestQuarantineRefusalsAskOnce: clients that try again and again cost the upstream a question in some
// seconds.
func TestQuarantineRefusalsAskOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: held})
		l.pushed()
		l.expectTag(nil)
		l.hub.ResetLedger()
		for range 50 {
			l.expectTag(nil)
		}
		if n := len(l.hub.Ledger()); n > 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}

// TestQuarantineOfWhatIsGone: the image that has waited has left the cache and the registry.
func TestQuarantineOfWhatIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		good := l.pushed()
		l.pull(good)
		l.setPolicy(held)
		l.pushed()
		l.store.Remove(good.Digest)
		l.hub.Inject(hubtest.Match{Kind: "manifests", Reference: string(good.Digest)}, hubtest.Status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`))
		r := l.get("/v2/" + heldImage + "/manifests/1")
		if r.status != http.StatusForbidden || !strings.Contains(string(r.body), string(good.Digest)) {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}

// TestRelease: what an operator releases is served at once, and what comes after it waits.
func TestRelease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: held})
		ref, err := name.ParseReference(heldImage + ":1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.reg.Release(t.Context(), ref); err != quarantine.ErrUnknown {
			t.Errorf("of an unknown tag: %v", err)
		}
		first := l.pushed()
		l.expectTag(nil)
		if w := l.reg.Waiting("docker.io/"+heldImage, "1"); w == nil || w.Digest != first.Digest || time.Until(w.Until).Round(time.Minute) != hold {
			t.Errorf("waiting: %+v", w)
		}
		if got, err := l.reg.Release(t.Context(), ref); err != nil || got.Digest != first.Digest {
			t.Errorf("%+v, %v", got, err)
		}
		l.expectTag(first)
		if w := l.reg.Waiting("docker.io/"+heldImage, "1"); w != nil {
			t.Errorf("waiting: %+v", w)
		}
		l.pushed()
		l.expectTag(first, "quarantine")
	})
}

// TestDeniedDigests are refused by every name, also when they are cached and in memory; what refers to
// them isn't.
func TestDeniedDigests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 5000), Platforms: []string{"linux/amd64", "linux/arm64"}})
		l.pull(img)
		child, layer := img.Manifests[0].Digest, img.Manifests[0].Layers[0].Digest
		paths := map[digest.Digest][]string{
			img.Digest: {manifestPath(img), "/v2/library/app/manifests/" + string(img.Digest)},
			child:      {"/v2/library/app/manifests/" + string(child)},
			layer:      {blobPath("library/app", layer)},
		}
		for d, all := range paths {
			l.setPolicy(func(p *registry.Policy) { p.DenyDigests = []digest.Digest{d} })
			for _, path := range all {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					if r := l.do(method, path); r.status != http.StatusForbidden {
						t.Errorf("%s %s, which is denied: %d", method, path, r.status)
					}
				}
			}
			for other, all := range paths {
				if other == d {
					continue
				}
				for _, path := range all {
					if r := l.get(path); r.status != http.StatusOK {
						t.Errorf("%s with another digest denied: %d", path, r.status)
					}
				}
			}
		}
	})
}

// TestDeniedDigestsDontCountInQuarantine: a tag is answered with what has waited and isn't denied.
func TestDeniedDigestsDontCountInQuarantine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		good := l.pushed()
		l.pull(good)
		l.setPolicy(held)
		l.expectTag(good)
		bad := l.pushed()
		l.expectTag(good)
		time.Sleep(hold + time.Minute)
		l.expectTag(bad)
		hour := time.Hour // within it the tag need not be asked for again
		l.setPolicy(func(p *registry.Policy) {
			held(p)
			p.Tags[0].TTL, p.DenyDigests = &hour, []digest.Digest{bad.Digest}
		})
		l.expectTag(good, "quarantine")
	})
}
