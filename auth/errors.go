package auth

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"time"
)

// RefusedError says that the credential itself was refused. Nothing is asked with it
// again before Until, unless its file changes.
type RefusedError struct {
	Username string
	Host     string    // who refused: the token service, or the registry where it wants Basic
	Until    time.Time // when the next attempt may be made
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s refused the access token of %q: replace it in the password file", e.Host, e.Username)
}

// ThrottledError says that a host asked for patience (429).
type ThrottledError struct {
	Host       string
	RetryAfter time.Duration // left when the error was made
	Until      time.Time
	Abuse      bool // Docker Hub's abuse limit, which holds for all its hosts
}

func (e *ThrottledError) Error() string {
	return fmt.Sprintf("%s limits requests (429): next one in %s", e.Host, e.RetryAfter.Round(time.Second))
}

// TokenError says that a token service gave no usable answer. Err unwraps, so that
// context.DeadlineExceeded tells a timeout from a failure.
type TokenError struct {
	Host   string
	Status int // 0: no answer
	Err    error
}

func (e *TokenError) Error() string {
	text := "token service " + e.Host
	if e.Status != 0 {
		text = fmt.Sprintf("%s: %d %s", text, e.Status, http.StatusText(e.Status))
	}
	if e.Err != nil {
		text = fmt.Sprintf("%s: %v", text, e.Err)
	}
	return text
}

func (e *TokenError) Unwrap() error { return e.Err }

// abuse is how Docker Hub signs answers of its abuse limit.
const abuse = "HAP429"

// IsAbuseLimit reports whether err is Docker Hub's abuse limit, which holds for all of
// its hosts: a *ThrottledError that says so, or the error that net/http makes of the
// limit's answer when Hub sends it as bare text instead of HTTP.
func IsAbuseLimit(err error) bool {
	if te, ok := errors.AsType[*ThrottledError](err); ok {
		return te.Abuse
	}
	// Only the protocol error's own words count: the text around them has the URL, and a tag may be called anything.
	pe, ok := errors.AsType[textproto.ProtocolError](err)
	return ok && (strings.Contains(string(pe), abuse) || strings.Contains(string(pe), "Too Many Requests"))
}
