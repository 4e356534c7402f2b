package auth

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	redisTag  = "HEAD registry-1.docker.io/v2/library/redis/manifests/latest"
	redisGet  = "TOKEN anonymous repository:library/redis:pull"
	frontDoor = "GET registry-1.docker.io/v2/"
)

func TestAccess(t *testing.T) {
	claim := func(claims string) func(*http.Request) *http.Response {
		return func(*http.Request) *http.Response { return grantOf(jwt(claims), "300") }
	}
	opaque := func(*http.Request) *http.Response { return grantOf("opaque", "300") }
	for name, c := range map[string]struct {
		tokens func(*http.Request) *http.Response
		fail   error
		front  func(*http.Request) *http.Response // nil: the challenge
		head   func(*http.Request) *http.Response // nil: must not be asked
		want   Visibility                         // Unknown: an error
		sees   []string                           // after the front door
	}{
		"pull":            {tokens: claim(`{"access":[{"type":"repository","name":"library/redis","actions":["pull"]}]}`), want: Public, sees: []string{redisGet}},
		"everything":      {tokens: claim(`{"access":[{"type":"repository","name":"library/redis","actions":["*"]}]}`), want: Public, sees: []string{redisGet}},
		"second entry":    {tokens: claim(`{"access":[{"type":"registry","name":"catalog","actions":["*"]},{"type":"repository","name":"library/redis","actions":["push","pull"]}]}`), want: Public, sees: []string{redisGet}},
		"empty":           {tokens: claim(`{"access":[]}`), want: Private, sees: []string{redisGet}},
		"null":            {tokens: claim(`{"access":null}`), want: Private, sees: []string{redisGet}},
		"absent":          {tokens: claim(`{"iss":"auth.docker.io"}`), want: Private, sees: []string{redisGet}},
		"no actions":      {tokens: claim(`{"access":[{"type":"repository","name":"library/redis","actions":[]}]}`), want: Private, sees: []string{redisGet}},
		"another name":    {tokens: claim(`{"access":[{"type":"repository","name":"library/redis2","actions":["pull"]}]}`), want: Private, sees: []string{redisGet}},
		"another type":    {tokens: claim(`{"access":[{"type":"registry","name":"library/redis","actions":["pull"]}]}`), want: Private, sees: []string{redisGet}},
		"service says no": {tokens: always(401, "{}"), want: Private, sees: []string{redisGet}},

		"opaque, 200": {tokens: opaque, head: always(200, ""), want: Public, sees: []string{redisGet, redisTag}},
		"opaque, 404": {tokens: opaque, head: always(404, ""), want: Public, sees: []string{redisGet, redisTag}},
		"opaque, 307": {tokens: opaque, head: always(307, ""), want: Public, sees: []string{redisGet, redisTag}},
		"opaque, 302": {tokens: opaque, head: always(302, ""), sees: []string{redisGet, redisTag}},
		"opaque, 401": {tokens: opaque, head: always(401, ""), want: Private, sees: []string{redisGet, redisTag}},
		"opaque, 403": {tokens: opaque, head: always(403, ""), want: Private, sees: []string{redisGet, redisTag}},
		"opaque, 429": {tokens: opaque, head: always(429, ""), sees: []string{redisGet, redisTag}},
		"opaque, 503": {tokens: opaque, head: always(503, ""), sees: []string{redisGet, redisTag}},
		"not JSON":    {tokens: claim(`pull`), head: always(200, ""), want: Public, sees: []string{redisGet, redisTag}},
		"odd claim":   {tokens: claim(`{"access":"pull"}`), head: always(401, ""), want: Private, sees: []string{redisGet, redisTag}},
		"null claims": {tokens: claim(`null`), head: always(401, ""), want: Private, sees: []string{redisGet, redisTag}},

		"throttled":   {tokens: always(429, ""), sees: []string{redisGet}},
		"503":         {tokens: always(503, ""), sees: []string{redisGet}},
		"firewall":    {tokens: always(403, "<html>"), sees: []string{redisGet}},
		"unreachable": {fail: errors.New("connection refused"), sees: []string{redisGet}},

		"open registry":           {front: always(200, ""), head: always(200, ""), want: Public, sees: []string{redisTag}},
		"open, absent":            {front: always(200, ""), head: always(404, ""), want: Public, sees: []string{redisTag}},
		"open, private, no token": {front: always(200, ""), head: always(401, ""), want: Private, sees: []string{redisTag}},
		"open, but a token":       {front: always(200, ""), tokens: claim(`{"access":[]}`), head: always(-401, ""), want: Private, sees: []string{redisTag, redisGet}},
		"front door 404":          {front: always(404, "")},
		"front door 503":          {front: always(503, "")},
		"front door 429":          {front: always(429, "", "Retry-After", "9")},
		"Basic, private":          {front: always(401, "", "WWW-Authenticate", "Basic realm=x"), head: always(401, ""), want: Private, sees: []string{redisTag}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.tokens, w.fail = c.tokens, c.fail
				w.registry = func(r *http.Request) *http.Response {
					switch {
					case r.URL.Path == "/v2/" && c.front == nil:
						return w.challenge()
					case r.URL.Path == "/v2/":
						return c.front(r)
					case c.head == nil:
						t.Errorf("%s %s", r.Method, r.URL)
						return reply(500, "")
					}
					if resp := c.head(r); resp.StatusCode != -401 {
						return resp
					}
					return w.challenge()
				}
				f, _ := secretFile(t, secretText)
				tr, _ := transport(w, f)
				got, err := tr.Access(t.Context(), "library/redis")
				if got != c.want || (err == nil) != (c.want != Unknown) {
					t.Errorf("%v, %v; want %v", got, err, c.want)
				}
				if te, ok := errors.AsType[*ThrottledError](err); name == "front door 429" && (!ok || te.RetryAfter != 9*time.Second) {
					t.Errorf("%v; want the registry's Retry-After", err)
				}
				w.requests(t, "", append([]string{frontDoor}, c.sees...)...)
			})
		})
	}
}

func TestAccessOnceForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(w, f)
		want(t, tr, redis, 200) // the account's own token is another
		w.saw("")
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if v, err := tr.Access(t.Context(), "library/redis"); v != Public || err != nil {
					t.Errorf("%v, %v", v, err)
				}
			})
		}
		wg.Wait()
		w.requests(t, "", redisGet, redisTag)
		if _, err := tr.Access(t.Context(), "library/redis"); err != nil {
			t.Error(err)
		}
		w.requests(t, "", redisTag) // the token is at hand
		if saw := w.auths["registry-1.docker.io"]; !strings.HasPrefix(saw, "Bearer ") {
			t.Errorf("the HEAD went out with %q", saw)
		}
	})
}

func TestAccessNeedsNoCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != "" {
				return reply(401, "")
			}
			return w.issue(r)
		}
		f, _ := secretFile(t, "bad")
		tr, _ := transport(w, f)
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
		w.saw("")
		if _, err := tr.Access(ctx, "library/nginx"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second)
		if !slices.Contains(w.saw("TOKEN"), "TOKEN anonymous repository:library/nginx:pull") {
			t.Error("the flight belonged to the caller who left")
		}
	})
}

// Learn asks at the front door, once and without the credential; the first request then
// has its token beforehand.
func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(w, f)
		for range 2 {
			if err := tr.Learn(); err != nil {
				t.Fatal(err)
			}
		}
		if saw := w.auths["registry-1.docker.io"]; saw != "" {
			t.Errorf("the front door saw %q", saw)
		}
		want(t, tr, redis, 200)
		w.requests(t, "", frontDoor, "TOKEN basic repository:library/redis:pull", "GET registry-1.docker.io/v2/library/redis/manifests/7")
	})
}
