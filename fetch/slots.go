package fetch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// slotDeadline is how long a request waits for a slot: containerd gives up after 30 s
// without headers, and the source needs some of that time.
const slotDeadline = 15 * time.Second

// waitForSlot waits for a slot with acquire. Errors: ErrBusy, ctx's cause.
func waitForSlot(ctx context.Context, acquire func(context.Context) error) error {
	wait, cancel := context.WithTimeout(ctx, slotDeadline)
	defer cancel()
	if acquire(wait) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrBusy
}

// priority is what a connection that carries a blob is wanted for.
type priority uint8

const (
	toBegin  priority = iota // a client has nothing of the blob yet
	toHasten                 // one more for a blob that is on its way
	priorities
)

// slots bound the connections that carry blobs (limits.transfers). The more urgent priority
// comes first, and within one the caller who has waited longer.
type slots struct {
	mu      sync.Mutex // guards what follows
	free    int
	waiting [priorities][]chan struct{} // closed when the waiter has its slot
}

func newSlots(n int) *slots { return &slots{free: n} }

// tryAcquire takes a slot if so many others stay free.
func (s *slots) tryAcquire(others int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free <= others {
		return false
	}
	s.free--
	return true
}

// acquire waits for a slot, or for ctx.
func (s *slots) acquire(ctx context.Context, p priority) error {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	s.waiting[p] = append(s.waiting[p], mine)
	s.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.waiting[p], mine)
	if i >= 0 {
		s.waiting[p] = slices.Delete(s.waiting[p], i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // it came at the same moment
		s.release()
	}
	return context.Cause(ctx)
}

// yield gives the slot to a waiter of the same or a more urgent priority, and waits for
// another one. It reports whether the caller has a slot.
func (s *slots) yield(ctx context.Context, p priority) bool {
	s.mu.Lock()
	wanted := false
	for _, queue := range s.waiting[:p+1] {
		wanted = wanted || len(queue) > 0
	}
	s.mu.Unlock()
	if !wanted {
		return true
	}
	s.release()
	return s.acquire(ctx, p) == nil
}

// release gives a slot back, to the most urgent waiter.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, queue := range s.waiting {
		if len(queue) > 0 {
			close(queue[0])
			s.waiting[p] = queue[1:]
			return
		}
	}
	s.free++
}
