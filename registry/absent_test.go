package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// apiRefusal is how a registry says that it hasn't got something, or refuses it.
func apiRefusal(status int, code string) hubtest.Fault {
	return hubtest.Status(status, `{"errors":[{"code":"`+code+`","message":"no"}]}`, "Content-Type: application/json", "Docker-Distribution-Api-Version: registry/2.0")
}

// registryRequests counts the requests that the registry answered with something other than
// the 401 by which it asks for a token.
func (l *lab) registryRequests() int {
	return l.hub.Ledger().Count(func(e hubtest.Entry) bool { return e.Face == hubtest.Registry && e.Kind != "ping" })
}

// TestNoIsRememberedForSeconds: what upstream hasn't got, or refuses, it is asked for once in
// ten seconds, however it is asked for, and then again.
func TestNoIsRememberedForSeconds(t *testing.T) {
	t.Parallel()
	none := string(digest.FromString("nothing has these bytes"))
	const cached = "CACHED" // replaced by a digest that another repository has
	for name, c := range map[string]struct {
		path    string
		blob    bool // cached is a blob, not a manifest
		status  int  // 0: 404
		refused bool // upstream answers 403 to everything in the repository
	}{
		"tag":                       {path: "coop/app/manifests/none"},
		"manifest":                  {path: "coop/app/manifests/" + none},
		"blob":                      {path: "coop/app/blobs/" + none},
		"another's blob":            {path: "coop/app/blobs/" + cached, blob: true},
		"another's manifest":        {path: "coop/app/manifests/" + cached},
		"tag of no repository":      {path: "coop/none/manifests/1"},
		"blob of no repository":     {path: "coop/none/blobs/" + none},
		"manifest of no repository": {path: "coop/none/manifests/" + none},
		"list of no repository":     {path: "coop/none/tags/list"},
		"refused tag":               {path: "coop/app/manifests/1", refused: true},
		"refused manifest":          {path: "coop/app/manifests/" + none, refused: true},
		"refused blob":              {path: "coop/app/blobs/" + none, refused: true},
		"refused list":              {path: "coop/app/tags/list", refused: true},
		"refused referrers":         {path: "coop/app/referrers/" + none, refused: true},
	} {
		for _, anonymous := range []bool{true, false} {
			for _, keepGone := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/anonymous=%v/keep=%v", name, anonymous, keepGone), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t, labOptions{anonymous: anonymous, policy: func(p *registry.Policy) { p.KeepGone = keepGone }})
						other := l.smallImage("coop/other", "1")
						l.pull(other)
						l.hub.AddImage("coop/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 77)})
						l.get("/v2/coop/app/manifests/2") // its visibility is known
						d := other.Digest
						if c.blob {
							d = other.Manifests[0].Layers[0].Digest
						}
						path := "/v2/" + strings.Replace(c.path, cached, string(d), 1)
						if c.refused {
							l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Repository: "coop/app"}, apiRefusal(403, "DENIED"))
						}
						methods := []string{http.MethodGet, http.MethodHead}
						if strings.HasSuffix(path, "list") || strings.Contains(path, "referrers") {
							methods = methods[:1]
						}
						ask := func() {
							t.Helper()
							for i := range 20 {
								if r := l.do(methods[i%len(methods)], path); r.status != 404 {
									t.Fatalf("%d %s", r.status, r.body)
								}
							}
						}
						l.hub.ResetLedger()
						ask()
						first := l.registryRequests()
						if first > 2 { // the first may be the one that asks for a token
							t.Errorf("upstream saw\n%s", l.hub.Ledger())
						}
						l.hub.ResetLedger()
						time.Sleep(11 * time.Second)
						ask()
						// With a token, coop/none counts as private by now and isn't asked about.
						if again := l.registryRequests(); again > 2 || again == 0 && (anonymous || !strings.Contains(path, "none/")) {
							t.Errorf("11 s later upstream saw\n%s", l.hub.Ledger())
						}
					})
				})
			}
		}
	}
}

