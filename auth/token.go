package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// fetchTimeout bounds one token, all waiting included: a manifest has to be answered
	// within 5 s, and what is left is for saying that it can't be.
	fetchTimeout = 4 * time.Second
	// maxTokens bounds the cache: some 16 MiB of Docker Hub's tokens of 3 KiB.
	maxTokens = 4096
	// maxTokenBody and maxToken bound what a token service can make us keep; a header
	// longer than maxToken is refused by common servers anyway.
	maxTokenBody = 1 << 20
	maxToken     = 32 << 10

	defaultLifetime = time.Minute // the token specification's, when expires_in is missing
	minLifetime     = time.Second
	maxLifetime     = time.Hour // however long it claims: rights change
)

// token is a token service's answer. An empty value is one too: the service denies the
// scope, and the request goes without, so that the registry itself says no.
type token struct {
	value    string
	received time.Time
	lifetime time.Duration
	// renewing is set by the one request that starts the renewal in the background: a
	// service that fails is not asked by every request in a token's last tenth.
	renewing atomic.Bool
	// rejected: the registry answered 401 to it while it was new. A newer one would fare no better.
	rejected atomic.Bool
}

func (k *token) stale(now time.Time) bool   { return now.Sub(k.received) >= k.lifetime*9/10 }
func (k *token) expired(now time.Time) bool { return now.Sub(k.received) >= k.lifetime }

// need is what a token is for. The realm is where to ask; cred is zero for an anonymous one.
type need struct {
	realm          *url.URL
	service, scope string
	cred           Credential
}

// key tells needs apart; a changed credential asks anew.
func (n need) key() string {
	return fmt.Sprintf("%d\n%s\n%s\n%s", n.cred.Version, n.realm, n.service, n.scope)
}

