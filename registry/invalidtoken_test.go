package registry_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// tokenLab is a lab whose registry finds the tokens of some requests invalid: as many as bad
// says, of those that have a token and whose path contains match.
func tokenLab(t *testing.T, anonymous bool) (l *lab, forget func(match string, times int)) {
	var mu sync.Mutex // guards match and bad
	var match string
	var bad int
	l = newLab(t, labOptions{anonymous: anonymous, policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) },
		intercept: func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			mu.Lock()
			invalid := bad > 0 && strings.Contains(req.URL.Path, match) && strings.HasPrefix(req.Header.Get("Authorization"), "Bearer ")
			if invalid {
				bad--
			}
			mu.Unlock()
			if invalid {
				req = req.Clone(req.Context())
				req.Header.Set("Authorization", "Bearer unknown") // is answered with error="invalid_token"
			}
			return next.RoundTrip(req)
		}})
	return l, func(m string, times int) {
		mu.Lock()
		defer mu.Unlock()
		match, bad = m, times
	}
}

// TestTokenThatIsInvalidOnceIsReplaced: the registry finds a new token invalid, and says so. One
// new token and one more request serve the client, whether it asks for a cached tag, for one
// that isn't cached, for a manifest or for a blob.
func TestTokenThatIsInvalidOnceIsReplaced(t *testing.T) {
	t.Parallel()
	for _, anonymous := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l, forget := tokenLab(t, anonymous)
			img := l.smallImage("library/app", "1")
			l.pull(img)
			other := l.hub.AddImage("library/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
			for _, path := range []string{manifestPath(img), manifestPath(other), "/v2/library/app/manifests/" + string(other.Digest), blobPath("library/app", other.Manifests[0].Layers[0].Digest), "/v2/library/app/tags/list"} {
				time.Sleep(10 * time.Minute) // the tokens have expired
				l.hub.ResetLedger()
				forget("/v2/", 1)
				r := l.get(path)
				if r.status != 200 || r.header.Get("X-Hubcache") == "stale" {
					t.Errorf("%s: %d %s %s\n%s", path, r.status, r.header.Get("X-Hubcache"), r.body, l.hub.Ledger())
				}
				if n := len(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.Token })); n > 2 {
					t.Errorf("%s: %d tokens\n%s", path, n, l.hub.Ledger())
				}
			}
		})
	}
}

// TestTokensThatAreAlwaysInvalidMakeUpstreamBroken: after one new token and one more request a
// cached tag is stale, and what isn't cached is answered as with a broken upstream. Clients that
// go on asking cost a token in ten seconds, and are served as soon as tokens are good again.
func TestTokensThatAreAlwaysInvalidMakeUpstreamBroken(t *testing.T) {
	t.Parallel()
	for _, anonymous := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l, forget := tokenLab(t, anonymous)
			img := l.smallImage("library/app", "1")
			l.pull(img)
			other := l.hub.AddImage("library/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
			time.Sleep(10 * time.Minute)
			l.hub.ResetLedger()
			forget("/v2/", 1<<30)
			r := l.get(manifestPath(img))
			if r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
				t.Errorf("a cached tag: %d %s", r.status, r.body)
			}
			ledger := l.hub.Ledger()
			asked := ledger.Filter(func(e hubtest.Entry) bool { return e.Kind == "manifests" })
			tokens := ledger.Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.Token })
			if len(asked) != 2 || len(tokens) != 2 {
				t.Errorf("upstream saw\n%s", ledger)
			}
			if r := l.get(manifestPath(other)); r.status != 502 {
				t.Errorf("a tag that isn't cached: %d %s", r.status, r.body)
			}
			if r := l.get(blobPath("library/app", other.Manifests[0].Layers[0].Digest)); r.status != 429 {
				t.Errorf("a blob: %d %s", r.status, r.body)
			}
			l.hub.ResetLedger()
			for range 100 {
				if r := l.get(manifestPath(img)); r.status != 200 {
					t.Errorf("a cached tag: %d %s", r.status, r.body)
				}
				time.Sleep(time.Second)
			}
			if n := len(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.Token })); n > 12 {
				t.Errorf("%d tokens in 100 s", n)
			}
			forget("", 0)
			time.Sleep(30 * time.Second)
			l.pull(img)
			l.pull(other)
		})
	}
}
