package auth

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"
)

// Transport authorises GET and HEAD requests to one registry. Set its exported fields
// before the first use and leave them alone after; don't copy it. All methods are safe
// for concurrent use.
type Transport struct {
	Registry   *url.URL          // whose requests are authorised: scheme, host and port must match; nil: none
	Credential *File             // nil: anonymous
	Base       http.RoundTripper // carries requests to registry and token service; nil: http.DefaultTransport
	Log        *slog.Logger      // nil: slog.Default()

	once    sync.Once
	flights singleflight.Group // token fetches and access verdicts, by key
	alone   chan struct{}      // held by the one request that tries a credential of unknown worth

	mu        sync.Mutex // guards what follows
	challenge *Challenge // the registry's, once it has sent one; never changed in place
	tokens    *simplelru.LRU[string, *token]
	login     login
	throttled throttled
	stats     Stats
	warned    string // the last realm that got no credential
}

// Stats counts token requests by what came of them. What a cool-down or a refusal
// answered without a request is not in it.
type Stats struct {
	OK        uint64
	Denied    uint64 // the credential was refused, or the scope
	Throttled uint64 // 429
	Error     uint64 // no usable answer
}

// Stats returns the counts since the Transport's first use.
func (t *Transport) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// RoundTrip sends a clone of req with what the registry wants to see for the repository that
// WithScope put into its context. The first 401
// teaches it how the registry challenges; from then on a repository's first request
// gets its token beforehand. A 401 to a token from the cache is answered once with a
// new token and once more with the request; any other 401 is returned as the response,
// and means that there is no access.
//
// A request for another host than the registry's goes out without Authorization,
// whatever the caller or a redirecting client put there.
//
// Errors: *RefusedError, *ThrottledError, *TokenError, *FileError, the request's
// context's, and those of Base.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead && req.Method != "" {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("auth: %s: only GET and HEAD are sent upstream", req.Method)
	}
	if t.Registry == nil || origin(req.URL) != origin(t.Registry) {
		return t.base().RoundTrip(with(req, ""))
	}
	resp, g, err := t.send(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !t.again(resp, g) {
		return resp, err
	}
	drain(resp)
	resp, g, err = t.send(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		t.again(resp, g)
	}
	return resp, err
}

// grant is what a request was sent with.
type grant struct {
	challenge *Challenge // as known when it was sent; nil: none yet
	header    string     // Authorization; "": none
	cred      Credential // with Basic
	key       string     // of token
	token     *token     // nil: none
	fresh     bool       // token was fetched for this very request
}

// again learns from a 401, and reports whether the request is worth repeating.
func (t *Transport) again(resp *http.Response, g grant) bool {
	known := t.learn(resp.Header)
	switch {
	case known == nil:
		return false
	case known != g.challenge:
		return known.Scheme == "bearer" || t.Credential != nil
	case g.token == nil || g.token.value == "" || g.token.rejected.Load():
		return false
	case g.fresh:
		g.token.rejected.Store(true)
		return false
	}
	t.drop(g.key, g.token)
	return true
}

// send sends req once, with the best that can be had.
func (t *Transport) send(req *http.Request) (*http.Response, grant, error) {
	g, err := t.authorize(req.Context(), scope(req.Context()))
	if err != nil {
		return nil, g, err
	}
	if g.cred.Version == 0 {
		resp, err := t.base().RoundTrip(with(req, g.header))
		return resp, g, err
	}
	leave, err := t.enter(req.Context(), t.Registry.Host, g.cred)
	if err != nil {
		return nil, g, err
	}
	defer leave()
	resp, err := t.base().RoundTrip(with(req, g.header))
	switch {
	case err != nil:
		return nil, g, err
	case resp.StatusCode < 400 || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusNotFound:
		t.accept(g.cred)
	case resp.StatusCode == http.StatusUnauthorized && !t.wasAccepted(g.cred): // else it is this repository that may not be had
		resp.Body.Close()
		return nil, g, t.refuse(t.Registry.Host, g.cred)
	}
	return resp, g, nil
}

// authorize finds what the registry wants to see for scope.
func (t *Transport) authorize(ctx context.Context, scope string) (grant, error) {
	t.init()
	g := grant{challenge: t.known()}
	if g.challenge == nil {
		return g, nil
	}
	if g.challenge.Scheme == "basic" {
		if t.Credential == nil {
			return g, nil
		}
		var err error
		if g.cred, err = t.Credential.Credential(); err == nil {
			g.header = g.cred.basic()
		}
		return g, err
	}
	n, err := t.need(g.challenge, scope)
	if err != nil {
		return g, err
	}
	if t.Credential != nil && t.mayHaveCredential(n.realm) {
		if n.cred, err = t.Credential.Credential(); err != nil {
			return g, err
		}
	}
	g.key = n.key()
	g.token, g.fresh, err = t.token(ctx, n)
	if err == nil && g.token.value != "" {
		g.header = "Bearer " + g.token.value
	}
	return g, err
}

// need is an anonymous need of scope under challenge c.
func (t *Transport) need(c *Challenge, scope string) (need, error) {
	realm, err := parseRealm(t.Registry, c.Params["realm"])
	if err != nil {
		return need{}, &TokenError{Host: realm.Host, Err: err}
	}
	return need{realm: realm, service: c.Params["service"], scope: scope}, nil
}

func (t *Transport) mayHaveCredential(realm *url.URL) bool {
	if trusted(t.Registry, realm) {
		return true
	}
	t.mu.Lock()
	first := t.warned != realm.Host
	t.warned = realm.Host
	t.mu.Unlock()
	if first {
		t.log().Warn("the registry's token service is on another domain: it is asked without the credential",
			"registry", t.Registry.Host, "host", realm.Host)
	}
	return false
}

// known is the registry's challenge; nil: not seen yet.
func (t *Transport) known() *Challenge {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.challenge
}

// learn remembers the challenge of a 401, Bearer rather than Basic, and returns what is
// known now. The scope in it is the request's, and not kept.
func (t *Transport) learn(h http.Header) *Challenge {
	var best *Challenge
	for _, c := range ParseChallenges(h) {
		if c.Scheme == "bearer" && c.Params["realm"] != "" {
			best = &Challenge{Scheme: c.Scheme, Params: map[string]string{"realm": c.Params["realm"], "service": c.Params["service"]}}
			break
		}
		if c.Scheme == "basic" && best == nil {
			best = &Challenge{Scheme: c.Scheme}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if best != nil && (t.challenge == nil || t.challenge.Scheme != best.Scheme || !maps.Equal(t.challenge.Params, best.Params)) {
		t.challenge = best
	}
	return t.challenge
}

func (t *Transport) init() {
	t.once.Do(func() {
		t.alone = make(chan struct{}, 1)
		t.throttled = newThrottled()
		t.tokens, _ = simplelru.NewLRU[string, *token](maxTokens, nil) // fails only on a size below 1
	})
}

func (t *Transport) base() http.RoundTripper {
	if t.Base != nil {
		return t.Base
	}
	return http.DefaultTransport
}

func (t *Transport) log() *slog.Logger {
	if t.Log != nil {
		return t.Log
	}
	return slog.Default()
}

// with returns req with this Authorization and no other; "" is none.
func with(req *http.Request, authorization string) *http.Request {
	out := req.Clone(req.Context())
	if out.Header == nil {
		out.Header = http.Header{}
	}
	out.Header.Del("Authorization")
	if authorization != "" {
		out.Header.Set("Authorization", authorization)
	}
	return out
}
