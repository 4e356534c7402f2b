package auth

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const redis = "/v2/library/redis/manifests/7"

func TestConcurrentRequestsShareOneToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(up, f)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { want(t, tr, redis, 200) })
		}
		wg.Wait()
		up.wantRequests(t, "TOKEN", "TOKEN basic repository:library/redis:pull")
		if s := tr.Stats(); s != (Stats{OK: 1}) {
			t.Errorf("stats %+v", s)
		}
		// The challenge is known: another repository costs no 401.
		want(t, tr, "/v2/library/nginx/blobs/sha256:00", 200)
		up.wantRequests(t, "", "TOKEN basic repository:library/nginx:pull", "GET registry-1.docker.io/v2/library/nginx/blobs/sha256:00")
	})
}

func TestRejectedNewTokenIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.registry = func(*http.Request) *http.Response { return up.challenge() }
		tr, _ := transport(up, nil)
		want(t, tr, redis, 401)
		up.wantRequests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
		// The registry rejected a new token. The next one is fetched only when that is due.
		for range 5 {
			want(t, tr, redis, 401)
		}
		if got := up.takeRequests(""); len(got) != 5 {
			t.Errorf("five requests without access were %q", got)
		}
		// A token works once, and then access ends: one new token, one retry, 401.
		up.registry = nil
		time.Sleep(time.Hour)
		want(t, tr, redis, 200)
		up.takeRequests("")
		up.registry = func(*http.Request) *http.Response { return up.challenge() }
		want(t, tr, redis, 401)
		up.wantRequests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
	})
}

// Token services other than Docker Hub's deny a scope themselves. The caller gets the
// registry's own 401 all the same, if the service grants anything.
func TestDeniedScopeIsTheRegistrys401(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.tokens = always(401, "{}")
		tr, _ := transport(up, nil)
		if _, err := get(t, tr, redis); err == nil {
			t.Error("a service that has granted nothing yet denies a repository")
		}
		up.tokens = nil
		want(t, tr, "/v2/library/nginx/manifests/1", 200)
		up.takeRequests("")
		up.tokens = func(r *http.Request) *http.Response {
			if strings.Contains(r.URL.RawQuery, "redis") {
				return reply(401, "{}")
			}
			return up.issue(r)
		}
		want(t, tr, redis, 401)
		want(t, tr, redis, 401)
		up.wantRequests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull", "TOKEN anonymous repository:library/nginx:pull")

		f, _ := secretFile(t, secretText)
		up.tokens = func(r *http.Request) *http.Response {
			if strings.Contains(r.URL.RawQuery, "private") {
				return reply(403, `{"errors":[]}`)
			}
			return up.issue(r)
		}
		tr, _ = transport(up, f)
		want(t, tr, redis, 200)
		want(t, tr, "/v2/their/private/manifests/1", 401)
		want(t, tr, "/v2/library/nginx/manifests/1", 200) // the credential still works
	})
}