// token returns a token for n, and whether it was fetched just now. A cached one is
// renewed in the background when a tenth of its life is left. One fetch serves all who
// wait for it; each waits only as long as its own context, and the fetch belongs to none.
func (t *Transport) token(ctx context.Context, n need) (k *token, fresh bool, err error) {
	key := n.key()
	now := time.Now()
	k = t.cached(key)
	if k != nil && !k.stale(now) {
		return k, false, nil
	}
	alive := k != nil && !k.expired(now)
	if alive && !k.renewing.CompareAndSwap(false, true) {
		return k, false, nil
	}
	flight := t.flights.DoChan(key, func() (any, error) {
		// The flight before this one may have ended after the look above.
		if k := t.cached(key); k != nil && !k.stale(time.Now()) {
			return k, nil
		}
		k, err := t.fetch(n)
		if err == nil {
			t.mu.Lock()
			t.tokens.Add(key, k)
			t.mu.Unlock()
		}
		return k, err
	})
	if alive {
		return k, false, nil
	}
	select {
	case r := <-flight:
		if r.Err != nil {
			return nil, false, r.Err
		}
		return r.Val.(*token), true, nil
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

func (t *Transport) cached(key string) *token {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, _ := t.tokens.Get(key)
	return k
}

// drop forgets k, unless another token has taken its place.
func (t *Transport) drop(key string, k *token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now, ok := t.tokens.Peek(key); ok && now == k {
		t.tokens.Remove(key)
	}
}

// fetch asks the token service, unless a cool-down or a refusal forbids it.
func (t *Transport) fetch(n need) (*token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	host := n.realm.Host
	if n.cred.Version != 0 {
		leave, err := t.enter(ctx, host, n.cred)
		if _, refused := errors.AsType[*RefusedError](err); refused {
			return nil, err
		}
		if err != nil {
			return nil, &TokenError{Host: host, Err: err}
		}
		defer leave()
	}
	t.mu.Lock()
	err := t.throttled.check(host, time.Now())
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	k, err := t.ask(ctx, n)
	if err == nil && k.value != "" && n.cred.Version != 0 {
		t.accept(n.cred)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch err.(type) {
	case nil:
		if k.value == "" {
			t.stats.Denied++
			break
		}
		t.stats.OK++
		t.throttled.pause.Reset() // the pause itself stays: this answer may be older than the 429
	case *RefusedError:
		t.stats.Denied++
	case *ThrottledError:
		t.stats.Throttled++
	default:
		t.stats.Error++
	}
	return k, err
}

// ask makes the one request of fetch, and files its answer. It follows no redirect: the
// credential goes to the realm and nowhere else.
func (t *Transport) ask(ctx context.Context, n need) (*token, error) {
	host := n.realm.Host
	u := *n.realm
	query := u.Query()
	query.Set("service", n.service)
	if n.scope != "" {
		query.Set("scope", n.scope)
	}
	u.RawQuery, u.Fragment = query.Encode(), ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &TokenError{Host: host, Err: errors.New("unusable realm")}
	}
	if n.cred.Version != 0 {
		req.Header.Set("Authorization", n.cred.basic())
	}
	resp, err := t.base().RoundTrip(req)
	if IsAbuseLimit(err) {
		return nil, t.throttle(host, "", true)
	}
	if err != nil {
		return nil, &TokenError{Host: host, Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if err != nil && resp.StatusCode == http.StatusOK {
		return nil, &TokenError{Host: host, Status: resp.StatusCode, Err: err}
	}
	switch resp.StatusCode {
	case http.StatusOK:
		k, err := parseToken(body)
		if err != nil {
			return nil, &TokenError{Host: host, Status: resp.StatusCode, Err: err}
		}
		return k, nil
	case http.StatusTooManyRequests:
		return nil, t.throttle(host, resp.Header.Get("Retry-After"), strings.Contains(string(body), abuse))
	case http.StatusUnauthorized, http.StatusForbidden:
		return t.denied(n, resp)
	}
	return nil, &TokenError{Host: host, Status: resp.StatusCode}
}

func (t *Transport) throttle(host, retryAfter string, abuse bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.throttled.start(retryAfter, abuse, now)
	return t.throttled.check(host, now)
}

// denied tells a refused credential from a scope that may not be had: some token
// services (not Docker Hub's) answer the latter with 401 to nobody, and 403 to somebody
// they know. A 403 that is not the API's JSON is a firewall's, and decides nothing.
func (t *Transport) denied(n need, resp *http.Response) (*token, error) {
	forbidden := resp.StatusCode == http.StatusForbidden
	if n.cred.Version != 0 && !(forbidden && t.wasAccepted(n.cred)) {
		return nil, t.refuse(n.realm.Host, n.cred)
	}
	if forbidden && !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return nil, &TokenError{Host: n.realm.Host, Status: resp.StatusCode}
	}
	return &token{received: time.Now(), lifetime: defaultLifetime}, nil
}

// parseToken reads a token service's 200. Lifetimes count from now, by our own clock.
func parseToken(body []byte) (*token, error) {
	if len(body) > maxTokenBody {
		return nil, errors.New("the answer is longer than 1 MiB")
	}
	var answer struct {
		Token       string      `json:"token"`
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"` // some send it in quotes
	}
	if json.Unmarshal(body, &answer) != nil {
		// Not the decoder's own words: they may quote what it read.
		return nil, errors.New("the answer is not the JSON of a token")
	}
	value := answer.Token
	if value == "" {
		value = answer.AccessToken
	}
	visible := func(r rune) bool { return '!' <= r && r <= '~' }
	if value == "" || len(value) > maxToken || strings.TrimFunc(value, visible) != "" {
		return nil, errors.New("the answer holds no usable token")
	}
	return &token{value: value, received: time.Now(), lifetime: lifetime(answer.ExpiresIn)}, nil
}

// lifetime reads expires_in, in seconds, and keeps it within reason.
func lifetime(expiresIn json.Number) time.Duration {
	seconds, err := expiresIn.Float64()
	if err != nil || seconds <= 0 {
		return defaultLifetime
	}
	return max(time.Duration(min(seconds, maxLifetime.Seconds())*float64(time.Second)), minLifetime)
}
