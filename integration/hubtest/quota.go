package hubtest

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// pullLimitMessage is the error's message for an account, or for anonymous clients.
func pullLimitMessage(account string) string {
	kind := ""
	if account == "" {
		kind = "unauthenticated "
	}
	return "You have reached your " + kind + "pull rate limit. https://www.docker.com/increase-rate-limit"
}

// quota counts the pulls of each source.
type quota struct {
	mu            sync.Mutex // guards all below
	sources       map[source]*usage
	anonymousUsed int // what an anonymous address has used when it makes its first request
}

// usage is what one source has used of its current window.
type usage struct {
	used int
	ends time.Time
}

// source identifies who a pull is counted for: "user:alice" or "addr:192.0.2.1".
type source string

// sourceOf is the account, or for anonymous clients the address; of IPv6 the /64.
func sourceOf(account, remote string) source {
	if account != "" {
		return source("user:" + account)
	}
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		return source("addr:" + remote)
	}
	if addr = addr.Unmap(); addr.Is6() {
		prefix, _ := addr.WithZone("").Prefix(64)
		return source("addr:" + prefix.Masked().Addr().String())
	}
	return source("addr:" + addr.String())
}

func (s source) anonymous() bool { return strings.HasPrefix(string(s), "addr:") }

// public is the source as docker-ratelimit-source shows it: an address, or an opaque id.
func (s source) public() string {
	if addr, ok := strings.CutPrefix(string(s), "addr:"); ok {
		return addr
	}
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// rateLimit is what the ratelimit-* headers say.
type rateLimit struct {
	limit, remaining int
	window           time.Duration
	source           source
}

// set writes the headers. Without a limit there are none.
func (l rateLimit) set(header http.Header) {
	if l.limit < 0 {
		return
	}
	w := int(l.window.Seconds())
	header.Set("Ratelimit-Limit", fmt.Sprintf("%d;w=%d", l.limit, w))
	header.Set("Ratelimit-Remaining", fmt.Sprintf("%d;w=%d", l.remaining, w))
	header.Set("Docker-Ratelimit-Source", l.source.public())
}

// spend takes n pulls off the client's quota and returns what is left. It reports false, and
// takes nothing, when nothing is left.
func (q *quota) spend(r *request, n int) (rateLimit, bool) {
	s := sourceOf(r.account, r.remote)
	l := rateLimit{limit: r.opts.pullLimit(r.account), window: r.opts.window(), source: s}
	if l.limit < 0 {
		return l, true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.usage(r.opts, s)
	ok := u.used < l.limit
	if ok {
		u.used += n
	}
	l.remaining = max(0, l.limit-u.used)
	return l, ok
}

// usage returns the source's current window. The caller holds q.mu.
func (q *quota) usage(o Options, s source) *usage {
	u := q.sources[s]
	if u == nil {
		u = &usage{ends: time.Now().Add(o.window())}
		if s.anonymous() {
			u.used = q.anonymousUsed
		}
		q.sources[s] = u
	}
	if !time.Now().Before(u.ends) {
		*u = usage{ends: time.Now().Add(o.window())}
	}
	return u
}

func (q *quota) setUsed(o Options, account string, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if account != "" {
		q.usage(o, sourceOf(account, "")).used = n
		return
	}
	q.anonymousUsed = n
	for s, u := range q.sources {
		if s.anonymous() {
			u.used = n
		}
	}
}

func (q *quota) usedBy(o Options, account string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if account != "" {
		return q.usage(o, sourceOf(account, "")).used
	}
	n := 0
	for s, u := range q.sources {
		if s.anonymous() {
			n += u.used
		}
	}
	return n
}
