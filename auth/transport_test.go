package auth

import (
	"context"
	"errors"
	"fmt"
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

func TestManyRequestsOneToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(w, f)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { want(t, tr, redis, 200) })
		}
		wg.Wait()
		w.requests(t, "TOKEN", "TOKEN basic repository:library/redis:pull")
		if s := tr.Stats(); s != (Stats{OK: 1}) {
			t.Errorf("stats %+v", s)
		}
		// The challenge is known: another repository costs no 401.
		want(t, tr, "/v2/library/nginx/blobs/sha256:00", 200)
		w.requests(t, "", "TOKEN basic repository:library/nginx:pull", "GET registry-1.docker.io/v2/library/nginx/blobs/sha256:00")
	})
}

func TestRenewedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.expiresIn = "5"
		tr, _ := transport(w, nil)
		want(t, tr, redis, 200)
		w.saw("")
		for range 150 { // 37.5 s with what each takes: seven lifetimes
			time.Sleep(200 * time.Millisecond)
			want(t, tr, redis, 200)
		}
		seen := w.saw("")
		tokens := 0
		for _, r := range seen {
			if strings.HasPrefix(r, "TOKEN") {
				tokens++
			}
		}
		if manifests := len(seen) - tokens; manifests != 150 {
			t.Errorf("%d requests for 150 answers: a token was used after its end", manifests)
		}
		if tokens < 7 || tokens > 9 {
			t.Errorf("%d tokens in 37.5 s at 4.5 s each", tokens)
		}
	})
}

func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		tr, _ := transport(w, nil)
		want(t, tr, redis, 200)
		w.saw("")
		w.tokens = always(503, "")
		time.Sleep(280 * time.Second)
		for range 10 {
			want(t, tr, redis, 200)
			time.Sleep(time.Second)
		}
		w.requests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
		time.Sleep(30 * time.Second)
		_, err := get(t, tr, redis)
		if te, ok := errors.AsType[*TokenError](err); !ok || te.Status != 503 || te.Host != "auth.docker.io" {
			t.Errorf("after its end: %v", err)
		}
	})
}

func TestTokenRevokedMidLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		tr, _ := transport(w, nil)
		want(t, tr, redis, 200)
		w.saw("")
		w.revoke()
		want(t, tr, redis, 200)
		w.requests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
		w.revoke()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { want(t, tr, redis, 200) })
		}
		wg.Wait()
		w.requests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
	})
}

func TestNoAccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.registry = func(*http.Request) *http.Response { return w.challenge() }
		tr, _ := transport(w, nil)
		want(t, tr, redis, 401)
		w.requests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
		// A new token was rejected: a newer one is not asked for until it is due.
		for range 5 {
			want(t, tr, redis, 401)
		}
		if got := w.saw(""); len(got) != 5 {
			t.Errorf("no access, five times: %q", got)
		}
		// A token that worked once, and then access ends: one renewal, one retry, 401.
		w.registry = nil
		time.Sleep(time.Hour)
		want(t, tr, redis, 200)
		w.saw("")
		w.registry = func(*http.Request) *http.Response { return w.challenge() }
		want(t, tr, redis, 401)
		w.requests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
	})
}

// TestScopeDenied: token services other than Docker Hub's say no themselves. The
// registry's own 401 is what the caller gets.
func TestScopeDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = always(401, "{}")
		tr, _ := transport(w, nil)
		want(t, tr, redis, 401)
		want(t, tr, redis, 401)
		w.requests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")

		f, _ := secretFile(t, secretText)
		w.tokens = func(r *http.Request) *http.Response {
			if strings.Contains(r.URL.RawQuery, "private") {
				return reply(403, `{"errors":[]}`)
			}
			return w.issue(r)
		}
		tr, _ = transport(w, f)
		want(t, tr, redis, 200)
		want(t, tr, "/v2/their/private/manifests/1", 401)
		want(t, tr, "/v2/library/nginx/manifests/1", 200) // the credential is as good as before
	})
}

func TestRefusedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, `{"details":"incorrect username or password"}`)
			}
			return w.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, log := transport(w, f)
		refused := func(scope int) {
			_, err := get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", scope))
			re, ok := errors.AsType[*RefusedError](err)
			if !ok || re.Username != "someone" || re.Host != "auth.docker.io" {
				t.Fatalf("%d: %v; want a RefusedError", scope, err)
			}
		}
		var wg sync.WaitGroup
		for i := range 500 { // at once
			wg.Go(func() { refused(i) })
		}
		wg.Wait()
		for i := range 500 { // and over most of a minute
			refused(i)
			time.Sleep(100 * time.Millisecond)
		}
		if got := w.saw("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts with a refused credential in a minute", len(got))
		}
		if n := strings.Count(log.String(), "ERROR"); n != 1 {
			t.Errorf("logged %d times: %s", n, log)
		}
		time.Sleep(15 * time.Second)
		for i := range 100 {
			wg.Go(func() { refused(i) })
		}
		wg.Wait()
		if got := w.saw("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts in the second minute", len(got))
		}
		write(t, path, "good\n")
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
		want(t, tr, redis, 200)
		if s := tr.Stats(); s != (Stats{OK: 1, Denied: 2}) {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestRefusedCredentialFileSeenOnUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, "")
			}
			return w.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, _ := transport(w, f)
		if _, err := get(t, tr, redis); err == nil {
			t.Fatal("not refused")
		}
		write(t, path, "good")
		time.Sleep(recheck)
		want(t, tr, redis, 200)
	})
}

// TestRevokedCredential: the tokens at hand go on; a new one is tried once a minute.
func TestRevokedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(w, f)
		want(t, tr, redis, 200)
		w.saw("")
		time.Sleep(2 * time.Minute)
		w.tokens = always(401, "")
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", i)) })
		}
		wg.Wait()
		want(t, tr, redis, 200)
		if got := w.saw("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts", len(got))
		}
	})
}

func TestChangedCredentialAsksAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, path := secretFile(t, "one")
		tr, _ := transport(w, f)
		want(t, tr, redis, 200)
		write(t, path, "two")
		f.Reload()
		want(t, tr, redis, 200)
		if got := w.saw("TOKEN"); len(got) != 2 {
			t.Errorf("the account changed and its tokens did not: %q", got)
		}
	})
}

func TestNoCredentialFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		tr, _ := transport(w, NewFile("someone", t.TempDir()+"/none"))
		_, err := get(t, tr, redis)
		if _, ok := errors.AsType[*FileError](err); !ok {
			t.Errorf("%v; want a FileError", err)
		}
		w.requests(t, "TOKEN") // never anonymously instead: it would be the wrong quota, in silence
	})
}

