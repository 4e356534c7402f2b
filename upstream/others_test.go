package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/auth"
)

// board is Others in memory.
type board struct {
	mu    sync.Mutex // guards known
	known map[string]Limits
}

func (b *board) Limits(_ context.Context, whose string) Limits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known[whose]
}

func (b *board) SetLimits(_ context.Context, whose string, l Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.known[whose]
	if old.Pulls, old.All = max(old.Pulls, l.Pulls), max(old.All, l.All); l.Limit > 0 {
		l.Pulls, l.All = old.Pulls, old.All
		old = l
	}
	b.known[whose] = old
}

// TestOneLimitIsMetOnceByAll: what one client has been told of its limits, those of the same account know.
// An anonymous one tells only who has the same address, which it knows by the headers of the registry.
func TestOneLimitIsMetOnceByAll(t *testing.T) {
	var (
		mu    sync.Mutex
		asked int
		limit func(http.Header) (status int, body string)
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/v2/" { // Basic, so that no token is needed
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked++
		status, body := limit(w.Header())
		if w.Header().Set("Content-Type", "application/json"); strings.HasPrefix(body, "Too") {
			w.Header().Set("Content-Type", "text/plain")
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	defer server.Close()
	base, _ := url.Parse(server.URL)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	quota := func(h http.Header, left string) {
		h.Set("ratelimit-limit", "100;w=3600")
		h.Set("ratelimit-remaining", left+";w=3600")
		h.Set("docker-ratelimit-source", "192.0.2.1")
	}
	pulls := func(h http.Header) (int, string) {
		quota(h, "0")
		h.Set("Retry-After", "3600")
		return http.StatusTooManyRequests, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`
	}
	abused := func(h http.Header) (int, string) {
		h.Set("Retry-After", "60")
		return http.StatusTooManyRequests, "Too Many Requests (HAP429)."
	}
	for name, c := range map[string]struct {
		account bool
		answer  func(http.Header) (int, string)
		blobs   bool // they are limited too
		alone   bool // nobody is told
	}{
		"an account's pulls":             {account: true, answer: pulls},
		"an account's requests":          {account: true, answer: abused, blobs: true},
		"an address's pulls":             {answer: pulls},
		"requests of an unknown address": {answer: abused, blobs: true, alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := &board{known: map[string]Limits{}}
			client := func() *Client {
				o := Options{URL: base, Transport: http.DefaultTransport, Others: b}
				if c.account {
					o.Credential = auth.NewFile("alice", password)
				}
				client, err := New(o)
				if err != nil {
					t.Fatal(err)
				}
				return client
			}
			one, two := client(), client()
			if !c.account && !c.alone { // both know their address
				limit = func(h http.Header) (int, string) {
					quota(h, "9")
					return http.StatusNotFound, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`
				}
				one.Resolve(t.Context(), "library/redis", Manifests, "7")
				two.Resolve(t.Context(), "library/redis", Manifests, "7")
			}
			limit, asked = c.answer, 0
			for i, client := range []*Client{one, two} {
				_, err := client.Manifest(t.Context(), "library/redis", "7")
				u, ok := errors.AsType[*Error](err)
				if !ok || u.Cause != Throttled || u.RetryAfter < 30*time.Second {
					t.Errorf("client %d: %v", i, err)
				}
			}
			if want := map[bool]int{true: 2, false: 1}[c.alone]; asked != want {
				t.Errorf("the registry has been asked %d times", asked)
			}
			if blocked := two.Down() != nil; blocked != c.blobs {
				t.Errorf("blobs are blocked: %t", blocked)
			}
			if q := two.Stats().RateLimit; c.account && strings.Contains(name, "pulls") && (q == nil || q.Remaining != 0 || q.Limit != 100) {
				t.Errorf("the second knows the quota as %+v", q)
			}
		})
	}
}
