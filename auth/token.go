package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxTokenBody and maxToken bound what a token service can make us keep. Common servers
	// refuse a header longer than maxToken anyway.
	maxTokenBody = 1 << 20
	maxToken     = 32 << 10

	// defaultLifetime is the token specification's, for an answer without expires_in.
	defaultLifetime = time.Minute
	// minLifetime keeps a token that lives no time at all from being a request for each use.
	minLifetime = time.Second
	// maxLifetime bounds what a token service claims, because rights change.
	maxLifetime = time.Hour
	// replacePause is the time between two new tokens in place of invalid ones. A registry that
	// knows none of its token service's tokens must not make every request fetch one.
	replacePause = 10 * time.Second
)

// token is the answer of a token service. An empty value means that the service denies the
// scope. The request is then sent without a token, so that the registry itself refuses it.
type token struct {
	value    string
	received time.Time
	lifetime time.Duration
	// renewing is set by the one request that starts the renewal in the background, so that
	// a service that fails isn't asked by every request in the last tenth of the lifetime.
	renewing atomic.Bool
	// rejected means that the registry answered 401 to the token when it was new. Another
	// new one would be answered 401 too.
	rejected atomic.Bool
	// invalid means that the registry doesn't know the token, as it said: another one may do.
	invalid atomic.Bool
	// replaces means that the token was fetched because the one before it was invalid.
	replaces bool
}

// giveUp marks the token as invalid, so that the next request fetches another one. It reports
// false, and leaves the token as it is, if it has itself just replaced an invalid one.
func (k *token) giveUp(now time.Time) bool {
	if k.replaces && now.Sub(k.received) < replacePause {
		return false
	}
	k.invalid.Store(true)
	return true
}

// due reports whether it is time to renew the token: nine tenths of its lifetime are over, or
// it is of no use.
func (k *token) due(now time.Time) bool {
	return k.invalid.Load() || now.Sub(k.received) >= k.lifetime*9/10
}

// expired reports whether the token is of no use any more.
func (k *token) expired(now time.Time) bool {
	return k.invalid.Load() || now.Sub(k.received) >= k.lifetime
}

// tokenRequest says which token is wanted.
type tokenRequest struct {
	realm   *url.URL // of the token service
	service string   // as in the registry's challenge
	scope   string   // "repository:<name>:pull"; "": none
	cred    Credential
}

// key differs for requests with different answers, and contains no secret.
func (r tokenRequest) key() string {
	return fmt.Sprintf("%d\n%s\n%s\n%s", r.cred.Version, r.realm, r.service, r.scope)
}

// parseToken reads the body of a token service's 200. The lifetime counts from now, by our
// own clock. No error quotes the body.
func parseToken(body []byte) (*token, error) {
	if len(body) > maxTokenBody {
		return nil, errors.New("the answer is longer than 1 MiB")
	}
	var answer struct {
		Token       string      `json:"token"`
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"` // some services send it in quotes
	}
	if json.Unmarshal(body, &answer) != nil {
		// The decoder's error is left out, because it may quote what it read.
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

// lifetime reads expires_in, in seconds, and bounds it by minLifetime and maxLifetime.
func lifetime(expiresIn json.Number) time.Duration {
	seconds, err := expiresIn.Float64()
	if err != nil || seconds <= 0 {
		return defaultLifetime
	}
	return max(time.Duration(min(seconds, maxLifetime.Seconds())*float64(time.Second)), minLifetime)
}
