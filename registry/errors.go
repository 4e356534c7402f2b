package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/hubcache/hubcache/auth"
)

// cause says why upstream could not, or would not, answer.
type cause uint8

const (
	gone        cause = iota + 1 // 404, 410
	denied                       // 401, 403: unknown or private
	refused                      // our credential is not accepted
	throttled                    // 429, or a cool-down of ours after one
	broken                       // 5xx, or an answer that makes no sense
	timeout                      // no answer in time
	unreachable                  // no connection
	noVerdict                    // it can't be told whether the repository is public
)

// upstreamError is a failure of upstream. Its text names the host and what it said.
type upstreamError struct {
	cause      cause
	host       string
	status     int           // 0: no answer
	retryAfter time.Duration // with throttled and refused; 0: unknown
	err        error         // may be nil
}

func (e *upstreamError) Error() string {
	what := map[cause]string{
		gone: "has no such thing", denied: "denies access", refused: "refuses our credential", throttled: "asks for patience",
		broken: "fails", timeout: "does not answer in time", unreachable: "can't be reached", noVerdict: "does not tell whether the repository is public",
	}[e.cause]
	s := "upstream " + e.host + " " + what
	if e.status != 0 {
		s += fmt.Sprintf(" (HTTP %d)", e.status)
	}
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	return s
}

func (e *upstreamError) Unwrap() error { return e.err }

// down reports whether the error means that upstream as a whole can't be used now, so
// that what is cached may be served stale.
func (e *upstreamError) down() bool {
	return e.cause != gone && e.cause != denied
}

// classify makes an upstreamError of what a transport returned.
func classify(host string, err error) *upstreamError {
	e := &upstreamError{cause: broken, host: host, err: err}
	if was, ok := errors.AsType[*upstreamError](err); ok {
		return was
	}
	if r, ok := errors.AsType[*auth.RefusedError](err); ok {
		return &upstreamError{cause: refused, host: r.Host, status: http.StatusUnauthorized, retryAfter: time.Until(r.Until), err: err}
	}
	if t, ok := errors.AsType[*auth.ThrottledError](err); ok {
		return &upstreamError{cause: throttled, host: t.Host, status: http.StatusTooManyRequests, retryAfter: time.Until(t.Until), err: err}
	}
	if f, ok := errors.AsType[*auth.FileError](err); ok {
		return &upstreamError{cause: refused, host: host, err: f}
	}
	if t, ok := errors.AsType[*auth.TokenError](err); ok {
		e.host, e.status = t.Host, t.Status
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		e.cause = unreachable
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		e.cause = unreachable
	}
	var netErr net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() {
		e.cause = timeout
	}
	return e
}

// failure is an answer to a client that isn't what it asked for.
type failure struct {
	status     int
	code       errcode.ErrorCode
	detail     string
	retryAfter time.Duration
	err        error // for the log
}

func (f *failure) Error() string {
	s := f.code.Message()
	if f.detail != "" {
		s += ": " + f.detail
	}
	return s
}

func (f *failure) Unwrap() error { return f.err }

// answers is the one table of what a client gets for what upstream did (docs/design.md,
// "Answers on failure"). A layer that can't be delivered is never 5xx: dockerd's older
// store waits 75 s on it, and falls back to Hub at once on 429. Nothing is ever a 401:
// dockerd would send its user's own password here.
var answers = map[cause]struct{ manifest, blob answer }{
	gone:        {answer{404, errcode.ErrorCodeManifestUnknown}, answer{404, errcode.ErrorCodeBlobUnknown}},
	denied:      {answer{404, errcode.ErrorCodeNameUnknown}, answer{404, errcode.ErrorCodeBlobUnknown}},
	refused:     {answer{503, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	throttled:   {answer{429, errcode.ErrorCodeTooManyRequests}, answer{429, errcode.ErrorCodeTooManyRequests}},
	broken:      {answer{502, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	timeout:     {answer{504, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	unreachable: {answer{502, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	noVerdict:   {answer{429, errcode.ErrorCodeTooManyRequests}, answer{429, errcode.ErrorCodeTooManyRequests}},
}

type answer struct {
	status int
	code   errcode.ErrorCode
}

// retrySoon is the Retry-After of a 429 that upstream gave no time for: about when our
// memory of the failure ends.
const retrySoon = failedFor

// fail turns any error into what the client gets.
func fail(k kind, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	u, ok := errors.AsType[*upstreamError](err)
	if !ok {
		// Ours: the disk can't be read, say. The client may have more luck at Hub.
		u = &upstreamError{cause: broken, host: "hubcache", err: err}
	}
	a := answers[u.cause].manifest
	if k == blob {
		a = answers[u.cause].blob
	}
	f := &failure{status: a.status, code: a.code, detail: u.Error(), err: u}
	if a.status == http.StatusTooManyRequests || u.cause == refused {
		f.retryAfter = u.retryAfter
		if f.retryAfter <= 0 {
			f.retryAfter = retrySoon
		}
	}
	return f
}

// write is the one place that answers a client with an error.
func (f *failure) write(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	if f.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.retryAfter+time.Second-1)/time.Second)))
	}
	body, err := json.Marshal(errcode.Errors{errcode.Error{Code: f.code, Message: f.code.Message(), Detail: f.detail}})
	if err != nil {
		body = []byte(`{"errors":[]}`)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.status)
	if req.Method != http.MethodHead {
		w.Write(body)
	}
}
