package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// anonymousTokens is a lab whose token service answers requests without the credential as
// refuse says, whenever that returns a response. The account's own tokens are fine.
func anonymousTokens(t *testing.T, o labOptions, refuse func(repository string) *http.Response) *lab {
	o.intercept = func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if strings.HasPrefix(req.URL.Host, "auth.") && req.Header.Get("Authorization") == "" {
			repository := strings.TrimSuffix(strings.TrimPrefix(req.URL.Query().Get("scope"), "repository:"), ":pull")
			if resp := refuse(repository); resp != nil {
				resp.Request = req
				return resp, nil
			}
		}
		return next.RoundTrip(req)
	}
	if o.policy == nil {
		o.policy = func(p *registry.Policy) { p.TagTTL = new(time.Duration) }
	}
	return newLab(t, o)
}

// jsonAnswer is an answer of a token service.
func jsonAnswer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body))}
}

// byAccount returns the requests for manifests, blobs and lists that were made with the credential.
func (l *lab) byAccount() hubtest.Ledger {
	return l.hub.Ledger().Filter(func(e hubtest.Entry) bool {
		return e.Face == hubtest.Registry && e.Kind != "ping" && e.Account != ""
	})
}

// TestTokenServiceInTroubleMakesNothingPrivate: the token service refuses or fails anonymous
// requests for hours, and the account's tokens are fine. What was cached of a public repository
// is served, by tag and digest. What isn't cached is not fetched with the credential, so that a
// repository that has become private meanwhile gives nothing away.
func TestTokenServiceInTroubleMakesNothingPrivate(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func() *http.Response{
		"401":             func() *http.Response { return jsonAnswer(401, `{"details":"unauthorized"}`) },
		"403":             func() *http.Response { return jsonAnswer(403, `{"errors":[{"code":"DENIED"}]}`) },
		"500":             func() *http.Response { return jsonAnswer(500, `{}`) },
		"no token":        func() *http.Response { return jsonAnswer(200, `{}`) },
		"opaque token":    func() *http.Response { return jsonAnswer(200, `{"token":"opaque"}`) },
		"unreadable":      func() *http.Response { return jsonAnswer(200, `{"token":"a.b.c"}`) },
		"a limit":         func() *http.Response { return jsonAnswer(429, `{}`) },
		"redirect":        func() *http.Response { return jsonAnswer(302, ``) },
		"an empty answer": func() *http.Response { return jsonAnswer(401, ``) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				l := anonymousTokens(t, labOptions{}, func(string) *http.Response {
					if bad.Load() {
						return trouble()
					}
					return nil
				})
				img, other := l.smallImage("corp/app", "1"), l.smallImage("library/other", "1")
				l.pull(img)
				l.pull(other)
				later := l.hub.AddImage("corp/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
				time.Sleep(25 * time.Hour)
				bad.Store(true)
				l.hub.ResetLedger()
				l.hub.SetPrivate("corp/app", true) // and nobody can tell
				for range 5 {
					for _, method := range []string{"HEAD", "GET"} {
						if r := l.do(method, manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
							t.Fatalf("%s of the tag: %d %s %s", method, r.status, r.header.Get("X-Hubcache"), r.body)
						}
					}
					l.pullDigest(img)
					for _, path := range []string{manifestPath(later), "/v2/corp/app/manifests/" + string(later.Digest), blobPath("corp/app", later.Manifests[0].Layers[0].Digest), "/v2/corp/app/tags/list"} {
						if r := l.get(path); r.status < 404 {
							t.Errorf("%s: %d", path, r.status)
						}
					}
					time.Sleep(20 * time.Minute)
				}
				if asked := l.byAccount(); len(asked) > 0 {
					t.Errorf("with the credential:\n%s", asked)
				}
				if s := l.reg.Stats(); s.OverdueVisibilities != 1 || s.OldestVisibility < 25*time.Hour {
					t.Errorf("overdue: %d, of %s", s.OverdueVisibilities, s.OldestVisibility)
				}
				l.hub.SetPrivate("corp/app", false)
				bad.Store(false)
				time.Sleep(20 * time.Minute)
				l.get(manifestPath(img)) // has the visibility renewed
				synctest.Wait()
				for _, i := range []*hubtest.Image{img, later} {
					if r := l.get(manifestPath(i)); r.status != 200 || r.header.Get("X-Hubcache") == "stale" {
						t.Errorf("after it: %d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
					}
					l.pull(i)
				}
				if s := l.reg.Stats(); s.OverdueVisibilities != 0 || s.OldestVisibility != 0 {
					t.Errorf("overdue after it: %d, of %s", s.OverdueVisibilities, s.OldestVisibility)
				}
			})
		})
	}
}

