package upstream

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hubcache/hubcache/cooldown"
)

// limit is what a request may run into.
type limit uint8

const (
	plain limit = iota // a request to the registry for a blob or a list: only the abuse limit counts
	pulls              // one for a manifest: the pull limit counts too
	// cdn is a request to a host that the registry redirected to. A 429 there is taken for the
	// abuse limit, which holds for all hosts of Docker Hub; no answer says nothing about the
	// registry.
	cdn
	abuse // no request: the limit that holds for every host
)

// health decides whether a request may be sent to the upstream. It has the pause of the pull
// limit (manifests, for one credential or for none), the pause of the abuse limit (Docker Hub's limit on
// requests of any kind), the circuit breaker, which a request without an answer opens, and
// which then lets one request through per pause, and until when our credential isn't tried,
// which package auth enforces and is only reported here. The token service's own pauses are in
// package auth, too. All methods are safe for concurrent use.
type health struct {
	title string // the upstream's name for people, as Error.Host

	mu            sync.Mutex // guards what follows
	anonymousPull cooldown.Pause
	pullPause     cooldown.Pause // of the newest credential that has met the pull limit
	pullVersion   uint64         // of that credential
	abusePause    cooldown.Pause

	refused        time.Time // until when our credential isn't tried
	refusedVersion uint64    // of that credential

	limitSaid time.Time // when the log last said that a limit was met
	downSaid  time.Time // when the log last said that the registry can't be reached
	downKnown bool      // the log says that it can't be reached

	heard      time.Time     // when the registry last answered anything
	breaker    *Error        // why the breaker is open; nil: it is closed
	opened     time.Time     // when the breaker's current pause began
	probeAt    time.Time     // from when the open breaker lets the next request through
	probePause time.Duration // the breaker's current pause; 0: none yet
}

const (
	// The pauses after a 429 that names none; a named one may be longer.
	throttleFirst = time.Minute
	throttleMost  = 15 * time.Minute

	// The breaker's pauses are short at first, since a restarted router is back in seconds.
	probeFirst = 2 * time.Second
	probeMost  = 30 * time.Second
)

// newHealth returns the health of a host of which nothing bad is known yet.
func newHealth(title string) health {
	p := cooldown.Pause{First: throttleFirst, Most: throttleMost}
	return health{title: title, anonymousPull: p, pullPause: p, abusePause: p}
}

// pull returns the pause of the pull limit for this version of the credential. A newer one than
// the last begins without a pause; for an older one the pause returned isn't kept. The caller
// holds mu.
func (h *health) pull(version uint64) *cooldown.Pause {
	fresh := cooldown.Pause{First: throttleFirst, Most: throttleMost}
	switch {
	case version == 0:
		return &h.anonymousPull
	case version < h.pullVersion:
		return &fresh
	case version > h.pullVersion:
		h.pullPause, h.pullVersion = fresh, version
	}
	return &h.pullPause
}

// sayEvery is how often, at most, the log says that the registry limits requests or can't be
// reached: it may do so for some requests, and answer others.
const sayEvery = time.Minute

// throttle begins the pause of a limit after a 429 and returns how long to wait, and whether the
// log should say so. wait is what the upstream named, 0 when it named nothing. version is that of
// the credential that the request was sent with, 0 when it was sent without; it counts with pulls
// only.
func (h *health) throttle(l limit, wait time.Duration, version uint64) (left time.Duration, say bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, pause := time.Now(), &h.abusePause
	if l == pulls {
		pause = h.pull(version)
	}
	say = pause.Left(now) <= 0 && now.Sub(h.limitSaid) >= sayEvery // others may have met it at the same time
	if say {
		h.limitSaid = now
	}
	return pause.Begin(wait, now), say
}

// adopt takes over pauses that others have begun, if they are longer. version is that of the credential
// that is in use.
func (h *health) adopt(pull, all time.Duration, version uint64) {
	if pull <= 0 && all <= 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if pull > 0 {
		h.pull(version).Begin(pull, now)
	}
	if all > 0 {
		h.abusePause.Begin(all, now)
	}
}

// passed takes note of a request that met no limit: the next 429 begins with the first pause.
// pulled says that it counted as a pull.
func (h *health) passed(pulled bool, version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.abusePause.Reset()
	if pulled {
		h.pull(version).Reset()
	}
}