func TestCredentialGoesOnlyToRealmsOfTheRegistry(t *testing.T) {
	for _, c := range []struct {
		registry, realm string
		sees            string // "credential", "anonymous" or "nothing"
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io/token", "credential"},
		{"https://registry-1.docker.io", "https://AUTH.Docker.IO./token", "credential"},
		{"https://registry-1.docker.io", "https://auth.docker.io:8443/token", "credential"},
		{"https://registry-1.docker.io", "https://auth.docker.io.evil.example/token", "anonymous"},
		{"https://registry-1.docker.io", "https://evildocker.io/token", "anonymous"},
		{"https://registry-1.docker.io", "https://auth.docker.com/token", "anonymous"},
		{"https://registry-1.docker.io", "http://auth.docker.io/token", "nothing"},
		{"https://registry-1.docker.io", "http://evil.example/token", "nothing"},
		{"https://registry-1.docker.io", "ftp://auth.docker.io/token", "nothing"},
		{"https://registry-1.docker.io", "/token", "nothing"},
		{"https://registry-1.docker.io", "https://u:p@auth.docker.io/token", "nothing"},
		{"https://registry-1.docker.io", "https://auth.docker.io:x/", "nothing"},
		{"https://a.github.io", "https://b.github.io/token", "anonymous"}, // a public suffix
		{"https://r.example.co.uk", "https://evil.co.uk/token", "anonymous"},
		{"http://127.0.0.1:5000", "http://127.0.0.1:5001/token", "credential"},
		{"http://127.0.0.1:5000", "http://127.0.0.2:5001/token", "anonymous"},
		{"http://10.0.0.1", "http://10.0.0.1.example.com/token", "anonymous"},
		{"http://[::1]:5000", "http://[::1]:5001/token", "credential"},
		{"http://localhost:5000", "http://localhost:5001/token", "credential"},
		{"http://localhost:5000", "http://evil.localhost:5001/token", "anonymous"},
		{"http://registry:5000", "http://auth:5001/token", "anonymous"},
		{"http://registry:5000", "https://registry/token", "credential"},
	} {
		t.Run(c.registry+" "+c.realm, func(t *testing.T) {
			sees := "nothing"
			f, _ := secretFile(t, secretText)
			tr, log := transport(nil, f)
			tr.Registry, _ = url.Parse(c.registry)
			tr.Base = roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.URL.Path != "/token" {
					resp := reply(401, "")
					resp.Header.Set("WWW-Authenticate", Challenge{"Bearer", map[string]string{"realm": c.realm}}.String())
					return resp, nil
				}
				sees = "anonymous"
				if r.Header.Get("Authorization") != "" {
					sees = "credential"
				}
				return grantOf("opaque", ""), nil
			})
			for _, name := range []string{"a", "b"} {
				_, err := get(t, tr, c.registry+"/v2/"+name+"/manifests/1")
				if (err != nil) != (c.sees == "nothing") {
					t.Errorf("%v", err)
				}
			}
			if sees != c.sees {
				t.Errorf("the realm saw %s; want %s", sees, c.sees)
			}
			if n := strings.Count(log.String(), "WARN"); n != 1 && c.sees == "anonymous" || n != 0 && c.sees != "anonymous" {
				t.Errorf("warned %d times", n)
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The whole flow over real sockets: when http.Client, or the test itself, follows the
// redirect to a CDN, only the registry and the token service receive Authorization.
func TestAuthorizationIsNeverSentToTheCDN(t *testing.T) {
	var tokens, leaks atomic.Int32
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaks.Add(1)
		}
		io.WriteString(w, "layer")
	}))
	defer cdn.Close()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens.Add(1)
		if user, pass, _ := r.BasicAuth(); user != "someone" || pass != secretText {
			t.Errorf("the token service saw %q", user)
		}
		if q := r.URL.Query(); q.Get("scope") != "repository:library/redis:pull" || q.Get("service") != "hub" {
			t.Errorf("asked for %v", q)
		}
		io.WriteString(w, `{"access_token":"abc","expires_in":300}`)
	}))
	defer service.Close()
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer abc" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+service.URL+`/token",service="hub"`)
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, r, cdn.URL+"/layer", http.StatusTemporaryRedirect)
	}))
	defer registry.Close()

	f, _ := secretFile(t, secretText+"\n")
	u, _ := url.Parse(registry.URL)
	tr := &Transport{Registry: u, Credential: f}
	blob := registry.URL + "/v2/library/redis/blobs/sha256:00"
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(WithScope(t.Context(), "library/redis"), http.MethodGet, blob, nil)
			req.Header.Set("Authorization", "Basic c3R1cGlk")
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); string(body) != "layer" {
				t.Errorf("%s %q", resp.Status, body)
			}
			if req.Header.Get("Authorization") != "Basic c3R1cGlk" {
				t.Error("the caller's request was changed")
			}
		})
	}
	wg.Wait()
	byHand, _ := http.NewRequest(http.MethodGet, cdn.URL+"/layer", nil)
	byHand.Header.Set("Authorization", "Bearer abc")
	resp, err := tr.RoundTrip(byHand)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if tokens.Load() != 1 || leaks.Load() != 0 {
		t.Errorf("%d token requests, the CDN saw Authorization %d times", tokens.Load(), leaks.Load())
	}
}

func TestOtherHostsSeeNothing(t *testing.T) {
	up := newFakeUpstream()
	up.latency = 0
	f, _ := secretFile(t, secretText)
	tr, _ := transport(up, f)
	want(t, tr, redis, 200)
	for _, other := range []string{
		"http://registry-1.docker.io" + redis, // the same name without TLS
		"https://registry-1.docker.io:8443" + redis,
		"https://auth.docker.io" + redis,
		"https://docker.io" + redis,
	} {
		req, _ := http.NewRequest(http.MethodGet, other, nil)
		req.Header.Set("Authorization", "Bearer mine")
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if saw := up.auths[req.URL.Host]; saw != "" {
			t.Errorf("%s saw %q", other, saw)
		}
	}
	want(t, tr, "https://REGISTRY-1.docker.io:443"+redis, 200)
	if up.auths["REGISTRY-1.docker.io:443"] == "" {
		t.Error("the registry by another spelling got no token")
	}
	resp, err := tr.RoundTrip(&http.Request{Method: http.MethodPost, URL: tr.Registry})
	if err == nil {
		resp.Body.Close()
		t.Error("a POST went upstream")
	}
}

// TestProxysBasicChallengeGetsNoCredential: a registry that wants tokens doesn't begin to want
// the credential itself. A 401 that says so is a proxy's.
func TestProxysBasicChallengeGetsNoCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, _ := secretFile(t, secretText)
		tr, log := transport(up, f)
		want(t, tr, redis, 200)
		time.Sleep(time.Hour)
		up.registry = always(401, "<html>", "WWW-Authenticate", `Basic realm="proxy"`)
		want(t, tr, redis, 401)
		if saw := up.auths["registry-1.docker.io"]; !strings.HasPrefix(saw, "Bearer ") {
			t.Errorf("the proxy saw %.6s…", saw)
		}
		if strings.Contains(log.String(), "refused") {
			t.Errorf("log: %s", log)
		}
		up.registry = nil
		want(t, tr, redis, 200)
	})
}
