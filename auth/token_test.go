package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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
		ctx, cancel := context.WithTimeout(WithScope(t.Context(), "library/nginx"), time.Second)
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
	if n := tr.tokens.cache.Len(); n != maxTokens {
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
