package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/hubcache/hubcache/answer"
	"github.com/hubcache/hubcache/calls"
)

// Transport authorizes GET and HEAD requests to one registry. Set its exported fields
// before the first use and don't change them after it. Don't copy a Transport. The zero
// value authorizes nothing. All methods are safe for concurrent use.
type Transport struct {
	Registry   *url.URL          // requests with its scheme, host and port are authorized; nil: none
	Credential *File             // nil: anonymous
	Base       http.RoundTripper // carries requests to registry and token service; nil: http.DefaultTransport
	Log        *slog.Logger      // nil: slog.Default()

	// Public returns some repositories that are known to be public. A refusal of another
	// repository is compared with them when nothing was read since the start. nil: none.
	Public func() []string

	once       sync.Once // makes login and tokens, and completes visible
	login      *login
	tokens     *tokenSource
	visible    witnesses // what the registry lets everybody read
	challenges challengeMemory
	checks     calls.Group[Visibility] // calls of Access under way, by repository

	mu     sync.Mutex // guards what follows; no other lock is taken under it
	warned string     // the last token service that was logged as not trusted
}

// Stats returns the counts of requests to the token service since the first use.
func (t *Transport) Stats() Stats {
	t.init()
	return t.tokens.stats()
}

// RoundTrip sends a clone of req with the credentials that the registry wants for the
// repository of the request's context (see WithScope), or without (see Anonymous).
//
// The first request is sent without credentials, and the registry's 401 says which it wants;
// from then on a token is fetched before the first request for a repository. After a 401 to a
// cached token, and after one that says that the token, new or not, is invalid, RoundTrip gets a
// new token and sends the request once more. Any other 401 is returned as the response; package
// answer knows what it is about.
//
// A request to another host than the registry's is sent without Authorization, whatever the
// caller, or a client that follows a redirect, put there.
//
// A token service's refusal of a repository counts only while the service grants another one
// that could be read before; otherwise it is a *TokenError. So is a registry's 401 to a token
// that grants the repository, unless it says "insufficient_scope".
//
// Errors: *RefusedError, *ThrottledError, *TokenError, *FileError, those of the request's
// context and of Base, and a plain one for methods other than GET and HEAD.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead && req.Method != "" {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("auth: %s: only GET and HEAD are sent upstream", req.Method)
	}
	if t.Registry == nil || origin(req.URL) != origin(t.Registry) {
		return t.base().RoundTrip(withAuthorization(req, ""))
	}
	t.init()
	for sent := 1; ; sent++ {
		resp, a, err := t.send(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized {
			if resp.StatusCode < 400 && a.token != nil && a.token.value != "" {
				t.tokens.prove(a.tokenKey)
				t.tokens.witnesses(a.version).saw(repositoryOf(scope(req.Context())))
			}
			return resp, nil
		}
		if again := t.learnFrom(resp, a); again && sent < maxSends {
			drain(resp)
			continue
		}
		if contradicts(resp, a, repositoryOf(scope(req.Context()))) {
			resp.Body.Close()
			return nil, &TokenError{Host: t.Registry.Host, Status: resp.StatusCode, Err: errors.New("the registry refuses what its token service has just granted")}
		}
		return resp, nil
	}
}

// contradicts reports whether a 401 says the opposite of the token that was sent, which grants
// the repository. Then registry or token service are in trouble. A registry that knows the
// token says "insufficient_scope" when a right has just ended.
func contradicts(resp *http.Response, a authorization, repository string) bool {
	if a.token == nil || repository == "" || readHeader(answer.Registry, resp).Problem == "insufficient_scope" {
		return false
	}
	v, _ := checkByToken(a.token.value, repository)
	return v == Public
}

// maxSends bounds how often a request is sent: without a token, with one, and with another.
const maxSends = 3

// authorization is what a request is sent with, and where that is from.
type authorization struct {
	header    string     // value of Authorization; "": none
	challenge *Challenge // known when the request was sent; nil: none yet
	cred      Credential // in the header, where the registry wants Basic

	token    *token // in the header, where the registry wants Bearer; nil: none
	tokenKey string // of token
	version  uint64 // of the credential that the token was given for; 0: none
	fetched  bool   // token was fetched for this request
}