// TestRefusedRepositoryIsPrivateWhileOthersAreGranted: ghcr.io says by a refusal that a
// repository is private. It counts while the service grants another public repository, also
// after a restart.
func TestRefusedRepositoryIsPrivateWhileOthersAreGranted(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var private atomic.Bool
			l := anonymousTokens(t, labOptions{}, func(repository string) *http.Response {
				if private.Load() && repository == "corp/app" {
					return jsonAnswer(403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
				}
				return nil
			})
			img, other := l.smallImage("corp/app", "1"), l.smallImage("library/other", "1")
			l.pull(img)
			l.pull(other)
			time.Sleep(25 * time.Hour)
			private.Store(true)
			if restart {
				l.stop()
				l.start()
			}
			l.get(manifestPath(img))
			synctest.Wait()
			for _, path := range []string{manifestPath(img), "/v2/corp/app/manifests/" + string(img.Digest), blobPath("corp/app", img.Manifests[0].Layers[0].Digest)} {
				if r := l.get(path); r.status != 404 {
					t.Errorf("restart %v: %s: %d %s", restart, path, r.status, r.body)
				}
			}
			l.pull(other)
			private.Store(false)
			time.Sleep(2 * time.Minute)
			l.get(manifestPath(img))
			synctest.Wait()
			l.pull(img)
		})
	}
}

// TestOverdueRepositoryIsFetchedAnonymously: the visibility can't be renewed, and anonymous
// requests work otherwise. What isn't cached comes without the credential.
func TestOverdueRepositoryIsFetchedAnonymously(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{OpaqueTokens: true}, policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		img := l.smallImage("corp/app", "1")
		l.pull(img)
		time.Sleep(25 * time.Hour)
		// The check of the visibility asks for this tag, since the token can't be read.
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Reference: "latest"}, hubtest.Status(503, ""))
		l.hub.ResetLedger()
		later := l.hub.AddImage("corp/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		l.pull(later)
		l.pull(img)
		if r := l.get("/v2/corp/app/tags/list"); r.status != 200 {
			t.Errorf("tags: %d", r.status)
		}
		if asked := l.byAccount(); len(asked) > 0 {
			t.Errorf("with the credential:\n%s", asked)
		}
		if !strings.Contains(l.log.String(), "visibility") {
			t.Error("the log doesn't say so")
		}
		// An anonymous refusal says nothing while nobody can tell.
		l.hub.SetPrivate("corp/app", true)
		time.Sleep(10 * time.Minute)
		if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("a cached tag: %d %s", r.status, r.body)
		}
		last := l.hub.AddImage("corp/app", "3", hubtest.ImageSpec{Layers: hubtest.Layers(1, 6000)})
		for _, path := range []string{manifestPath(last), blobPath("corp/app", last.Manifests[0].Layers[0].Digest)} {
			if r := l.get(path); r.status != 429 {
				t.Errorf("%s: %d %s", path, r.status, r.body)
			}
		}
		if asked := l.byAccount(); len(asked) > 0 {
			t.Errorf("with the credential:\n%s", asked)
		}
		// And when it can be told, it is private.
		l.hub.ClearFaults()
		time.Sleep(10 * time.Minute)
		l.get(manifestPath(img))
		synctest.Wait()
		if r := l.get(manifestPath(img)); r.status != 404 {
			t.Errorf("after it: %d %s", r.status, r.body)
		}
	})
}

// TestOldVisibilityIsRenewedBeforeAnythingIsFetched: a repository that nobody has asked for in a
// week is asked about before something of it comes with the credential. What is cached is
// served at once.
func TestOldVisibilityIsRenewedBeforeAnythingIsFetched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		img := l.smallImage("corp/app", "1")
		l.pull(img)
		later := l.hub.AddImage("corp/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		time.Sleep(7 * 24 * time.Hour)
		l.hub.SetPrivate("corp/app", true)
		l.hub.ResetLedger()
		if r := l.get("/v2/corp/app/manifests/" + string(later.Digest)); r.status == 200 {
			t.Errorf("what has become private: %d", r.status)
		}
		if asked := l.byAccount(); len(asked) > 0 {
			t.Errorf("with the credential:\n%s", asked)
		}
		// The account's quota is used for a public one, as on the first day.
		pub := l.smallImage("corp/pub", "1")
		l.pull(pub)
		time.Sleep(7 * 24 * time.Hour)
		l.hub.ResetLedger()
		if r := l.get(manifestPath(pub)); r.status != 200 || r.header.Get("X-Hubcache") != "revalidated" {
			t.Errorf("%d %s", r.status, r.header.Get("X-Hubcache"))
		}
		if asked := l.byAccount(); len(asked) == 0 {
			t.Errorf("without the credential:\n%s", l.hub.Ledger())
		}
	})
}
