package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// sickAnswer is a refusal that isn't the registry API's own: it says that upstream is broken,
// and nothing about an image.
type sickAnswer struct {
	name   string
	header string
	body   string
}

// sickAnswers are what stands before a registry in trouble, and what a registry in trouble says.
var sickAnswers = []sickAnswer{
	{"empty", "Content-Type: text/plain", ""},
	{"text", "Content-Type: text/plain", "404 page not found\n"},
	{"HTML", "Content-Type: text/html", "<!DOCTYPE html><html><body>blocked</body></html>"},
	{"XML", "Content-Type: application/xml", "<Error><Code>AccessDenied</Code></Error>"},
	{"a gateway's JSON", "Content-Type: application/json", `{"message":"Not Found"}`},
	{"a token service's JSON", "Content-Type: application/json", `{"details":"unauthorized"}`},
	{"no error in the list", "Content-Type: application/json", `{"errors":[]}`},
	{"unavailable", "Content-Type: application/json", `{"errors":[{"code":"UNAVAILABLE","message":"service unavailable"}]}`},
	{"HTML called JSON", "Content-Type: application/json", "<html></html>"},
	{"half of the API's answer", "Content-Type: application/json", `{"errors":[{"code":"MANIFEST_UNKNOWN","mess`},
}

// TestAnswersThatAreNotTheAPIsLoseNothing: a 401, 403, 404 or 410 that isn't the registry API's
// own, at any of upstream's hosts, leaves every cached image served, by tag and by digest, while
// it lasts and while upstream can't be reached after it. What isn't cached is answered as with
// an upstream that is broken.
func TestAnswersThatAreNotTheAPIsLoseNothing(t *testing.T) {
	t.Parallel()
	for _, anonymous := range []bool{true, false} {
		for _, face := range []hubtest.Face{hubtest.Registry, hubtest.Token, hubtest.CDN} {
			t.Run(fmt.Sprintf("anonymous=%v/%s", anonymous, face), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t, labOptions{anonymous: anonymous, policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
					l.pull(l.smallImage("library/app", "1"))
					// Each answer with two of the statuses. Package answer tries them all; here each
					// costs a day, in which the store wakes thousands of times.
					for n, sick := range sickAnswers {
						for _, status := range [][]int{{401, 404}, {403, 410}, {401, 410}, {403, 404}}[n%4] {
							testSickAnswer(l, face, status, sick)
						}
					}
				})
			})
		}
	}
}

// testSickAnswer lets one face answer so, and then nothing be reached, and looks for the image.
func testSickAnswer(l *lab, face hubtest.Face, status int, sick sickAnswer) {
	l.t.Helper()
	img := l.smallImage("library/app", "1")
	time.Sleep(25 * time.Hour) // tokens have expired, and the visibility is old
	cached := func(when string, stale bool) {
		l.t.Helper()
		for range 2 {
			for _, method := range []string{"HEAD", "GET"} {
				r := l.do(method, manifestPath(img))
				if r.status != 200 || stale && r.header.Get("X-Hubcache") != "stale" {
					l.t.Fatalf("%s %d %s, %s: %s of the tag: %d %s %s", face, status, sick.name, when, method, r.status, r.header.Get("X-Hubcache"), r.body)
				}
			}
			l.pullDigest(img)
			time.Sleep(time.Minute)
		}
	}
	l.hub.Inject(hubtest.Match{Face: face}, hubtest.Status(status, sick.body, sick.header))
	cached("while it lasts", face != hubtest.CDN)
	other := l.hub.AddImage("library/app", fmt.Sprintf("other-%d-%d", status, len(sick.body)), hubtest.ImageSpec{Layers: hubtest.Layers(1, int64(5000+len(sick.body)))})
	paths := []string{blobPath("library/app", other.Manifests[0].Layers[0].Digest)}
	if face != hubtest.CDN {
		paths = append(paths, manifestPath(other), "/v2/library/app/manifests/"+string(other.Digest))
	}
	for _, path := range paths {
		if r := l.get(path); r.status != 200 && r.status != 502 && r.status != 503 && r.status != 429 {
			l.t.Errorf("%s %d %s: %s: %d %s", face, status, sick.name, path, r.status, r.body)
		}
	}
	l.hub.ClearFaults()
	l.hub.Inject(hubtest.Match{}, hubtest.Drop())
	cached("upstream can't be reached", true)
	l.hub.ClearFaults()
	time.Sleep(2 * time.Minute)
	l.pull(img)
	l.pull(other)
}

