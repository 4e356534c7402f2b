package upstream

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hubcache/hubcache/cooldown"
)

// limit says which limits a request counts against.
type limit uint8

const (
	plain limit = iota // a blob, a list: the abuse limit only
	pulls              // a manifest: the pull limit too
	cdn                // another host: a 429 there is the abuse limit, and silence isn't the registry's
	abuse              // the limit that holds for every host
)

// health remembers what the upstream asked us not to ask, so that it isn't asked again.
// The limits are separate: the pull limit stops manifests, for the credential that met it;
// the abuse limit stops everything. (The token service's limit is in package auth.) Beside
// them is the circuit breaker: when the registry can't be reached at all, it lets one
// request through in a while. All methods are safe for concurrent use.
type health struct {
	host string // as errors name it

	mu      sync.Mutex // guards what follows
	pull    cooldown.Pause
	version uint64 // of the credential that met the pull limit
	all     cooldown.Pause

	refused time.Time // until when our credential is not tried again

	heard   time.Time // when the registry last answered anything
	open    *Error    // why the breaker is open; nil: it is closed
	probeAt time.Time // when the open breaker lets the next request through
	pause   time.Duration
}

const (
	throttleFirst = time.Minute
	throttleMost  = 15 * time.Minute

	// The breaker's pauses are short at first, since a restarted router is back in seconds.
	probeFirst = 2 * time.Second
	probeMost  = 30 * time.Second
)

// newHealth returns the health of a host of which nothing bad is known yet.
func newHealth(host string) health {
	p := cooldown.Pause{First: throttleFirst, Most: throttleMost}
	return health{host: host, pull: p, all: p}
}

// throttle begins the pause of a limit and returns its length.
func (h *health) throttle(l limit, wait time.Duration, version uint64) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l == pulls {
		h.version = version
		return h.pull.Begin(wait, time.Now())
	}
	return h.all.Begin(wait, time.Now())
}

// passed takes note of a request that met no limit: the next 429 begins with the first pause.
func (h *health) passed(l limit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all.Reset()
	if l == pulls {
		h.pull.Reset()
	}
}

// check returns why a request must not be sent, or nil. While the breaker is open it lets
// one request through each time a pause has passed.
func (h *health) check(l limit, version uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if left := h.all.Left(now); left > 0 {
		return h.cooling(left, "its abuse limit was met")
	}
	if left := h.pull.Left(now); l == pulls && h.version == version && left > 0 {
		return h.cooling(left, "the pull limit was met")
	}
	if h.open == nil || l == cdn {
		return nil
	}
	if now.Before(h.probeAt) {
		return h.open
	}
	h.probeAt = now.Add(h.pause)
	return nil
}

func (h *health) cooling(left time.Duration, why string) error {
	return &Error{Cause: Throttled, Host: h.host, Status: http.StatusTooManyRequests, RetryAfter: left, Err: errors.New(why + "; not asked again yet")}
}

// failed opens the breaker, or keeps it open for longer, because a request failed. If the
// registry has answered anybody since the request was sent, it changes nothing.
func (h *health) failed(e *Error, sent time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.heard.After(sent) {
		return
	}
	h.pause = cooldown.Double(h.pause, probeFirst, probeMost)
	h.open, h.probeAt = e, time.Now().Add(h.pause)
}

// answered closes the breaker.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = time.Now()
	h.open, h.pause, h.refused = nil, 0, time.Time{}
}

// refuse takes note that the credential isn't accepted, and until when it isn't tried again.
func (h *health) refuse(until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = until
}

// down returns why blobs can't be fetched now, as far as is known, or nil.
func (h *health) down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if left := h.all.Left(now); left > 0 {
		return h.cooling(left, "its abuse limit was met")
	}
	// Once a probe is due nothing is known any more, and the next request finds out: a
	// client that is refused here would never send it.
	if h.open != nil && now.Before(h.probeAt) {
		return h.open
	}
	if now.Before(h.refused) {
		return &Error{Cause: Refused, Host: h.host}
	}
	return nil
}

// state is one word for people.
func (h *health) state(version uint64) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.open != nil:
		return "down"
	case now.Before(h.refused):
		return "denied"
	case h.all.Left(now) > 0, h.version == version && h.pull.Left(now) > 0:
		return "cooling"
	}
	return "ok"
}
