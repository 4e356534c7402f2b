package hubtest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// pullLimit is the error's message for an account, or for anonymous clients.
func pullLimit(account string) string {
	who := ""
	if account == "" {
		who = "unauthenticated "
	}
	return "You have reached your " + who + "pull rate limit. https://www.docker.com/increase-rate-limit"
}

// usage is what one source has used of its window.
type usage struct {
	used int
	ends time.Time
}

// source is who a pull is counted for: "user:alice" or "addr:192.0.2.1".
type source string

func (h *Hub) source(account, remote string) source {
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

// public is the source as docker-ratelimit-source tells it: an address, or an opaque id.
func (s source) public() string {
	if addr, ok := strings.CutPrefix(string(s), "addr:"); ok {
		return addr
	}
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// rateLimit is the state that the ratelimit-* headers tell.
type rateLimit struct {
	limit, remaining int
	window           time.Duration
	source           source
}

func (l rateLimit) set(header http.Header) {
	if l.limit < 0 {
		return
	}
	w := int(l.window.Seconds())
	header.Set("Ratelimit-Limit", fmt.Sprintf("%d;w=%d", l.limit, w))
	header.Set("Ratelimit-Remaining", fmt.Sprintf("%d;w=%d", l.remaining, w))
	header.Set("Docker-Ratelimit-Source", l.source.public())
}

func (o Options) limit(account string) int {
	if account == "" {
		return cmp.Or(o.AnonymousLimit, 100)
	}
	a, _ := o.account(account)
	return cmp.Or(a.Limit, o.AccountLimit, 200)
}

func (o Options) window() time.Duration { return cmp.Or(o.Window, 6*time.Hour) }

// spend takes n pulls off the asker's quota and returns what is left. It reports false, and
// takes nothing, when nothing is left.
func (h *Hub) spend(x *exchange, n int) (rateLimit, bool) {
	s := h.source(x.grant.account, x.entry.Remote)
	l := rateLimit{limit: x.opts.limit(x.grant.account), window: x.opts.window(), source: s}
	if l.limit < 0 {
		return l, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.usage(x.opts, s)
	ok := u.used < l.limit
	if ok {
		u.used += n
	}
	l.remaining = max(0, l.limit-u.used)
	return l, ok
}

// usage returns the source's current window. The caller holds h.mu.
func (h *Hub) usage(o Options, s source) *usage {
	u := h.quota[string(s)]
	if u == nil {
		u = &usage{ends: time.Now().Add(o.window())}
		if strings.HasPrefix(string(s), "addr:") {
			u.used = h.anonSpent
		}
		h.quota[string(s)] = u
	}
	if !time.Now().Before(u.ends) {
		*u = usage{ends: time.Now().Add(o.window())}
	}
	return u
}

// SetUsed says how many pulls of its current window an account has used; "" is every
// anonymous address, also those that are yet to come. As many as the limit or more, and
// manifests are answered with 429 until the window ends.
func (h *Hub) SetUsed(account string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if account != "" {
		h.usage(h.opts, h.source(account, "")).used = n
		return
	}
	h.anonSpent = n
	for s, u := range h.quota {
		if strings.HasPrefix(s, "addr:") {
			u.used = n
		}
	}
}

// Used says how many pulls the account has used in its current window; "" is all anonymous
// addresses together.
func (h *Hub) Used(account string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if account != "" {
		return h.usage(h.opts, h.source(account, "")).used
	}
	n := 0
	for s, u := range h.quota {
		if strings.HasPrefix(s, "addr:") {
			n += u.used
		}
	}
	return n
}
