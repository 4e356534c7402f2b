package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// FailureKind says in one word why an upstream could not be asked.
type FailureKind string

// The kinds of failures.
const (
	FailureDNS         FailureKind = "dns"         // its name has no address
	FailureRefused     FailureKind = "refused"     // its port is closed
	FailureUnreachable FailureKind = "unreachable" // there is no way to its address
	FailureTimeout     FailureKind = "timeout"     // it doesn't answer in time
	FailureTLS         FailureKind = "tls"         // its certificate isn't trusted, or it speaks no TLS
	FailureClock       FailureKind = "clock"       // its certificate isn't valid at the time of this machine's clock
	FailureProxy       FailureKind = "proxy"       // the outbound proxy can't be used
	FailureBroken      FailureKind = "broken"      // it answers with an error, or with what makes no sense
)

// Failure is why an upstream could not be asked when it was last tried.
type Failure struct {
	Kind   FailureKind
	Host   string // that failed: the registry's, the token service's or the CDN's
	Status int    // of the answer; 0: there was none
	At     time.Time
}

// record keeps the last failure of the registry, with its token service, and that of the CDN,
// until the same succeeds, and how far the clock is off. It is safe for concurrent use. The zero
// value is ready.
type record struct {
	mu       sync.Mutex // guards what follows; no other lock is taken under it
	registry *Failure
	cdn      *Failure
	skew     time.Duration
	skewed   bool // skew was measured
}

// failed takes note of a failure.
func (r *record) failed(l limit, e *Error) {
	r.set(l, &Failure{Kind: kindOf(e), Host: e.Host, Status: e.Status, At: time.Now()})
}

// succeeded takes note of an answer.
func (r *record) succeeded(l limit) { r.set(l, nil) }

func (r *record) set(l limit, f *Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l == cdn {
		r.cdn = f
	} else {
		r.registry = f
	}
}

// compare compares the clock with the one of an answer.
func (r *record) compare(h http.Header) {
	theirs, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skew, r.skewed = time.Since(theirs).Round(time.Second), true
}

// last returns the failure that still stands, the registry's first; nil for none.
func (r *record) last() *Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.registry
	if f == nil {
		f = r.cdn
	}
	if f == nil {
		return nil
	}
	c := *f
	return &c
}

// clock returns by how much this machine's clock is ahead of the upstream's; nil: unknown.
func (r *record) clock() *time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.skewed {
		return nil
	}
	skew := r.skew
	return &skew
}

// kindOf says what kind of failure an error of the transport or an answer is.
func kindOf(e *Error) FailureKind {
	err := e.Err
	op, isOp := errors.AsType[*net.OpError](err)
	_, noName := errors.AsType[*net.DNSError](err)
	var netErr net.Error
	switch {
	case isOp && op.Op == "proxyconnect":
		return FailureProxy
	case noName:
		return FailureDNS
	case wrongTime(err):
		return FailureClock
	case untrusted(err):
		return FailureTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return FailureRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return FailureUnreachable
	case e.Cause == Timeout, errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return FailureTimeout
	case e.Cause == Unreachable:
		return FailureUnreachable
	}
	return FailureBroken
}

// wrongTime reports whether a certificate isn't valid at this time.
func wrongTime(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}

// untrusted reports whether the TLS handshake failed.
func untrusted(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	// net/http's own error for a plain answer to the handshake has no type.
	return err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}