// admit returns why a request must not be sent, or nil. While the breaker is open, a nil makes
// the request a probe: no other is let through until a pause has passed. Requests to a CDN
// ignore the breaker.
func (h *health) admit(l limit, version uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if left := h.abusePause.Left(now); left > 0 {
		return h.cooling(left, "its abuse limit was met")
	}
	if left := h.pull(version).Left(now); l == pulls && left > 0 {
		return h.cooling(left, "the pull limit was met")
	}
	if h.breaker == nil || l == cdn {
		return nil
	}
	if now.Before(h.probeAt) {
		e := *h.breaker
		e.notAsked = true
		return &e
	}
	h.probeAt = now.Add(h.probePause)
	return nil
}

// probeIn returns how long the open breaker lets no request through, 0 when one may be sent.
func (h *health) probeIn() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.breaker == nil {
		return 0
	}
	return max(time.Until(h.probeAt), 0)
}

func (h *health) cooling(left time.Duration, why string) error {
	return &Error{Cause: Throttled, Host: h.title, Status: http.StatusTooManyRequests, RetryAfter: left, Err: errors.New(why + "; not asked again yet"), notAsked: true}
}

// failed opens the breaker, or keeps it open for longer, because a request failed. It changes
// nothing if the registry has answered anybody since the request was sent, or if the request was
// under way already when the breaker's pause began: requests that fail together count once. say
// reports whether the log should say that the registry can't be reached.
func (h *health) failed(e *Error, sent time.Time) (say bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.heard.After(sent) || h.breaker != nil && !sent.After(h.opened) {
		return false
	}
	now := time.Now()
	if say = !h.downKnown && now.Sub(h.downSaid) >= sayEvery; say {
		h.downSaid, h.downKnown = now, true
	}
	h.probePause = cooldown.Double(h.probePause, probeFirst, probeMost)
	h.breaker, h.opened = e, now
	h.probeAt = h.opened.Add(h.probePause)
	return say
}

// answered takes note of an answer of the registry, of any status, to a request with this
// version of the credential: it can be reached, and the credential is good. say reports whether
// the log has said that it can't be reached.
func (h *health) answered(version uint64) (say bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	say, h.downKnown = h.downKnown, false
	h.heard = time.Now()
	h.breaker, h.probePause = nil, 0
	if version == h.refusedVersion {
		h.refused = time.Time{}
	}
	return say
}

// credentialRefused takes note that this version of our credential isn't accepted, and until
// when package auth doesn't try it again. It is for blobsBlocked and state.
func (h *health) credentialRefused(until time.Time, version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if version >= h.refusedVersion { // an older one may have been under way
		h.refused, h.refusedVersion = until, version
	}
}

// isRefused reports whether this version of the credential isn't tried now. The caller holds mu.
func (h *health) isRefused(version uint64, now time.Time) bool {
	return version == h.refusedVersion && now.Before(h.refused)
}

// blobsBlocked returns why a blob can't be fetched now, as far as is known, or nil. Unlike
// admit it uses no probe up. The pull limit doesn't count for blobs.
func (h *health) blobsBlocked(version uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if left := h.abusePause.Left(now); left > 0 {
		return h.cooling(left, "its abuse limit was met")
	}
	// If a probe is due, the caller must send its request, because that request is the probe.
	if h.breaker != nil && now.Before(h.probeAt) {
		return h.breaker
	}
	if h.isRefused(version, now) {
		return &Error{Cause: Refused, Host: h.title}
	}
	return nil
}

// nextAttempt is when the pause after a 429 ends; zero if there is none.
func (h *health) nextAttempt(version uint64) (at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	for _, pause := range []*cooldown.Pause{&h.abusePause, h.pull(version)} {
		if pause.Left(now) > 0 && pause.Until().After(at) {
			at = pause.Until()
		}
	}
	return at
}

// state is one word for people: ok, cooling, denied or down, as Stats.State explains.
func (h *health) state(version uint64) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.breaker != nil:
		return "down"
	case h.isRefused(version, now):
		return "denied"
	case h.abusePause.Left(now) > 0, h.pull(version).Left(now) > 0:
		return "cooling"
	}
	return "ok"
}
