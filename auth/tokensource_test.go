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

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.expiresIn = "5"
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200)
		up.takeRequests("")
		for range 150 { // 37.5 s with their latency, which is seven lifetimes
			time.Sleep(200 * time.Millisecond)
			want(t, tr, redis, 200)
		}
		seen := up.takeRequests("")
		tokens := 0
		for _, r := range seen {
			if strings.HasPrefix(r, "TOKEN") {
				tokens++
			}
		}
		if manifests := len(seen) - tokens; manifests != 150 {
			t.Errorf("%d requests for 150 answers: an expired token was used", manifests)
		}
		if tokens < 7 || tokens > 9 {
			t.Errorf("%d tokens in 37.5 s at 4.5 s each", tokens)
		}
	})
}

func TestTokenIsUsedToItsEndWhenRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200)
		up.takeRequests("")
		up.tokens = always(503, "")
		time.Sleep(280 * time.Second)
		for range 10 {
			want(t, tr, redis, 200)
			time.Sleep(time.Second)
		}
		up.wantRequests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
		time.Sleep(30 * time.Second)
		_, err := get(t, tr, redis)
		if te, ok := errors.AsType[*TokenError](err); !ok || te.Status != 503 || te.Host != "auth.docker.io" {
			t.Errorf("after it expired: %v", err)
		}
	})
}

func TestRevokedTokenIsReplacedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200)
		up.takeRequests("")
		up.revoke()
		want(t, tr, redis, 200)
		up.wantRequests(t, "", "GET registry-1.docker.io"+redis, "TOKEN anonymous repository:library/redis:pull", "GET registry-1.docker.io"+redis)
		up.revoke()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { want(t, tr, redis, 200) })
		}
		wg.Wait()
		up.wantRequests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
	})
}

func TestUnusableAnswerIsATokenError(t *testing.T) {
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
				up := newFakeUpstream()
				up.tokens, up.fail = c.answer, c.fail
				tr, _ := transport(up, nil)
				_, err := get(t, tr, redis)
				te, ok := errors.AsType[*TokenError](err)
				if !ok || te.Host != "auth.docker.io" || te.Status != c.status || IsAbuseLimit(err) {
					t.Errorf("%v; want a TokenError, status %d", err, c.status)
				}
				if s := tr.Stats(); s != (Stats{Error: 1}) {
					t.Errorf("stats %+v", s)
				}
				up.wantRequests(t, "TOKEN", "TOKEN anonymous repository:library/redis:pull")
			})
		})
	}
}

func TestTokenFetchHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200)
		up.latency = time.Hour
		start := time.Now()
		_, err := get(t, tr, "/v2/library/nginx/manifests/1")
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != fetchTimeout {
			t.Errorf("%v after %s", err, took)
		}
		// The caller that started the fetch gives up. The one that joined it gets the token.
		up.latency = 3 * time.Second
		ctx, cancel := context.WithTimeout(WithScope(t.Context(), "library/nginx"), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, registryURL+"/v2/library/nginx/manifests/1", nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := tr.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the caller that gave up: %v", err)
			}
		})
		synctest.Wait()
		up.takeRequests("")
		want(t, tr, "/v2/library/nginx/manifests/1", 200)
		wg.Wait()
		up.wantRequests(t, "TOKEN")
	})
}

func TestTokenCacheIsBounded(t *testing.T) {
	up := newFakeUpstream()
	up.latency = 0
	tr, _ := transport(up, nil)
	for i := range maxTokens + 100 {
		want(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", i), 200)
		if i%1000 == 0 {
			up.takeRequests("")
		}
	}
	if n := tr.tokens.cache.fresh.Len() + tr.tokens.cache.proven.Len(); n != maxProven {
		t.Errorf("%d tokens kept", n)
	}
}

// TestInventedNamesPushNoTokenOut: tokens for names that clients invent don't take the place
// of those with which something was read.
func TestInventedNamesPushNoTokenOut(t *testing.T) {
	up := newFakeUpstream()
	up.latency = 0
	tr, _ := transport(up, nil)
	real := []string{"/v2/library/redis/manifests/7", "/v2/library/nginx/manifests/1", "/v2/coop/app/manifests/1"}
	for _, path := range real {
		want(t, tr, path, 200)
	}
	up.registry = func(req *http.Request) *http.Response {
		if strings.Contains(req.URL.Path, "invented") {
			return reply(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`)
		}
		return up.checkAuthorization(req)
	}
	for i := range 2 * maxTokens {
		want(t, tr, fmt.Sprintf("/v2/invented/r%d/manifests/1", i), 404)
	}
	up.takeRequests("")
	for _, path := range real {
		want(t, tr, path, 200)
	}
	if got := up.takeRequests("TOKEN"); len(got) > 0 {
		t.Errorf("fetched again: %v", got)
	}
	if n := tr.tokens.cache.fresh.Len() + tr.tokens.cache.proven.Len(); n > maxTokens {
		t.Errorf("%d tokens kept", n)
	}
}

// TestTokenIsNotFetchedForNobody: a request to the token service ends when nobody waits for it.
func TestTokenIsNotFetchedForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, nil)
		want(t, tr, redis, 200) // the challenge is known
		ended := make(chan error, 2)
		tr.tokens.base = roundTripper(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			ended <- context.Cause(req.Context())
			return nil, req.Context().Err()
		})
		for _, f := range []func(context.Context) error{
			func(ctx context.Context) error { _, err := tr.Access(ctx, "coop/app"); return err },
			func(ctx context.Context) error {
				req, _ := http.NewRequestWithContext(WithScope(ctx, "coop/other"), http.MethodGet, registryURL+"/v2/coop/other/manifests/1", nil)
				_, err := tr.RoundTrip(req)
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			start := time.Now()
			if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			if <-ended; time.Since(start) > time.Second {
				t.Errorf("it went on for %s", time.Since(start))
			}
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