func TestThrottled(t *testing.T) {
	malformed := func(line string) error {
		_, err := http.ReadResponse(rawReader("HTTP/1.1 429 Too Many Requests\n" + line + "\n"))
		return fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", err)
	}
	for name, c := range map[string]struct {
		answer func(*http.Request) *http.Response
		fail   error
		wait   time.Duration
		abuse  bool
	}{
		"seconds":    {always(429, "{}", "Retry-After", "17"), nil, 17 * time.Second, false},
		"date":       {always(429, "{}", "Retry-After", "Sat, 01 Jan 2000 00:01:40 GMT"), nil, 100 * time.Second, false},
		"a day":      {always(429, "{}", "Retry-After", "86400"), nil, 15 * time.Minute, false},
		"none":       {always(429, "{}"), nil, time.Minute, false},
		"nonsense":   {always(429, "{}", "Retry-After", "soon"), nil, time.Minute, false},
		"abuse":      {always(429, "Too Many Requests (HAP429).", "Retry-After", "60"), nil, time.Minute, true},
		"abuse, raw": {nil, malformed("Too Many Requests (HAP429)."), time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.latency = 0
				f, _ := secretFile(t, secretText)
				tr, _ := transport(w, f)
				want(t, tr, redis, 200)
				w.saw("")
				w.tokens, w.fail = c.answer, c.fail
				// The clock of a bubble starts at 2000-01-01, midnight UTC.
				start := time.Now()
				for range 3 {
					_, err := get(t, tr, "/v2/library/nginx/manifests/1")
					te, ok := errors.AsType[*ThrottledError](err)
					if !ok || te.Host != "auth.docker.io" || te.RetryAfter != c.wait || !te.Until.Equal(start.Add(c.wait)) {
						t.Fatalf("%#v; want %s", err, c.wait)
					}
					if te.Abuse != c.abuse || IsAbuseLimit(err) != c.abuse {
						t.Errorf("abuse limit: %v", te.Abuse)
					}
				}
				want(t, tr, redis, 200) // tokens at hand still work
				w.requests(t, "TOKEN", "TOKEN basic repository:library/nginx:pull")
				w.tokens, w.fail = nil, nil
				time.Sleep(c.wait - time.Millisecond)
				if _, err := get(t, tr, "/v2/library/nginx/manifests/1"); err == nil {
					t.Error("asked before the time")
				}
				time.Sleep(time.Millisecond)
				want(t, tr, "/v2/library/nginx/manifests/1", 200)
				if s := tr.Stats(); s.Throttled != 1 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

func TestCooldownDoublesAndSuccessResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.latency = 0
		tr, _ := transport(w, nil)
		scope := 0
		ask := func() error {
			scope++
			_, err := get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", scope))
			return err
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		w.tokens = always(429, "")
		for _, minutes := range []time.Duration{1, 2, 4, 8, 15, 15} {
			te, ok := errors.AsType[*ThrottledError](ask())
			if !ok || te.RetryAfter != minutes*time.Minute {
				t.Fatalf("%v; want %d min", te, minutes)
			}
			time.Sleep(te.RetryAfter)
		}
		w.tokens = nil
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		w.tokens = always(429, "")
		if te, _ := errors.AsType[*ThrottledError](ask()); te == nil || te.RetryAfter != time.Minute {
			t.Errorf("after a success: %v; want a minute", te)
		}
		// Those under way together are one: it doubles once.
		time.Sleep(time.Minute)
		w.latency = time.Second
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { get(t, tr, fmt.Sprintf("/v2/library/s%d/manifests/1", i)) })
		}
		wg.Wait()
		if te, _ := errors.AsType[*ThrottledError](ask()); te == nil || te.RetryAfter != 2*time.Minute {
			t.Errorf("after ten 429s at once: %v; want two minutes", te)
		}
	})
}

func TestTokenServiceFails(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*http.Request) *http.Response
		fail   error
		status int
	}{
		"500":         {always(500, "oops"), nil, 500},
		"redirect":    {always(302, "", "Location", "https://evil.example/"), nil, 302},
		"firewall":    {always(403, "<html>"), nil, 403},
		"unreachable": {nil, errors.New("connection refused"), 0},
		"not JSON":    {always(200, "<html>"), nil, 200},
		"no token":    {always(200, "{}"), nil, 200},
		"two lines":   {always(200, `{"token":"a\r\nX-Evil: b"}`), nil, 200},
		"too long":    {always(200, `{"token":"`+strings.Repeat("a", maxToken+1)+`"}`), nil, 200},
		"endless":     {always(200, `{"token":"a","x":"`+strings.Repeat("a", maxTokenBody)+`"}`), nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.tokens, w.fail = c.answer, c.fail
				tr, _ := transport(w, nil)
				_, err := get(t, tr, redis)
				te, ok := errors.AsType[*TokenError](err)
				if !ok || te.Host != "auth.docker.io" || te.Status != c.status || IsAbuseLimit(err) {
					t.Errorf("%v; want a TokenError, status %d", err, c.status)
				}
				if s := tr.Stats(); s != (Stats{Error: 1}) {
					t.Errorf("stats %+v", s)
				}
				w.requests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
			})
		})
	}
}

func TestSlowTokenServiceAndImpatientCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		tr, _ := transport(w, nil)
		want(t, tr, redis, 200)
		w.latency = time.Hour
		start := time.Now()
		_, err := get(t, tr, "/v2/library/nginx/manifests/1")
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != fetchTimeout {
			t.Errorf("%v after %s", err, took)
		}
		// The one who started the fetch leaves; the one who joined it gets the token.
		w.latency = 3 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, registryURL+"/v2/library/nginx/manifests/1", nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := tr.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient: %v", err)
			}
		})
		synctest.Wait()
		w.saw("")
		want(t, tr, "/v2/library/nginx/manifests/1", 200)
		wg.Wait()
		w.requests(t, "TOKEN")
	})
}

