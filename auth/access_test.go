package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	headRedisLatest = "HEAD registry-1.docker.io/v2/library/redis/manifests/latest"
	getRedisLatest  = "GET registry-1.docker.io/v2/library/redis/manifests/latest"
	redisToken      = "TOKEN anonymous repository:library/redis:pull"
	getV2           = "GET registry-1.docker.io/v2/"
)

func TestAccessReportsWhatAnonymousClientsMayPull(t *testing.T) {
	payload := func(claims string) func(*http.Request) *http.Response {
		return func(*http.Request) *http.Response { return grantOf(jwt(claims), "300") }
	}
	manifest := func(status int) func(*http.Request) *http.Response {
		return always(status, "", "Docker-Content-Digest", "sha256:00")
	}
	unknown, nameUnknown := always(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), always(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`)
	denied := always(403, `{"errors":[{"code":"DENIED"}]}`)
	insufficient := always(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`, "WWW-Authenticate", `Bearer realm="`+realmURL+`",service="registry.docker.io",error="insufficient_scope"`)
	basic := always(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`, "WWW-Authenticate", "Basic realm=x")
	opaque := func(*http.Request) *http.Response { return grantOf("opaque", "300") }
	for name, c := range map[string]struct {
		tokens func(*http.Request) *http.Response
		fail   error
		v2     func(*http.Request) *http.Response // answers to /v2/; nil: the challenge
		head   func(*http.Request) *http.Response // answers to the HEAD; nil: it must not be sent
		want   Visibility                         // Unknown: an error
		sees   []string                           // requests after that to /v2/
	}{
		"pull":            {tokens: payload(`{"access":[{"type":"repository","name":"library/redis","actions":["pull"]}]}`), want: Public, sees: []string{redisToken}},
		"all actions":     {tokens: payload(`{"access":[{"type":"repository","name":"library/redis","actions":["*"]}]}`), want: Public, sees: []string{redisToken}},
		"second entry":    {tokens: payload(`{"access":[{"type":"registry","name":"catalog","actions":["*"]},{"type":"repository","name":"library/redis","actions":["push","pull"]}]}`), want: Public, sees: []string{redisToken}},
		"empty":           {tokens: payload(`{"access":[]}`), want: Private, sees: []string{redisToken}},
		"null":            {tokens: payload(`{"access":null}`), want: Private, sees: []string{redisToken}},
		"no actions":      {tokens: payload(`{"access":[{"type":"repository","name":"library/redis","actions":[]}]}`), want: Private, sees: []string{redisToken}},
		"another name":    {tokens: payload(`{"access":[{"type":"repository","name":"library/redis2","actions":["pull"]}]}`), want: Private, sees: []string{redisToken}},
		"another type":    {tokens: payload(`{"access":[{"type":"registry","name":"library/redis","actions":["pull"]}]}`), want: Private, sees: []string{redisToken}},
		"service says no": {tokens: always(401, "{}"), sees: []string{redisToken}},

		"opaque, 200": {tokens: opaque, head: manifest(200), want: Public, sees: []string{redisToken, headRedisLatest}},
		"opaque, 404": {tokens: opaque, head: unknown, want: Public, sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, 307": {tokens: opaque, head: manifest(307), want: Public, sees: []string{redisToken, headRedisLatest}},
		"opaque, 302": {tokens: opaque, head: manifest(302), sees: []string{redisToken, headRedisLatest}},
		"opaque, 401": {tokens: opaque, head: insufficient, want: Private, sees: []string{redisToken, headRedisLatest}},
		"opaque, 403": {tokens: opaque, head: denied, sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, 429": {tokens: opaque, head: always(429, ""), sees: []string{redisToken, headRedisLatest}},
		"opaque, 503": {tokens: opaque, head: always(503, ""), sees: []string{redisToken, headRedisLatest}},
		"not JSON":    {tokens: payload(`pull`), head: manifest(200), want: Public, sees: []string{redisToken, headRedisLatest}},
		"not a list":  {tokens: payload(`{"access":"pull"}`), head: insufficient, want: Private, sees: []string{redisToken, headRedisLatest}},
		"no claim":    {tokens: payload(`{"iss":"auth.docker.io"}`), head: manifest(200), want: Public, sees: []string{redisToken, headRedisLatest}},
		"absent":      {tokens: payload(`{"iss":"auth.docker.io"}`), head: insufficient, want: Private, sees: []string{redisToken, headRedisLatest}},
		"null claims": {tokens: payload(`null`), head: insufficient, want: Private, sees: []string{redisToken, headRedisLatest}},

		// What stands before a registry says nothing of a repository.
		"opaque, portal":          {tokens: opaque, head: always(200, "<html>"), sees: []string{redisToken, headRedisLatest}},
		"opaque, invalid token":   {tokens: opaque, head: always(401, "", "WWW-Authenticate", `Bearer realm="`+realmURL+`",service="registry.docker.io",error="invalid_token"`), sees: []string{redisToken, headRedisLatest, redisToken, headRedisLatest}},
		"opaque, no such name":    {tokens: opaque, head: nameUnknown, want: Private, sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, firewall's 401":  {tokens: opaque, head: always(401, ""), sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, firewall's 403":  {tokens: opaque, head: always(403, "<html>"), sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, firewall's 404":  {tokens: opaque, head: always(404, "<html>"), sees: []string{redisToken, headRedisLatest, getRedisLatest}},
		"opaque, a gateway's 404": {tokens: opaque, head: always(404, "{}"), sees: []string{redisToken, headRedisLatest, getRedisLatest}},

		"throttled":      {tokens: always(429, ""), sees: []string{redisToken}},
		"503":            {tokens: always(503, ""), sees: []string{redisToken}},
		"firewall's 403": {tokens: always(403, "<html>"), sees: []string{redisToken}},
		"unreachable":    {fail: errors.New("connection refused"), sees: []string{redisToken}},

		"open registry":           {v2: always(200, ""), head: manifest(200), want: Public, sees: []string{headRedisLatest}},
		"open, absent":            {v2: always(200, ""), head: unknown, want: Public, sees: []string{headRedisLatest, getRedisLatest}},
		"open, private, no token": {v2: always(200, ""), head: basic, sees: []string{headRedisLatest, getRedisLatest, headRedisLatest, getRedisLatest}},
		"open, but a token":       {v2: always(200, ""), tokens: payload(`{"access":[]}`), head: always(-401, ""), want: Private, sees: []string{headRedisLatest, redisToken}},
		"/v2/ says 404":           {v2: always(404, "")},
		"/v2/ says 503":           {v2: always(503, "")},
		"/v2/ says 429":           {v2: always(429, "", "Retry-After", "9")},
		"Basic, private":          {v2: basic, head: basic, sees: []string{headRedisLatest, getRedisLatest}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := newFakeUpstream()
				up.tokens, up.fail = c.tokens, c.fail
				up.registry = func(r *http.Request) *http.Response {
					switch {
					case r.URL.Path == "/v2/" && c.v2 == nil:
						return up.challenge()
					case r.URL.Path == "/v2/":
						return c.v2(r)
					case c.head == nil:
						t.Errorf("%s %s", r.Method, r.URL)
						return reply(500, "")
					}
					if resp := c.head(r); resp.StatusCode != -401 { // -401: the challenge
						return resp
					}
					return up.challenge()
				}
				f, _ := secretFile(t, secretText)
				tr, _ := transport(up, f)
				got, err := tr.Access(t.Context(), "library/redis")
				if got != c.want || (err == nil) != (c.want != Unknown) {
					t.Errorf("%v, %v; want %v", got, err, c.want)
				}
				if te, ok := errors.AsType[*ThrottledError](err); name == "/v2/ says 429" && (!ok || te.RetryAfter != 9*time.Second) {
					t.Errorf("%v; want the registry's Retry-After", err)
				}
				up.wantRequests(t, "", append([]string{getV2}, c.sees...)...)
			})
		})
	}
}

// TestRefusalCountsOnlyWhileOthersAreGranted: a refusal means that a repository is private while
// another repository, which is known to be public, is granted; and nothing while that one is
// refused as well, or can't be asked for.
func TestRefusalCountsOnlyWhileOthersAreGranted(t *testing.T) {
	opaque := always(200, `{"token":"opaque","expires_in":300}`)
	challenge := func(params string) func(*http.Request) *http.Response {
		return always(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`, "WWW-Authenticate", params)
	}
	bearer := challenge(`Bearer realm="` + realmURL + `",service="registry.docker.io"`)
	manifest := always(200, "", "Docker-Content-Digest", "sha256:00")
	denied := always(403, `{"errors":[{"code":"DENIED"}]}`)
	for name, c := range map[string]struct {
		v2              func(*http.Request) *http.Response
		tokens, head    func(*http.Request) *http.Response // for the refused repository
		tokens2, broken func(*http.Request) *http.Response // for the other one: granted, and in trouble
		head2           func(*http.Request) *http.Response
		atRegistry      bool // it is the registry that is in trouble
	}{
		"token service, 401":  {v2: bearer, tokens: always(401, `{"details":"unauthorized"}`), head: bearer, tokens2: opaque, broken: always(401, `{"details":"unauthorized"}`)},
		"token service, 403":  {v2: bearer, tokens: denied, head: bearer, tokens2: opaque, broken: denied},
		"token service, JWT":  {v2: bearer, tokens: denied, head: bearer, tokens2: always(200, `{"token":"`+jwt(`{"access":[{"type":"repository","name":"library/nginx","actions":["pull"]}]}`)+`"}`), broken: always(200, `{"token":"`+jwt(`{"access":[]}`)+`"}`)},
		"token service, 503":  {v2: bearer, tokens: denied, head: bearer, tokens2: opaque, broken: always(503, "")},
		"registry, 403":       {v2: bearer, tokens: opaque, head: denied, tokens2: opaque, head2: manifest, broken: denied, atRegistry: true},
		"registry, 401":       {v2: bearer, tokens: opaque, head: bearer, tokens2: opaque, head2: manifest, broken: bearer, atRegistry: true},
		"registry with Basic": {v2: challenge("Basic realm=x"), head: challenge("Basic realm=x"), head2: manifest, broken: always(503, ""), atRegistry: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, healthy := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					up := newFakeUpstream()
					up.tokens = func(r *http.Request) *http.Response {
						switch other := strings.Contains(r.URL.RawQuery, "nginx"); {
						case other && !healthy && !c.atRegistry:
							return c.broken(r)
						case other:
							return c.tokens2(r)
						}
						return c.tokens(r)
					}
					up.registry = func(r *http.Request) *http.Response {
						switch other := strings.Contains(r.URL.Path, "nginx"); {
						case r.URL.Path == "/v2/":
							return c.v2(r)
						case other && !healthy && c.atRegistry:
							return c.broken(r)
						case other:
							return c.head2(r)
						}
						return c.head(r)
					}
					tr, _ := transport(up, nil)
					if v, err := tr.Access(t.Context(), "library/redis"); v != Unknown || err == nil {
						t.Errorf("without a repository to compare with: %v, %v", v, err)
					}
					time.Sleep(time.Minute)
					tr, _ = transport(up, nil)
					tr.Public = func() []string { return []string{"library/redis", "library/nginx"} }
					v, err := tr.Access(t.Context(), "library/redis")
					if healthy && (v != Private || err != nil) || !healthy && (v != Unknown || err == nil) {
						t.Errorf("healthy: %v, %v, %v", healthy, v, err)
					}
				})
			}
		})
	}
}

