package auth

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"time"
)

// RefusedError says that the credential itself was refused. It isn't used again before
// Until, unless its file changes.
type RefusedError struct {
	Username string
	Host     string    // that refused it: the token service, or a registry that wants Basic
	Until    time.Time // of the next attempt
	Expired  bool      // the host said that the token has expired
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Expired {
		return fmt.Sprintf("%s says that the access token of %q has expired: replace it in the password file", e.Host, e.Username)
	}
	return fmt.Sprintf("%s refused the access token of %q: replace it in the password file", e.Host, e.Username)
}

// ThrottledError says that a host answered 429 Too Many Requests, now or a short time ago,
// and isn't asked again before Until.
type ThrottledError struct {
	Host       string
	RetryAfter time.Duration // from the making of the error to Until
	Until      time.Time
	Abuse      bool // by Docker Hub's abuse limit, which holds for all of its hosts
}

// Error implements error.
func (e *ThrottledError) Error() string {
	return fmt.Sprintf("%s limits requests (429): next one in %s", e.Host, e.RetryAfter.Round(time.Second))
}

// TokenError says that a token service gave no usable answer, or may not be asked. It
// unwraps to Err, so that errors.Is finds context.DeadlineExceeded after a timeout.
type TokenError struct {
	Host   string // of the token service; of the registry, if that names no usable one
	Status int    // of the answer; 0: there was none
	Err    error  // what went wrong; nil: Status says it
}

// Error implements error.
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

// Unwrap returns Err.
func (e *TokenError) Unwrap() error { return e.Err }

// abuse stands in answers of Docker Hub's abuse limit, and in no others.
const abuse = "HAP429"

// IsAbuseLimit reports whether err comes from Docker Hub's abuse limit, which holds for all
// of its hosts. It is either a *ThrottledError with Abuse, or the error that net/http returns
// when Docker Hub sends bare text where HTTP headers should be.
func IsAbuseLimit(err error) bool {
	if te, ok := errors.AsType[*ThrottledError](err); ok {
		return te.Abuse
	}
	// Only the protocol error's own text counts. The errors around it contain the URL, and a
	// tag in that may have any name.
	pe, ok := errors.AsType[textproto.ProtocolError](err)
	return ok && (strings.Contains(string(pe), abuse) || strings.Contains(string(pe), "Too Many Requests"))
}