func TestRealms(t *testing.T) {
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

// TestOverSockets is the whole flow on loopback: the redirect to a CDN, by http.Client
// and by hand, shows Authorization to nobody but the registry and the token service.
func TestOverSockets(t *testing.T) {
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
			req, _ := http.NewRequest(http.MethodGet, blob, nil)
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
	w := newWorld()
	w.latency = 0
	f, _ := secretFile(t, secretText)
	tr, _ := transport(w, f)
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
		if saw := w.auths[req.URL.Host]; saw != "" {
			t.Errorf("%s saw %q", other, saw)
		}
	}
	want(t, tr, "https://REGISTRY-1.docker.io:443"+redis, 200)
	if w.auths["REGISTRY-1.docker.io:443"] == "" {
		t.Error("the registry by another spelling got no token")
	}
	resp, err := tr.RoundTrip(&http.Request{Method: http.MethodPost, URL: tr.Registry})
	if err == nil {
		resp.Body.Close()
		t.Error("a POST went upstream")
	}
}

func TestBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.scheme = "Basic"
		f, path := secretFile(t, "bad")
		tr, _ := transport(w, f)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := get(t, tr, redis); err == nil || !strings.Contains(err.Error(), "registry-1.docker.io refused") {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if got := w.saw("GET"); len(got) != 101 { // each its 401, and one with the password
			t.Errorf("%d requests", len(got))
		}
		write(t, path, secretText)
		f.Reload()
		want(t, tr, redis, 200)
		w.requests(t, "", "GET registry-1.docker.io"+redis)
		// A known user's 401 is about the repository.
		w.registry = func(*http.Request) *http.Response { return w.challenge() }
		want(t, tr, redis, 401)
		w.registry = nil
		want(t, tr, redis, 200)

		tr, _ = transport(w, nil)
		w.saw("")
		want(t, tr, redis, 401)
		w.requests(t, "", "GET registry-1.docker.io"+redis)
	})
}

func TestManyScopes(t *testing.T) {
	w := newWorld()
	w.latency = 0
	tr, _ := transport(w, nil)
	for i := range maxTokens + 100 {
		want(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", i), 200)
		if i%1000 == 0 {
			w.saw("")
		}
	}
	if n := tr.tokens.Len(); n != maxTokens {
		t.Errorf("%d tokens kept", n)
	}
}

func TestLifetime(t *testing.T) {
	for given, want := range map[string]time.Duration{
		``: time.Minute, `"300"`: 5 * time.Minute, `300`: 5 * time.Minute, `0`: time.Minute, `-5`: time.Minute,
		`1e300`: time.Hour, `99999999999999999999`: time.Hour, `0.001`: time.Second, `null`: time.Minute, `59.5`: 59500 * time.Millisecond,
	} {
		body := `{"token":"a"}`
		if given != "" {
			body = `{"token":"a","expires_in":` + given + `}`
		}
		k, err := parseToken([]byte(body))
		if err != nil || k.lifetime != want {
			t.Errorf("expires_in %s: %v, %v; want %s", given, k, err, want)
		}
	}
}

func TestScope(t *testing.T) {
	for path, want := range map[string]string{
		"/v2/":                                         "",
		"/v2/library/redis/manifests/7":                "repository:library/redis:pull",
		"/v2/redis/tags/list":                          "repository:redis:pull",
		"/v2/a/b/c/blobs/sha256:00":                    "repository:a/b/c:pull",
		"/v2/a/b/referrers/sha256:00":                  "repository:a/b:pull",
		"/v2/a/manifests/manifests/latest":             "repository:a/manifests:pull",
		"/v2/a b/manifests/7":                          "",
		"/v2/a:pull repository:secret/manifests/7":     "",
		"/v2/manifests/7":                              "",
		"/v2/a/blobs/uploads/x":                        "",
		"/v2/../a/manifests/7":                         "",
		"/elsewhere/v2/a/manifests/7":                  "",
		"/v2/a__b/c-d/manifests/7":                     "repository:a__b/c-d:pull",
		"/v2/a/manifests/7\n/v2/b/manifests/7":         "",
		"/v2/library/redis/manifests/sha256:00/oh/no/": "",
	} {
		if got := scopeOf(path); got != want {
			t.Errorf("%q: %q; want %q", path, got, want)
		}
	}
}
