package auth

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hubcache/hubcache/answer"
	"github.com/hubcache/hubcache/calls"
)

const (
	// fetchTimeout bounds the fetch of one token, all waiting included. A manifest has to be
	// answered within 5 s, and the rest of that time is for an error answer.
	fetchTimeout = 4 * time.Second
)

// Stats counts requests to the token service by their result. Requests that were not sent,
// because of a pause after a 429 or a refused credential, are not counted.
type Stats struct {
	OK        uint64 // a token
	Denied    uint64 // the service refused the credential, or denied the scope
	Throttled uint64 // 429
	Error     uint64 // no usable answer
}

// tokenSource gets tokens from a token service and keeps them until they expire. All methods
// are safe for concurrent use.
type tokenSource struct {
	base  http.RoundTripper // carries the requests
	login *login

	flights calls.Group[*token] // fetches under way, by tokenRequest.key

	anonymous, account witnesses // what could be read without and with the credential

	mu        sync.Mutex // guards what follows; no other lock is taken under it
	cache     *tokenCache
	throttled throttled // by the token service
	counts    Stats
}

// newTokenSource returns a source without tokens. public names repositories that are known to
// be public, for comparison with refused ones; it may be nil.
func newTokenSource(base http.RoundTripper, l *login, public func() []string) *tokenSource {
	s := &tokenSource{base: base, login: l, cache: newTokenCache(), throttled: newThrottled()}
	s.anonymous.more, s.account.more = public, public
	return s
}

// witnesses returns what could be read with this version of the credential; 0 is without.
func (s *tokenSource) witnesses(version uint64) *witnesses {
	if version == 0 {
		return &s.anonymous
	}
	return &s.account
}

// token returns a token for r, and whether it was fetched for this call. A cached token is
// returned until it expires; when a tenth of its lifetime is left, it is renewed in the
// background. All who wait for the same token share one fetch. It ends when
// none of them waits any more.
//
// Errors: *RefusedError, *ThrottledError, *TokenError, and that of ctx.
func (s *tokenSource) token(ctx context.Context, r tokenRequest) (k *token, fetched bool, err error) {
	key := r.key()
	now := time.Now()
	k = s.cached(key)
	if k != nil && !k.due(now) {
		return k, false, nil
	}
	usable := k != nil && !k.expired(now)
	if usable && !k.renewing.CompareAndSwap(false, true) {
		return k, false, nil
	}
	get := func(ctx context.Context) (*token, error) {
		// Another fetch may have ended after the look into the cache above.
		last := s.cached(key)
		if last != nil && !last.due(time.Now()) {
			return last, nil
		}
		k, err := s.fetch(ctx, r)
		if err == nil {
			k.replaces = last != nil && last.invalid.Load()
			s.mu.Lock()
			s.cache.add(key, k)
			s.mu.Unlock()
		}
		return k, err
	}
	if usable {
		go s.flights.Do(context.Background(), key, get)
		return k, false, nil
	}
	if k, err = s.flights.Do(ctx, key, get); err != nil {
		return nil, false, cmp.Or(ctx.Err(), err)
	}
	return k, true, nil
}

// cached returns the token in the cache, expired or not, or nil.
func (s *tokenSource) cached(key string) *token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cache.get(key)
}

// drop removes k from the cache, unless another token has replaced it already.
func (s *tokenSource) drop(key string, k *token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.drop(key, k)
}

// prove says that something could be read with the key's token.
func (s *tokenSource) prove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.prove(key)
}

func (s *tokenSource) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// fetch gets a token from the service, unless a pause or a refused credential forbids the
// request. It ends with ctx, and after fetchTimeout.
func (s *tokenSource) fetch(ctx context.Context, r tokenRequest) (*token, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	host := r.realm.Host
	if r.cred.Version != 0 {
		release, err := s.login.acquire(ctx, host, r.cred)
		if _, refused := errors.AsType[*RefusedError](err); refused {
			return nil, err
		}
		if err != nil {
			return nil, &TokenError{Host: host, Err: err}
		}
		defer release()
	}
	s.mu.Lock()
	err := s.throttled.check(host, time.Now())
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	k, err := s.request(ctx, r)
	if err == nil && k.value != "" && r.cred.Version != 0 {
		s.login.accept(r.cred)
	}
	s.count(k, err)
	if err == nil && k.value == "" && !s.grantsOthers(ctx, r) {
		return nil, &TokenError{Host: host, Err: errRefusesAll}
	}
	return k, err
}

