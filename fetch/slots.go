package fetch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/storage"
)

// slotDeadline is how long a request waits for a slot: containerd gives up after 30 s
// without headers, and the source needs some of that time.
const slotDeadline = 15 * time.Second

// What a connection that carries a blob is wanted for.
const (
	toBegin  = slots.Urgent // a client has nothing of the blob yet
	toHasten = slots.Later  // one more for a blob that is on its way
	toReturn = slots.Later  // a client that was cut a while ago
)

// waitForSlot waits for a slot. Errors: ErrBusy, ctx's cause.
func waitForSlot(ctx context.Context, s *slots.Slots, client string, p slots.Priority) error {
	wait, cancel := context.WithTimeout(ctx, slotDeadline)
	defer cancel()
	if s.Acquire(wait, client, p) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrBusy
}

const (
	// cutEvery is how often the clients that hold slots are looked through while others wait.
	cutEvery = time.Second

	// asideFor is how long a client that was cut stands back behind those who wait for a slot. It
	// comes back at once, and then it isn't slow for a minute.
	asideFor = 2 * time.Minute
)

// bypassSlots are the slots of bypasses. A bypass holds its slot for as long as its client reads. So
// while somebody waits for a slot, clients that read slowly are cut: as many as slots are wanted,
// those first that have been slow for longest. Who was refused a slot finds them slow still when
// it asks again, since a client is slow until it has taken its 2 MiB; a slot that was freed before
// would be taken by the next one who comes, mostly the client that was cut.
//
// A client that has its share of the slots gets no more by others being cut, but only by its
// own slow readers being cut.
type bypassSlots struct {
	slots   *slots.Slots
	readers *storage.Recipients // of all bypassSlots of the pool
	aside   cooldown.Memory     // who was cut, by holder.key

	// mu guards what follows. No other lock is taken while it is held.
	mu      sync.Mutex
	waiting int           // those who wait for a slot
	nobody  chan struct{} // closed when waiting becomes 0
}

func newBypassSlots(n int, readers *storage.Recipients) *bypassSlots {
	return &bypassSlots{slots: slots.New(n, 0), readers: readers}
}

// holder is who has a slot.
type holder struct {
	slots  *bypassSlots
	client string
	blob   string // its Blob.key
}

func (h *holder) key() string { return h.client + " " + h.blob }

// acquire waits for a slot, and returns the client that holds it until free is called.
// Errors: ErrBusy, ctx's cause.
func (s *bypassSlots) acquire(ctx context.Context, b *Blob) (to *storage.Recipient, free func(), err error) {
	h := &holder{s, b.Client, b.key()}
	if !s.slots.TryAcquire(b.Client, 0) {
		priority := toBegin
		if s.aside.Has(h.key()) {
			priority = toReturn
		}
		s.enter()
		err = waitForSlot(ctx, s.slots, b.Client, priority)
		s.leave()
	}
	if err != nil {
		return nil, nil, err
	}
	return s.readers.Add(h), func() { s.slots.Release(b.Client) }, nil
}

// enter counts one who waits, and leave takes it back.
func (s *bypassSlots) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting++; s.waiting == 1 {
		s.nobody = make(chan struct{})
		go s.cutWhileWanted(s.nobody)
	}
}

func (s *bypassSlots) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting--; s.waiting == 0 {
		close(s.nobody)
	}
}

// cutWhileWanted cuts slow clients now and then, until nobody waits for a slot.
func (s *bypassSlots) cutWhileWanted(nobody <-chan struct{}) {
	tick := time.NewTicker(cutEvery)
	defer tick.Stop()
	for {
		s.cutSlow()
		select {
		case <-nobody:
			return
		case <-tick.C:
		}
	}
}

// cutSlow cuts as many slow clients as slots are wanted.
func (s *bypassSlots) cutSlow() {
	anyone, own := s.slots.Lacking(toBegin)
	slow := s.slow()
	for _, c := range slow { // those that were cut and still have their slots come first
		h := c.Keeps.(*holder)
		switch {
		case own[h.client] > 0:
			own[h.client]--
		case anyone > 0:
			anyone--
		default:
			continue
		}
		if !c.Ended {
			s.aside.Add(h.key(), asideFor, nil)
			c.Cut()
		}
	}
}

// slow returns the slow clients that hold slots: first those that were cut already, then those that
// have been slow for longest.
func (s *bypassSlots) slow() []storage.SlowRecipient {
	slow := slices.DeleteFunc(s.readers.Slow(), func(c storage.SlowRecipient) bool { return c.Keeps.(*holder).slots != s })
	slices.SortFunc(slow, func(a, b storage.SlowRecipient) int {
		if a.Ended != b.Ended {
			if a.Ended {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Since, b.Since)
	})
	return slow
}
