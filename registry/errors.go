package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// failure is an answer to a client that isn't what it asked for. Clients get all but err: the
// texts of errors name files, addresses of the network inside and the account.
type failure struct {
	status     int
	code       errcode.ErrorCode
	detail     string // for clients
	retryAfter time.Duration
	policy     bool  // the settings of this cache say so
	err        error // for the log; nil: detail says all
}

// Error is the text for the log.
func (f *failure) Error() string {
	s := f.detail
	if f.err != nil {
		if text := f.err.Error(); strings.HasPrefix(text, s) {
			s = text
		} else {
			s += " (" + text + ")"
		}
	}
	return f.code.Message() + ": " + s
}

func (f *failure) Unwrap() error { return f.err }

// answers is the one table of what a client gets for what upstream did (docs/design/overview.md,
// "Answers on failure"). A layer that can't be delivered is never 5xx: dockerd's older
// store waits 75 s on it, and falls back to Hub at once on 429. Nothing is ever a 401:
// dockerd would send its user's own password here.
var answers = map[upstream.Cause]struct{ manifest, blob answer }{
	upstream.NotFound:     {answer{404, errcode.ErrorCodeManifestUnknown}, answer{404, errcode.ErrorCodeBlobUnknown}},
	upstream.Denied:       {answer{404, errcode.ErrorCodeNameUnknown}, answer{404, errcode.ErrorCodeBlobUnknown}},
	upstream.Refused:      {answer{503, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	upstream.Throttled:    {answer{429, errcode.ErrorCodeTooManyRequests}, answer{429, errcode.ErrorCodeTooManyRequests}},
	upstream.Broken:       {answer{502, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	upstream.Timeout:      {answer{504, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	upstream.Unreachable:  {answer{502, errcode.ErrorCodeUnavailable}, answer{429, errcode.ErrorCodeTooManyRequests}},
	upstream.Unsupported:  {answer{404, errcode.ErrorCodeManifestUnknown}, answer{404, errcode.ErrorCodeBlobUnknown}},
	upstream.NoVisibility: {answer{429, errcode.ErrorCodeTooManyRequests}, answer{429, errcode.ErrorCodeTooManyRequests}},
}

type answer struct {
	status int
	code   errcode.ErrorCode
}

// retrySoon is the Retry-After of a 429 that upstream gave no time for: about as long as a
// failure that repeats itself is remembered.
const retrySoon = 10 * time.Second

// fail turns any error into what the client gets.
func fail(k kind, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	u, ok := errors.AsType[*upstream.Error](err)
	detail := ""
	if ok && !errors.Is(err, errBusy) {
		detail = u.Summary()
	} else {
		u, detail = ownError(err)
	}
	a := answers[u.Cause].manifest
	if k == blob {
		a = answers[u.Cause].blob
	}
	f := &failure{status: a.status, code: a.code, detail: detail, err: err}
	if a.status == http.StatusTooManyRequests || u.Cause == upstream.Refused {
		f.retryAfter = u.RetryAfter
		if f.retryAfter <= 0 {
			f.retryAfter = retrySoon
		}
	}
	return f
}

// ownError is an error of ours as though an upstream had failed, since the client may have
// more luck at Docker Hub: the disk can't be read, say. detail is for the client.
func ownError(err error) (u *upstream.Error, detail string) {
	switch {
	case errors.Is(err, fetch.ErrBusy), errors.Is(err, errBusy):
		return &upstream.Error{Cause: upstream.Throttled, RetryAfter: retrySoon}, "this cache is too busy"
	case errors.Is(err, context.DeadlineExceeded):
		return &upstream.Error{Cause: upstream.Timeout}, "this cache does not answer in time"
	}
	return &upstream.Error{Cause: upstream.Broken}, "this cache fails; its log says why"
}

// causeOf says whose fault an error is that a client is answered with. That something doesn't
// exist, or isn't public, which Docker Hub doesn't tell apart, is the fault of who asks for it.
func causeOf(err error) cause {
	if f, ok := errors.AsType[*failure](err); ok && f.err == nil {
		if f.policy {
			return byPolicy
		}
		return byClient
	}
	u, ok := errors.AsType[*upstream.Error](err)
	_, network := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, errClientLimit), errors.Is(err, fetch.ErrBusy), errors.Is(err, fetch.ErrEnded), errors.Is(err, errStopping):
		return byPolicy
	case ok && (u.Cause == upstream.NotFound || u.Cause == upstream.Denied):
		return byClient
	case ok && u.Cause == upstream.Unsupported: // what this cache doesn't serve
		return byPolicy
	case ok, network, errors.Is(err, storage.ErrDigest), errors.Is(err, context.DeadlineExceeded):
		return byUpstream
	}
	return byDisk
}

// Failures that depend on nothing but the name and the policy.
var (
	impossibleName    = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: "the registry can't have a repository of that name"}
	notAllowed        = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, policy: true, detail: "not allowed by this cache's settings"}
	notForPeers       = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeBlobUnknown, detail: "this node isn't fetching it for others"}
	deniedDigest      = &failure{status: http.StatusForbidden, code: errcode.ErrorCodeDenied, policy: true, detail: "its digest is one of this cache's setting deny_digests"}
	privateRepository = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: "unknown, or private and not named in the setting private of its registry"}
)

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
		content.Write(w, body)
	}
}
