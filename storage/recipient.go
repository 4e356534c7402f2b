package storage

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// ErrSlow: the client reads so slowly that its blob keeps room that others need.
var ErrSlow = errors.New("the client reads too slowly, and the cache has no room for others")

const (
	// While room is short, a client may take slowAfter for each slowStep bytes: 34 KiB/s. It is
	// that much at once because the kernel takes bytes for a client in lumps, of up to a third of
	// tcp_wmem (1.4 MiB by default): a client that takes 64 KiB/s all the time surely gets its
	// step in time, and one that pauses for most of a minute, because its disk is busy, does too.
	slowStep  = 2 << 20
	slowAfter = time.Minute

	// shortFor is for how many times slowAfter room stays short after a refusal. In the first the
	// kernel may have taken a lump, and the client nothing; and who was refused has time to ask
	// again.
	shortFor = 2

	// slowEvery is how often the recipients are looked through while room is short.
	slowEvery = time.Second
)

// Recipient is the client to whom the bytes of a Blob or a Reader are sent, which keeps their
// room until it has them. While room is short, the store ends the sending to slow ones.
//
// Between Begin and End, the goroutine that sends tells of each time that it waits for the
// client, and what the client took. Only these times count, not those in which the blob's own
// bytes are waited for. A nil Recipient is never ended.
type Recipient struct {
	room   *room
	blob   *entry  // of a Blob
	ingest *Ingest // of a Reader

	// These belong to the goroutine that sends.
	taken  int64         // bytes of the current step
	left   time.Duration // of the time for the step
	listed bool          // in room.short.recipients

	slowAt atomic.Int64 // by room.clock, when a client that is waited for becomes slow; 0: nobody waits
	ended  atomic.Bool  // the store has ended the sending; set with mu held

	// mu guards conn. It is held while a deadline is set, and no other lock is taken then.
	mu   sync.Mutex
	conn any // of the client; nil: nothing is being sent
}

// deadliner is what the connection of a client should have, as those of net/http do. Without it,
// the sending ends with the next bytes that the client takes.
type deadliner interface{ SetWriteDeadline(time.Time) error }

// Begin says that bytes are sent to conn from now on. If it has a SetWriteDeadline method, that
// may be called until End, with a time that has passed.
func (c *Recipient) Begin(conn any) {
	if c == nil {
		return
	}
	c.taken, c.left = 0, c.room.patience
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
}

// Wait says that the client is waited for, until Took.
func (c *Recipient) Wait() {
	if c == nil {
		return
	}
	c.slowAt.Store(int64(c.room.clock() + c.left))
	if !c.listed {
		c.listed = true
		c.room.list(c)
	}
}

// Took says that the client took n bytes, and isn't waited for any more.
func (c *Recipient) Took(n int64) {
	if c == nil {
		return
	}
	if at := c.slowAt.Load(); at != 0 {
		c.left = time.Duration(at) - c.room.clock()
		c.slowAt.Store(0)
	}
	if c.taken += n; c.taken >= slowStep {
		c.taken, c.left = c.taken%slowStep, c.room.patience
	}
}

// Err returns ErrSlow when the store has ended the sending. Ask after each change of the write
// deadline, which may have replaced the one that was to end it.
func (c *Recipient) Err() error {
	if c != nil && c.ended.Load() {
		return ErrSlow
	}
	return nil
}

// End says that nothing more is sent. It returns err, or ErrSlow in place of it when the store
// has ended the sending.
func (c *Recipient) End(err error) error {
	if c == nil {
		return err
	}
	if c.listed {
		c.listed = false
		c.room.unlist(c)
	}
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
	if err != nil && c.ended.Load() {
		return ErrSlow
	}
	return err
}

// end ends the sending. It reports whether there was one to be ended.
func (c *Recipient) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.ended.Load() {
		return false
	}
	c.ended.Store(true)
	if d, ok := c.conn.(deadliner); ok {
		d.SetWriteDeadline(time.Now())
	}
	return true
}

// entry returns the entry whose room the client keeps; nil while its blob is being downloaded,
// for then it isn't the client that needs the room. room.mu is held.
func (c *Recipient) entry() *entry {
	if c.ingest == nil {
		return c.blob
	}
	c.ingest.mu.Lock()
	defer c.ingest.mu.Unlock()
	return c.ingest.entry
}

