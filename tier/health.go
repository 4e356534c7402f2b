package tier

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hubcache/hubcache/cooldown"
)

// logEvery is how often it is logged that an engine is unwell.
const logEvery = time.Minute

// health decides whether bucket or leases are asked. All methods are safe for concurrent use.
type health struct {
	name string
	log  *slog.Logger
	pace pace

	mu     sync.Mutex // guards what follows
	reason error      // of the last failure; nil: it is well
	pause  cooldown.Pause
	tried  time.Time // when the last one began to try
	logged time.Time
}

// ask reports whether the engine may be asked now. While it is unwell, one in a while may.
func (h *health) ask() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reason == nil {
		return true
	}
	now := time.Now()
	if h.pause.Left(now) > 0 || now.Sub(h.tried) < h.pace.probe {
		return false
	}
	h.tried = now
	return true
}

// note takes note of how a request went. One that its caller has ended says nothing.
func (h *health) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if err == nil {
		if h.reason != nil {
			h.log.Info("the shared tier is well again", "engine", h.name)
		}
		h.reason, h.pause, h.tried = nil, cooldown.Pause{}, time.Time{}
		return
	}
	h.pause.First, h.pause.Most = h.pace.restFirst, h.pace.restMost
	h.pause.Begin(0, now)
	h.reason, h.tried = err, time.Time{}
	if now.Sub(h.logged) >= logEvery {
		h.logged = now
		h.log.Warn("the shared tier is unwell; this node goes on alone", "engine", h.name, "error", err)
	}
}

// state returns "well", or why the engine isn't.
func (h *health) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reason == nil {
		return Well
	}
	return h.reason.Error()
}