// TestRefusedNamesDontDoubleTheTokenRequests: invented names are refused one after the other,
// and the comparison with a public repository is made once in ten seconds.
func TestRefusedNamesDontDoubleTheTokenRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.latency = 0
		up.tokens = func(r *http.Request) *http.Response {
			if strings.Contains(r.URL.RawQuery, "invented") {
				return reply(403, `{"errors":[{"code":"DENIED"}]}`)
			}
			return up.issue(r)
		}
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200) // which is what the others are compared with
		up.takeRequests("")
		for i := range 100 {
			want(t, tr, fmt.Sprintf("/v2/invented/name%d/manifests/1", i), 401)
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(up.takeRequests("TOKEN")); n > 102 {
			t.Errorf("%d token requests for 100 names", n)
		}
	})
}

// TestRegistryThatContradictsTheTokenIsInTrouble: a 401 to a token that grants the repository
// says nothing about the repository, unless the registry says that the right is missing.
func TestRegistryThatContradictsTheTokenIsInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for problem, status := range map[string]int{"": 0, `,error="insufficient_scope"`: 401} {
			up := newFakeUpstream()
			up.tokens = always(200, `{"token":"`+jwt(`{"access":[{"type":"repository","name":"library/redis","actions":["pull"]}]}`)+`"}`)
			up.registry = always(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`, "WWW-Authenticate", `Bearer realm="`+realmURL+`",service="x"`+problem)
			tr, _ := transport(up, nil)
			got, err := get(t, tr, redis)
			if te, ok := errors.AsType[*TokenError](err); got != status || ok != (status == 0) || ok && te.Status != 401 {
				t.Errorf("%q: %d, %v", problem, got, err)
			}
		}
	})
}

func TestConcurrentAccessChecksShareRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(up, f)
		want(t, tr, redis, 200) // with the account's own token, which is another
		up.takeRequests("")
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if v, err := tr.Access(t.Context(), "library/redis"); v != Public || err != nil {
					t.Errorf("%v, %v", v, err)
				}
			})
		}
		wg.Wait()
		up.wantRequests(t, "", redisToken, headRedisLatest)
		if _, err := tr.Access(t.Context(), "library/redis"); err != nil {
			t.Error(err)
		}
		up.wantRequests(t, "", headRedisLatest) // the token is cached
		if saw := up.auths["registry-1.docker.io"]; !strings.HasPrefix(saw, "Bearer ") {
			t.Errorf("the HEAD was sent with %q", saw)
		}
	})
}

func TestAccessNeedsNoCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != "" {
				return reply(401, "")
			}
			return up.issue(r)
		}
		f, _ := secretFile(t, "bad")
		tr, _ := transport(up, f)
		if _, err := get(t, tr, redis); err == nil {
			t.Fatal("not refused")
		}
		if v, err := tr.Access(t.Context(), "library/redis"); v != Public || err != nil {
			t.Errorf("while the credential is refused: %v, %v", v, err)
		}
		for _, name := range []string{"", "/", "a b", "a:pull", "../a", "A", "a/"} {
			if v, err := tr.Access(t.Context(), name); v != Unknown || err == nil {
				t.Errorf("%q: %v", name, v)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		up.takeRequests("")
		if _, err := tr.Access(ctx, "library/nginx"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second)
		if !slices.Contains(up.takeRequests("TOKEN"), "TOKEN anonymous repository:library/nginx:pull") {
			t.Error("the check ended with the caller that gave up")
		}
	})
}

// After Learn the first request gets its token beforehand, and is sent once.
func TestLearnAsksOnceWithoutCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(up, f)
		for range 2 {
			if err := tr.Learn(); err != nil {
				t.Fatal(err)
			}
		}
		if saw := up.auths["registry-1.docker.io"]; saw != "" {
			t.Errorf("/v2/ was asked with %q", saw)
		}
		want(t, tr, redis, 200)
		up.wantRequests(t, "", getV2, "TOKEN basic repository:library/redis:pull", "GET registry-1.docker.io/v2/library/redis/manifests/7")
	})
}

func TestRegistryInFolderIsAskedThere(t *testing.T) {
	base, err := url.Parse("https://host.test/hub")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	tr := &Transport{Registry: base, Base: roundTrip(func(r *http.Request) (*http.Response, error) {
		asked++
		if !strings.HasPrefix(r.URL.Path, "/hub/v2/") {
			t.Errorf("asked %s", r.URL.Path)
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("")), Header: http.Header{"Docker-Content-Digest": {"sha256:00"}}, Request: r}, nil
	})}
	if v, err := tr.Access(t.Context(), "library/redis"); v != Public || asked == 0 {
		t.Errorf("%v, %v", v, err)
	}
}