// learnFrom remembers what a 401 to a request with a says: the registry's challenge, and that
// a token was rejected. It reports whether the request may succeed when it is sent again.
func (t *Transport) learnFrom(resp *http.Response, a authorization) (retry bool) {
	said := readHeader(answer.Registry, resp)
	if said.Scheme == "" {
		return false // it isn't the registry's: that would say what it wants
	}
	known := t.challenges.learn(resp.Header)
	switch {
	case known == nil: // nothing says what the registry wants
		return false
	case known != a.challenge: // it wants something that the request didn't have
		return known.Scheme == "bearer" || t.Credential != nil
	case a.token == nil || a.token.value == "":
		return false
	case said.Subject() == answer.Token:
		return a.token.giveUp(time.Now())
	case a.token.rejected.Load():
		return false
	case a.fetched: // another new token would be rejected too
		a.token.rejected.Store(true)
		return false
	}
	// The cached token may have been revoked.
	t.tokens.drop(a.tokenKey, a.token)
	return true
}

// send sends req once, with the credentials that are known to be wanted.
func (t *Transport) send(req *http.Request) (*http.Response, authorization, error) {
	a, err := t.authorize(req.Context(), scope(req.Context()))
	if err != nil {
		return nil, a, err
	}
	if a.cred.Version == 0 {
		resp, err := t.base().RoundTrip(withAuthorization(req, a.header))
		return resp, a, err
	}
	release, err := t.login.acquire(req.Context(), t.Registry.Host, a.cred)
	if err != nil {
		return nil, a, err
	}
	defer release()
	resp, err := t.base().RoundTrip(withAuthorization(req, a.header))
	switch {
	case err != nil:
		return nil, a, err
	case resp.StatusCode < 400 || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusNotFound:
		t.login.accept(a.cred)
	case resp.StatusCode == http.StatusUnauthorized && !t.login.wasAccepted(a.cred):
		// After an earlier success a 401 is about this repository only, and is returned.
		said := ReadAnswer(answer.Registry, resp)
		resp.Body.Close()
		return nil, a, t.login.refuse(t.Registry.Host, a.cred, said.Body)
	}
	return resp, a, nil
}

// authorize finds the credentials that the registry wants for scope.
func (t *Transport) authorize(ctx context.Context, scope string) (authorization, error) {
	a := authorization{challenge: t.challenges.known()}
	if a.challenge == nil {
		return a, nil
	}
	anonymous := t.Credential == nil || IsAnonymous(ctx)
	if a.challenge.Scheme == "basic" {
		if anonymous {
			return a, nil
		}
		var err error
		if a.cred, err = t.Credential.Credential(); err == nil {
			a.header = a.cred.basic()
		}
		return a, err
	}
	r, err := t.tokenRequest(a.challenge, scope)
	if err != nil {
		return a, err
	}
	if !anonymous && t.trusts(r.realm) {
		if r.cred, err = t.Credential.Credential(); err != nil {
			return a, err
		}
	}
	a.tokenKey, a.version = r.key(), r.cred.Version
	a.token, a.fetched, err = t.tokens.token(ctx, r)
	if err == nil && a.token.value != "" {
		a.header = "Bearer " + a.token.value
	}
	return a, err
}

// tokenRequest returns an anonymous request for a token with scope, as challenge c demands it.
// The error is a *TokenError.
func (t *Transport) tokenRequest(c *Challenge, scope string) (tokenRequest, error) {
	realm, err := parseRealm(t.Registry, c.Params["realm"])
	if err != nil {
		return tokenRequest{}, &TokenError{Host: realm.Host, Err: err}
	}
	return tokenRequest{realm: realm, service: c.Params["service"], scope: scope}, nil
}

// trusts reports whether the token service at realm may see the credential, and logs if not.
func (t *Transport) trusts(realm *url.URL) bool {
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

// init makes what the exported fields are needed for. Exported methods call it first.
func (t *Transport) init() {
	t.once.Do(func() {
		t.login = newLogin(t.Credential, t.log())
		t.tokens = newTokenSource(t.base(), t.login, t.Public)
		t.visible.more = func() []string { return t.tokens.anonymous.other("") }
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

// withAuthorization returns a clone of req with this value of Authorization and no other;
// "" means none.
func withAuthorization(req *http.Request, value string) *http.Request {
	out := req.Clone(req.Context())
	if out.Header == nil {
		out.Header = http.Header{}
	}
	out.Header.Del("Authorization")
	if value != "" {
		out.Header.Set("Authorization", value)
	}
	return out
}
