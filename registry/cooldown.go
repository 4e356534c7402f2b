package registry

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hubcache/hubcache/cooldown"
)

// limit is what a request to upstream may run into.
type limit uint8

const (
	plain limit = iota // a blob, a list: the abuse limit only
	pulls              // a manifest: the pull limit too
	cdn                // another host: a 429 there is the abuse limit, silence isn't the registry's
	abuse              // the limit that holds for every host
)

// coolDowns remembers what upstream asked us not to ask, so that it isn't asked again.
// The limits are apart: the pull limit stops manifests, for the credential that met it;
// the abuse limit everything. (The token service's is in package auth.) Beside them, the
// breaker: when the registry can't be reached at all, one request in a while tries.
type coolDowns struct {
	mu      sync.Mutex // guards what follows
	pull    cooldown.Pause
	version uint64 // of the credential that met the pull limit
	all     cooldown.Pause

	refused time.Time // until when our credential is not tried again

	heard   time.Time      // when the registry last answered anything
	fall    *upstreamError // why the breaker is open; nil: it is closed
	probeAt time.Time
	pause   time.Duration
}

// newCoolDowns returns a memory in which nothing has been limited yet.
func newCoolDowns() coolDowns {
	p := cooldown.Pause{First: coolFirst, Most: coolMost}
	return coolDowns{pull: p, all: p}
}

const (
	coolFirst = time.Minute
	coolMost  = 15 * time.Minute

	// The breaker's pauses: short at first, since a restarted router is back in seconds.
	pauseFirst = 2 * time.Second
	pauseMost  = 30 * time.Second
)

// throttle begins the cool-down of a limit and returns how long it is.
func (c *coolDowns) throttle(m limit, wait time.Duration, version uint64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m == pulls {
		c.version = version
		return c.pull.Begin(wait, time.Now())
	}
	return c.all.Begin(wait, time.Now())
}

// pass says that a request went through, so that the next 429 begins with the first pause.
func (c *coolDowns) pass(m limit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.Reset()
	if m == pulls {
		c.pull.Reset()
	}
}

// check returns why a request must not be sent, or nil. While the breaker is open it lets
// one request through each time a pause has passed.
func (c *coolDowns) check(m limit, version uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if left := c.all.Left(now); left > 0 {
		return cooling("Docker Hub", left, "its abuse limit was met")
	}
	if left := c.pull.Left(now); m == pulls && c.version == version && left > 0 {
		return cooling("Docker Hub", left, "the pull limit was met")
	}
	if c.fall == nil || m == cdn {
		return nil
	}
	if now.Before(c.probeAt) {
		return c.fall
	}
	c.probeAt = now.Add(c.pause)
	return nil
}

func cooling(host string, left time.Duration, why string) error {
	return &upstreamError{cause: throttled, host: host, status: http.StatusTooManyRequests, retryAfter: left, err: errors.New(why + "; not asked again yet")}
}

// fell opens the breaker, or keeps it open for longer, because of a request sent at a
// time since which the registry has answered nobody.
func (c *coolDowns) fell(e *upstreamError, sent time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard.After(sent) {
		return
	}
	c.pause = cooldown.Double(c.pause, pauseFirst, pauseMost)
	c.fall, c.probeAt = e, time.Now().Add(c.pause)
}

// rose closes it.
func (c *coolDowns) rose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	c.fall, c.pause, c.refused = nil, 0, time.Time{}
}

// refuse says that the credential isn't accepted, and until when it isn't tried again.
func (c *coolDowns) refuse(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = until
}

// down returns why blobs can't be fetched now, as far as is known, or nil.
func (c *coolDowns) down() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if left := c.all.Left(now); left > 0 {
		return cooling("Docker Hub", left, "its abuse limit was met")
	}
	// Once a probe is due nothing is known any more, and the next request finds out: a
	// client that is held off here would never send it.
	if c.fall != nil && now.Before(c.probeAt) {
		return c.fall
	}
	if now.Before(c.refused) {
		return &upstreamError{cause: refused, host: "Docker Hub"}
	}
	return nil
}

// state is one word for people.
func (c *coolDowns) state(version uint64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case c.fall != nil:
		return "down"
	case now.Before(c.refused):
		return "denied"
	case c.all.Left(now) > 0, c.version == version && c.pull.Left(now) > 0:
		return "cooling"
	}
	return "ok"
}
