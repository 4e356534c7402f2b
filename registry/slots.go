package registry

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// slots bounds how many of something go on at once. Who waits is served in order;
// TryAcquire never overtakes them.
type slots = semaphore.Weighted

// slotDeadline is how long a request waits for a slot: containerd gives up after 30 s
// without headers, and upstream needs some of that time.
const slotDeadline = 15 * time.Second

// errTooMany: no slot came free in time.
var errTooMany = &upstreamError{cause: throttled, host: "hubcache", retryAfter: retrySoon, err: errors.New("too many downloads are under way (limits.transfers, limits.bypass)")}

// takeSlot waits for a slot with acquire. Errors: errTooMany, or ctx's.
func takeSlot(ctx context.Context, acquire func(context.Context) error) error {
	wait, cancel := context.WithTimeout(ctx, slotDeadline)
	defer cancel()
	if acquire(wait) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errTooMany
}

// need is what a connection that carries a blob is wanted for.
type need uint8

const (
	toBegin  need = iota // a client has nothing of the blob yet
	toHasten             // one more for a blob that is on its way
	needs
)

// lanes bounds the connections that carry blobs (limits.transfers). The more urgent need
// comes first, and within one who has waited longer.
type lanes struct {
	mu      sync.Mutex // guards what follows
	free    int
	waiting [needs][]chan struct{} // closed when a lane is the waiter's
}

func newLanes(n int) *lanes { return &lanes{free: n} }

// tryAcquire takes a lane that nobody waits for, if spare others stay free.
func (l *lanes) tryAcquire(spare int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free <= spare {
		return false
	}
	l.free--
	return true
}

// acquire waits for a lane, or for ctx.
func (l *lanes) acquire(ctx context.Context, n need) error {
	l.mu.Lock()
	if l.free > 0 {
		l.free--
		l.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	l.waiting[n] = append(l.waiting[n], mine)
	l.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	i := slices.Index(l.waiting[n], mine)
	if i >= 0 {
		l.waiting[n] = slices.Delete(l.waiting[n], i, i+1)
	}
	l.mu.Unlock()
	if i < 0 { // it came at the same moment
		l.release()
	}
	return context.Cause(ctx)
}

// yield lets those who need a lane as much or more have this one, and waits for another. It
// reports whether it has one.
func (l *lanes) yield(ctx context.Context, n need) bool {
	l.mu.Lock()
	wanted := false
	for _, queue := range l.waiting[:n+1] {
		wanted = wanted || len(queue) > 0
	}
	l.mu.Unlock()
	if !wanted {
		return true
	}
	l.release()
	return l.acquire(ctx, n) == nil
}

// release gives a lane back, to who needs it most.
func (l *lanes) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, queue := range l.waiting {
		if len(queue) > 0 {
			close(queue[0])
			l.waiting[n] = queue[1:]
			return
		}
	}
	l.free++
}