// TestListsLiveForSeconds: a list is not asked for again at once, although the tags of its
// repository are.
func TestListsLiveForSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		for _, path := range []string{"tags/list", "tags/list?n=1", "referrers/" + string(img.Digest)} {
			for range 2 {
				l.hub.ResetLedger()
				for range 20 {
					if r := l.get("/v2/coop/app/" + path); r.status != 200 {
						t.Fatalf("%s: %d %s", path, r.status, r.body)
					}
				}
				if n := l.registryRequests(); n != 1 {
					t.Errorf("%s: %d requests\n%s", path, n, l.hub.Ledger())
				}
				time.Sleep(6 * time.Second)
			}
		}
	})
}

// TestGoneTagThatIsKeptIsAskedForOnce: with tags.on_gone set to keep, a deleted tag is served
// as stale, and upstream is not asked about it each time.
func TestGoneTagThatIsKeptIsAskedForOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.KeepGone = true }})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		l.hub.Untag("coop/app", "1")
		l.hub.ResetLedger()
		for range 20 {
			if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
				t.Fatal(r.status, r.header)
			}
		}
		if n := l.registryRequests(); n != 1 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
		l.hub.Tag("coop/app", "1", img.Digest)
		time.Sleep(11 * time.Second)
		if r := l.get(manifestPath(img)); r.header.Get("X-Hubcache") != "revalidated" {
			t.Error(r.status, r.header)
		}
	})
}

// TestWhatAManifestNamesIsAskedForAtOnce: a 404 for a blob or manifest that a cached manifest
// of the repository names is not remembered, and neither is one for a digest that a tag of the
// repository names by now.
func TestWhatAManifestNamesIsAskedForAtOnce(t *testing.T) {
	t.Parallel()
	for status, code := range map[int]string{404: "NOT_FOUND", 403: "DENIED"} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{})
			img := l.hub.AddImage("coop/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 64<<10), Platforms: []string{"linux/amd64", "linux/arm64"}})
			l.get(manifestPath(img))
			m := img.Manifests[0]
			for _, path := range []string{"/v2/coop/app/manifests/" + string(m.Digest), blobPath("coop/app", m.Layers[0].Digest), blobPath("coop/app", m.Config.Digest)} {
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Reference: path[strings.LastIndex(path, "/")+1:], Times: 1}, apiRefusal(status, code))
					if r := l.do(method, path); r.status != 404 {
						t.Errorf("%s %s: %d while upstream says %d", method, path, r.status, status)
					}
					if r := l.do(method, path); r.status != 200 {
						t.Errorf("%s %s: %d after the %d", method, path, r.status, status)
					}
				}
			}
			// A digest that is asked for before it is pushed.
			l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Repository: "coop/new", Method: http.MethodGet, Times: 1}, apiRefusal(status, code))
			pushed := l.smallImage("coop/new", "1")
			l.get("/v2/coop/new/manifests/none") // its visibility is known
			if r := l.get("/v2/coop/new/manifests/" + string(pushed.Digest)); r.status != 404 {
				t.Error(r.status)
			}
			if r := l.get(manifestPath(pushed)); r.status != 200 {
				t.Errorf("%d: the tag names the digest that was unknown a moment ago", r.status)
			}
			l.pull(pushed)
		})
	}
}

// TestRefusalBeforeVisibilityIsKnownIsNotRemembered: as long as nobody can tell whether a
// repository is public, a refusal by upstream says nothing.
func TestRefusalBeforeVisibilityIsKnownIsNotRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := true
		l := newLab(t, labOptions{intercept: func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if down && strings.Contains(req.URL.Host, "auth") && req.Header.Get("Authorization") == "" {
				return nil, fmt.Errorf("the token service can't be reached anonymously")
			}
			return next.RoundTrip(req)
		}})
		img := l.smallImage("coop/app", "1")
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests", Repository: "coop/app", Times: 1}, apiRefusal(403, "DENIED"))
		l.reg.Introduce()
		synctest.Wait() // the first request has a token
		if r := l.get(manifestPath(img)); r.status != 429 {
			t.Fatalf("%d %s\n%s", r.status, r.body, l.hub.Ledger())
		}
		down = false
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Errorf("%d %s\n%s", r.status, r.body, l.hub.Ledger())
		}
	})
}