// shortage is what was refused for lack of room that readers keep. Its zero value says that
// nothing was. room.mu guards it.
type shortage struct {
	until time.Duration // by room.clock, when it is over

	wants map[digest.Digest]int64    // bytes that were refused; at most maxWants
	aside map[digest.Digest]struct{} // what was evicted because only slow clients read it
}

// maxWants is how many refusals are remembered. More say nothing new.
const maxWants = 1024

// want returns the most that was refused to one blob.
func (s *shortage) want() (most int64) {
	for _, n := range s.wants {
		most = max(most, n)
	}
	return most
}

// keptOut reports whether n bytes of d, which have made room for others because only slow
// clients read them, would take that room again: the clients come back at once. mu is held.
func (r *room) keptOut(d digest.Digest, n int64) bool {
	if _, ok := r.short.aside[d]; !ok {
		return false
	}
	u := r.lru.Usage()
	return u.Used-u.Idle+u.Reserved+n+r.short.want() > u.Max
}

// refused notes that n bytes were refused to d, for which short bytes had to leave the file
// system. That makes room short, unless they would have been refused without readers too:
// because of downloads, or of files that aren't ours.
func (r *room) refused(d digest.Digest, n, short int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u := r.lru.Usage(); u.Reserved+n > u.Max || short > u.Used {
		return
	}
	s := &r.short
	if s.until == 0 {
		*s = shortage{wants: map[digest.Digest]int64{}, aside: map[digest.Digest]struct{}{}}
	}
	s.until = r.clock() + shortFor*r.patience
	if len(s.wants) < maxWants {
		s.wants[d] = max(s.wants[d], n)
	}
	select {
	case r.isShort <- struct{}{}:
	default: // it is known
	}
}

// clock is the time since the store was opened. It doesn't jump.
func (r *room) clock() time.Duration { return time.Since(r.opened) }

func (r *room) list(c *Recipient) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recipients[c] = struct{}{}
}

func (r *room) unlist(c *Recipient) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.recipients, c)
}

// endSlow ends the sending to slow clients until what they keep would be room enough, evicts
// what they read, and reports whether room is still short. Blobs that are evicted already come
// first, then those of the slowest clients. A blob that anybody else reads stays, as do its slow
// readers: it would give no room.
func (r *room) endSlow() (still bool) {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	r.mu.Lock()
	want := r.short.want()
	r.mu.Unlock()
	space := r.space.short(0, r.keepFree()+want)
	r.mu.Lock()
	if r.clock() > r.short.until {
		r.short = shortage{}
		r.mu.Unlock()
		return false
	}
	u := r.lru.Usage()
	lacking := max(u.Used+u.Reserved+want-u.Max, space) - u.Idle
	var ended []*Recipient
	var victims []*entry
	if want > 0 && lacking > 0 {
		for _, s := range r.slow() {
			if lacking -= s.entry.Size; !s.leaving {
				victims = append(victims, r.lru.Remove(s.entry.Key))
				r.short.aside[s.entry.Key] = struct{}{}
			}
			if ended = append(ended, s.recipients...); lacking <= 0 {
				break
			}
		}
	}
	r.evict(victims, space > 0)
	r.mu.Unlock()
	for _, c := range ended {
		if c.end() {
			r.slowEnded.Add(1)
		}
	}
	r.unlink(victims)
	return true
}

// slowEntry is an entry that is read by slow clients only.
type slowEntry struct {
	entry      *entry
	leaving    bool
	at         int64 // when the last of the clients became slow
	recipients []*Recipient
}

// slow returns what is read by slow clients only, in the order in which it gives its room. mu is
// held.
func (r *room) slow() (slow []*slowEntry) {
	now := int64(r.clock())
	found := map[*entry]*slowEntry{}
	for c := range r.recipients {
		at := c.slowAt.Load()
		if !c.ended.Load() && (at == 0 || at > now) {
			continue
		}
		e := c.entry()
		if e == nil {
			continue
		}
		if found[e] == nil {
			found[e] = &slowEntry{entry: e}
		}
		s := found[e]
		s.at, s.recipients = max(s.at, at), append(s.recipients, c)
	}
	for e, s := range found {
		var readers int
		if readers, s.leaving = r.lru.Held(e); readers == len(s.recipients) {
			slow = append(slow, s)
		}
	}
	slices.SortFunc(slow, func(a, b *slowEntry) int {
		if a.leaving != b.leaving {
			if a.leaving {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.at, b.at)
	})
	return slow
}
