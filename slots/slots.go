// Package slots bounds how many things go on at one time, and lets clients take turns.
package slots

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// ErrFull: no slot is free, and too many wait for one.
var ErrFull = errors.New("too many requests wait already")

// Priority says who gets a slot first, whoever asks.
type Priority uint8

// The priorities.
const (
	Urgent Priority = iota
	Later
	priorities
)

// share is how many slots a client may hold for each one that stays free: while others could
// come, it has two thirds of all, and the next client finds a free one.
const share = 2

// Slots are a number of slots for clients, which are named by any text. Where more is wanted
// than there is, the more urgent priority comes first, and within one the clients take turns:
// a client that wants a thousand slots delays one that wants its first by a single turn.
//
// The client "" is everybody who needs no other name. It has its turns like any client, and
// may hold all slots.
//
// All methods are safe for concurrent use.
type Slots struct {
	most int // waiters; 0: any number

	mu      sync.Mutex // guards what follows
	free    int
	held    map[string]int // by client
	lines   [priorities]line
	waiting int           // in all lines
	freed   chan struct{} // closed when a slot comes free; nil: nobody waits for that
}

// New returns n slots, for which at most most callers wait at one time; 0: any number.
func New(n, most int) *Slots {
	return &Slots{most: most, free: n, held: map[string]int{}}
}

// TryAcquire takes a slot if it need not wait, and so many others stay free.
func (s *Slots) TryAcquire(client string, others int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free <= others || !s.mayHave(client) {
		return false
	}
	s.take(client)
	return true
}

// WaitFree waits until more than others slots are free. It takes none, so that whoever waits here
// is behind everybody who waits for a slot.
// Errors: the cause of ctx.
func (s *Slots) WaitFree(ctx context.Context, others int) error {
	for {
		s.mu.Lock()
		if s.free > others {
			s.mu.Unlock()
			return nil
		}
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Acquire waits for a slot. If too many wait, the client with the longest line has to give up
// a place in it.
// Errors: ErrFull, the cause of ctx.
func (s *Slots) Acquire(ctx context.Context, client string, p Priority) error {
	s.mu.Lock()
	if s.mayHave(client) { // then no waiter may have it: see grant
		s.take(client)
		s.mu.Unlock()
		return nil
	}
	if s.most > 0 && s.waiting >= s.most && !s.makePlace(client, p) {
		s.mu.Unlock()
		return ErrFull
	}
	w := &waiter{ready: make(chan struct{})}
	s.lines[p].push(client, w)
	s.waiting++
	s.mu.Unlock()
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	gone := s.lines[p].remove(client, w)
	if gone {
		s.waiting--
	}
	s.mu.Unlock()
	if !gone && w.err == nil { // it came at the same moment
		s.Release(client)
	}
	return context.Cause(ctx)
}

// Yield gives the slot to a waiter of the same or a more urgent priority, and waits for
// another one. It reports whether the caller has a slot.
func (s *Slots) Yield(ctx context.Context, client string, p Priority) bool {
	s.mu.Lock()
	wanted := false
	for i := range s.lines[:p+1] {
		wanted = wanted || len(s.lines[i].turns) > 0
	}
	s.mu.Unlock()
	if !wanted {
		return true
	}
	s.Release(client)
	return s.Acquire(ctx, client, p) == nil
}

// Lacking returns for how many slots callers of this priority wait that somebody has to give back:
// anyone, or, where a client has its share already, only that client itself.
func (s *Slots) Lacking(p Priority) (anyone int, own map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own = map[string]int{}
	for client, waiters := range s.lines[p].of {
		n := len(waiters)
		if client != "" {
			n = 0
			if s.free == 0 { // otherwise it might have a free one, but for its share
				n = min(max(share-s.held[client], 0), len(waiters))
			}
			own[client] = len(waiters) - n
		}
		anyone += n
	}
	return anyone, own
}

// Release gives a slot back.
func (s *Slots) Release(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.held[client]--; s.held[client] == 0 {
		delete(s.held, client)
	}
	s.grant()
	if s.freed != nil && s.free > 0 {
		close(s.freed)
		s.freed = nil
	}
}

// mayHave reports whether the client may have one more slot now. mu is held.
func (s *Slots) mayHave(client string) bool {
	return s.free > 0 && (client == "" || s.held[client] < share*s.free)
}

// take takes a slot. mu is held.
func (s *Slots) take(client string) {
	s.free--
	s.held[client]++
}

// grant hands out what is free, until no waiter may have it. mu is held.
func (s *Slots) grant() {
	for {
		var w *waiter
		for i := range s.lines {
			var client string
			if client, w = s.lines[i].pop(s.mayHave); w != nil {
				s.take(client)
				break
			}
		}
		if w == nil {
			return
		}
		s.waiting--
		close(w.ready)
	}
}

// makePlace sends the last waiter of the longest line away, unless the caller's own line would
// be the longest. mu is held.
func (s *Slots) makePlace(client string, p Priority) bool {
	l := &s.lines[p]
	longest := ""
	for c, ws := range l.of {
		if len(ws) > len(l.of[longest]) {
			longest = c
		}
	}
	ws := l.of[longest]
	if len(ws) <= len(l.of[client])+1 {
		return false
	}
	last := ws[len(ws)-1]
	l.remove(longest, last)
	s.waiting--
	last.err = ErrFull
	close(last.ready)
	return true
}

// waiter waits for a slot.
type waiter struct {
	ready chan struct{} // closed when it has its slot, or err
	err   error         // why it gets none; written before ready is closed
}

// line has waiters, from which clients are served in turns. The zero value is empty.
type line struct {
	turns []string             // the clients in of; the next one first
	of    map[string][]*waiter // the waiters of each client; those who came first, first
}

func (l *line) push(client string, w *waiter) {
	if l.of == nil {
		l.of = map[string][]*waiter{}
	}
	if len(l.of[client]) == 0 {
		l.turns = append(l.turns, client)
	}
	l.of[client] = append(l.of[client], w)
}

// pop takes out the next waiter whose client may have a slot; nil: there is none.
func (l *line) pop(mayHave func(string) bool) (client string, w *waiter) {
	i := slices.IndexFunc(l.turns, mayHave)
	if i < 0 {
		return "", nil
	}
	client = l.turns[i]
	w = l.of[client][0]
	l.remove(client, w)
	if len(l.of[client]) > 0 { // its next turn is after all others
		l.turns = append(slices.Delete(l.turns, i, i+1), client)
	}
	return client, w
}

// remove takes out a waiter, and reports whether it was there.
func (l *line) remove(client string, w *waiter) bool {
	i := slices.Index(l.of[client], w)
	if i < 0 {
		return false
	}
	l.of[client] = slices.Delete(l.of[client], i, i+1)
	if len(l.of[client]) == 0 {
		delete(l.of, client)
		i = slices.Index(l.turns, client)
		l.turns = slices.Delete(l.turns, i, i+1)
	}
	return true
}