// TestDeletedTagIsSeenThroughAHeadThatDoesNotTell: the 404 of a HEAD without the marks of the
// registry API is followed by one GET, and its body tells that the tag is gone, or that upstream
// is broken.
func TestDeletedTagIsSeenThroughAHeadThatDoesNotTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && req.Method == "HEAD" && resp.StatusCode == 404 {
				resp.Header = http.Header{"Content-Type": {"text/plain"}}
			}
			return resp, err
		})
		img := l.smallImage("corp/app", "1")
		l.pull(img)
		time.Sleep(time.Minute)
		l.hub.Untag("corp/app", "1")
		l.hub.ResetLedger()
		for _, method := range []string{"HEAD", "GET"} {
			if r := l.do(method, manifestPath(img)); r.status != 404 {
				t.Errorf("%s: %d", method, r.status)
			}
		}
		asked := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Kind == "manifests" })
		if len(asked) != 2 || asked[0].Method != "HEAD" || asked[1].Method != "GET" {
			t.Errorf("upstream saw\n%s", asked)
		}
		// A blob that isn't there, either.
		if r := l.do("HEAD", blobPath("corp/app", layerDigest(1, 77))); r.status != 404 {
			t.Errorf("HEAD of a blob: %d", r.status)
		}
	})
}

// TestHeadOfTheAPIsOwnNeedsNoGet: Docker Hub's 404 to a HEAD tells by its headers.
func TestHeadOfTheAPIsOwnNeedsNoGet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.smallImage("corp/app", "1")
		if r := l.get("/v2/corp/app/manifests/2"); r.status != 404 {
			t.Fatal(r.status)
		}
		if n := l.hub.Ledger().ManifestGETs(); n != 0 {
			t.Errorf("%d GETs:\n%s", n, l.hub.Ledger())
		}
	})
}

// TestHeadOfABlobThatIsThereThoughHeadsFail: a firewall that knows no HEAD doesn't hide a blob.
func TestHeadOfABlobThatIsThereThoughHeadsFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("corp/app", "1")
		d := img.Manifests[0].Layers[0]
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Method: "HEAD", Kind: "blobs"}, hubtest.Status(403, "no HEAD"))
		r := l.do("HEAD", blobPath("corp/app", d.Digest))
		if r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(d.Size) {
			t.Errorf("%d %v", r.status, r.header)
		}
	})
}

// TestSickListsAreNoLists: what isn't the API's answer to tags/list and referrers isn't kept as
// though the registry had said so.
func TestSickListsAreNoLists(t *testing.T) {
	t.Parallel()
	for _, sick := range sickAnswers {
		if sick.name == "text" { // this is how registries without referrers answer
			continue
		}
		t.Run(sick.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true})
				img := l.smallImage("library/app", "1")
				l.pull(img)
				rule := l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.Status(404, sick.body, sick.header))
				if r := l.get("/v2/library/app/tags/list"); r.status != 502 {
					t.Errorf("tags: %d %s", r.status, r.body)
				}
				if r := l.get("/v2/library/app/referrers/" + string(img.Digest)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
					t.Errorf("referrers: %d %s", r.status, r.header.Get("X-Hubcache"))
				}
				rule.Remove()
				if r := l.get("/v2/library/app/tags/list"); r.status != 200 || !strings.Contains(string(r.body), `"1"`) {
					t.Errorf("tags after it: %d %s", r.status, r.body)
				}
				if r := l.get("/v2/library/app/referrers/" + string(img.Digest)); r.header.Get("X-Hubcache") != "miss" {
					t.Errorf("referrers after it: %s", r.header.Get("X-Hubcache"))
				}
			})
		})
	}
}