// errRefusesAll is the error for a refusal that says nothing about the repository.
var errRefusesAll = errors.New("it refuses, and there is no other repository that it grants")

// grantsOthers reports whether the service, which has just denied the scope of r, grants another
// repository to the same user. Otherwise it may be in trouble.
func (s *tokenSource) grantsOthers(ctx context.Context, r tokenRequest) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout) // the result is for others, too
	defer cancel()
	return s.witnesses(r.cred.Version).grant(repositoryOf(r.scope), func(repository string) (bool, error) {
		r := r
		r.scope = pull(repository)
		k, err := s.request(ctx, r)
		s.count(k, err)
		if err != nil || k.value == "" {
			return false, err
		}
		v, readable := checkByToken(k.value, repository)
		return v == Public || !readable, nil
	})
}

// count counts the result of one request.
func (s *tokenSource) count(k *token, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err.(type) {
	case nil:
		if k.value == "" {
			s.counts.Denied++
			break
		}
		s.counts.OK++
		s.throttled.pause.Reset()
	case *RefusedError:
		s.counts.Denied++
	case *ThrottledError:
		s.counts.Throttled++
	default:
		s.counts.Error++
	}
}

// request sends one request to the token service and interprets the answer. It follows no
// redirect, so that the credential is sent to the realm and nowhere else.
func (s *tokenSource) request(ctx context.Context, r tokenRequest) (*token, error) {
	host := r.realm.Host
	u := *r.realm
	query := u.Query()
	query.Set("service", r.service)
	if r.scope != "" {
		query.Set("scope", r.scope)
	}
	u.RawQuery, u.Fragment = query.Encode(), ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &TokenError{Host: host, Err: errors.New("unusable realm")}
	}
	if r.cred.Version != 0 {
		req.Header.Set("Authorization", r.cred.basic())
	}
	resp, err := s.base.RoundTrip(req)
	if IsAbuseLimit(err) {
		return nil, s.throttle(host, "", true)
	}
	if err != nil {
		return nil, &TokenError{Host: host, Err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s.denied(r, ReadAnswer(answer.TokenService, resp))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if err != nil {
		return nil, &TokenError{Host: host, Status: resp.StatusCode, Err: err}
	}
	k, err := parseToken(body)
	if err != nil {
		return nil, &TokenError{Host: host, Status: resp.StatusCode, Err: err}
	}
	return k, nil
}

// throttle begins the pause after a 429 and returns its *ThrottledError.
func (s *tokenSource) throttle(host, retryAfter string, abuse bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.throttled.start(retryAfter, abuse, now)
	return s.throttled.check(host, now)
}

// denied interprets an answer that is no token: what limits requests, refuses the credential,
// or denies the scope. Docker Hub's token service never denies a scope this way. Others do,
// with 401 to an anonymous request and with 403 to a user whose credential they accept.
func (s *tokenSource) denied(r tokenRequest, a answer.Answer) (*token, error) {
	about := a.Subject()
	if about == answer.Limit {
		return nil, s.throttle(r.realm.Host, a.Header.Get("Retry-After"), strings.Contains(string(a.Body), abuse))
	}
	// Whoever refuses a request with the credential, it isn't tried again at once: failed
	// logins lock accounts.
	refused := a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden && !s.login.wasAccepted(r.cred)
	if refused && r.cred.Version != 0 {
		return nil, s.login.refuse(r.realm.Host, r.cred, a.Body)
	}
	if about == answer.Access {
		return &token{received: time.Now(), lifetime: defaultLifetime}, nil
	}
	return nil, &TokenError{Host: r.realm.Host, Status: a.Status}
}
