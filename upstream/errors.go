package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hubcache/hubcache/auth"
)

// Cause says why an upstream could not, or would not, answer. The zero value is no cause.
type Cause uint8

// The causes.
const (
	NotFound     Cause = iota + 1 // 404, 410
	Denied                        // 401, 403: unknown, or private
	Refused                       // our credential is not accepted
	Throttled                     // 429, or a cool-down of ours after one
	Broken                        // 5xx, or an answer that makes no sense
	Timeout                       // no answer in time
	Unreachable                   // no connection
	NoVisibility                  // nobody can tell whether the repository is public
	Unsupported                   // a manifest of schema 1, or of more than MaxManifest bytes
)

// Error is a failure of an upstream. Its text names the host and what it said, and never
// contains a URL, which may be signed. The text of Err may name the account, the password file
// and addresses of the network inside: it is for the log, and Summary is for clients.
type Error struct {
	Cause      Cause
	Host       string
	Status     int           // HTTP status; 0: no answer
	RetryAfter time.Duration // with Throttled and Refused; 0: unknown
	Err        error         // may be nil

	notAsked bool
}

// NotAsked reports whether no request was sent, because of what earlier ones met.
func (e *Error) NotAsked() bool { return e.notAsked }

// Error implements error. The text begins with the Summary.
func (e *Error) Error() string {
	s := e.Summary()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Summary says which host failed, how, and with which status. Of Err it says only whether it is
// about the host's certificate, since that is for whoever set up the cache.
func (e *Error) Summary() string {
	what := map[Cause]string{
		NotFound: "has no such thing", Denied: "denies access", Refused: "refuses our credential", Throttled: "limits requests",
		Broken: "fails", Timeout: "does not answer in time", Unreachable: "can't be reached", NoVisibility: "does not tell whether the repository is public",
		Unsupported: "has it only in a form that isn't served here: a manifest of schema 1, or a larger one than clients take",
	}[e.Cause]
	if e.WithoutToken() {
		what = "can't be asked: the access token of this cache can't be read"
	}
	s := "upstream " + e.Host + " " + what
	if e.Status != 0 {
		s += fmt.Sprintf(" (HTTP %d)", e.Status)
	}
	if e.Untrusted() {
		s += ": its certificate is not trusted"
	}
	return s
}

// WithoutToken reports whether there was no token to ask with, because its file can't be read.
func (e *Error) WithoutToken() bool {
	_, ok := errors.AsType[*auth.FileError](e.Err)
	return ok
}

// Untrusted reports whether the host's certificate is not trusted.
func (e *Error) Untrusted() bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](e.Err)
	return ok
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Down reports whether the error means that the upstream as a whole can't be used now, so
// that what is cached may be served stale.
func (e *Error) Down() bool {
	return e.Cause != NotFound && e.Cause != Denied && e.Cause != Unsupported
}

// classify makes an Error of what a transport returned.
func classify(host string, err error) *Error {
	e := &Error{Cause: Broken, Host: host, Err: err}
	if was, ok := errors.AsType[*Error](err); ok {
		return was
	}
	if r, ok := errors.AsType[*auth.RefusedError](err); ok {
		return &Error{Cause: Refused, Host: r.Host, Status: http.StatusUnauthorized, RetryAfter: time.Until(r.Until), Err: err}
	}
	if t, ok := errors.AsType[*auth.ThrottledError](err); ok {
		return &Error{Cause: Throttled, Host: t.Host, Status: http.StatusTooManyRequests, RetryAfter: time.Until(t.Until), Err: err}
	}
	if f, ok := errors.AsType[*auth.FileError](err); ok {
		return &Error{Cause: Refused, Host: host, Err: f}
	}
	if t, ok := errors.AsType[*auth.TokenError](err); ok {
		e.Host, e.Status = t.Host, t.Status
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		e.Cause = Unreachable
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		e.Cause = Unreachable
	}
	var netErr net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() {
		e.Cause = Timeout
	}
	return e
}
