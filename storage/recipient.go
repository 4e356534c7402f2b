package storage

import (
	"cmp"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrSlow: the client reads so slowly that it keeps others from what they need.
var ErrSlow = errors.New("the client reads too slowly, and others need what it keeps")

const (
	// While room is short, a client may take slowAfter for each slowStep bytes: 34 KiB/s. It is
	// that much at once because the kernel takes bytes for a client in lumps, of up to a third of
	// tcp_wmem (1.4 MiB by default): a client that takes 64 KiB/s all the time surely gets its
	// step in time, and one that pauses for most of a minute, because its disk is busy, does too.
	slowStep  = 2 << 20
	slowAfter = time.Minute
)

// Recipients are the clients to whom something is sent, and who keep something from others until
// they have it all. All methods are safe for concurrent use.
type Recipients struct {
	opened   time.Time     // the zero of clock
	patience time.Duration // how long a client may take for slowStep bytes
	cut      atomic.Int64  // those whose sending was ended

	// mu guards waitedFor. No other lock is taken while it is held.
	mu        sync.Mutex
	waitedFor map[*Recipient]struct{} // those that have been waited for, until their End
}

// NewRecipients returns Recipients among whom a client is slow that takes longer than patience for
// 2 MiB. 0: a minute.
func NewRecipients(patience time.Duration) *Recipients {
	return &Recipients{opened: time.Now(), patience: cmp.Or(patience, slowAfter), waitedFor: map[*Recipient]struct{}{}}
}

// Add returns a new Recipient. What it keeps from others is for those who look through the slow ones.
func (rs *Recipients) Add(keeps any) *Recipient { return &Recipient{all: rs, keeps: keeps} }

// Cut returns how many clients were cut off.
func (rs *Recipients) Cut() int64 { return rs.cut.Load() }

// SlowRecipient is a client that is slow, or was cut and hasn't noticed it yet.
type SlowRecipient struct {
	*Recipient
	Keeps any
	Since int64 // when it became slow, for comparing; 0: it was cut, and isn't waited for
	Ended bool  // it was cut
}

// Slow returns the slow ones, in any order.
func (rs *Recipients) Slow() (slow []SlowRecipient) {
	now := int64(rs.clock())
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for c := range rs.waitedFor {
		at, ended := c.slowAt.Load(), c.ended.Load()
		if ended || at != 0 && at <= now {
			slow = append(slow, SlowRecipient{c, c.keeps, at, ended})
		}
	}
	return slow
}

// clock is the time since NewRecipients. It doesn't jump.
func (rs *Recipients) clock() time.Duration { return time.Since(rs.opened) }

func (rs *Recipients) list(c *Recipient) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.waitedFor[c] = struct{}{}
}

func (rs *Recipients) unlist(c *Recipient) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.waitedFor, c)
}

// Recipient is the client to whom bytes are sent, and who keeps something from others until it has
// them: the room of a Blob or a Reader. Where that is short, slow ones are cut.
//
// Between Begin and End, the goroutine that sends tells of each time that it waits for the
// client, and what the client took. Only these times count, not those in which the blob's own
// bytes are waited for. A nil Recipient is never cut.
type Recipient struct {
	all   *Recipients
	keeps any

	// These belong to the goroutine that sends.
	taken  int64         // bytes of the current step
	left   time.Duration // of the time for the step
	listed bool          // in all.waitedFor

	slowAt atomic.Int64 // by all.clock, when a client that is waited for becomes slow; 0: nobody waits
	ended  atomic.Bool  // the client was cut; set with mu held

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
	c.taken, c.left = 0, c.all.patience
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
}

// Wait says that the client is waited for, until Took.
func (c *Recipient) Wait() {
	if c == nil {
		return
	}
	c.slowAt.Store(int64(c.all.clock() + c.left))
	if !c.listed {
		c.listed = true
		c.all.list(c)
	}
}

// Took says that the client took n bytes, and isn't waited for any more.
func (c *Recipient) Took(n int64) {
	if c == nil {
		return
	}
	if at := c.slowAt.Load(); at != 0 {
		c.left = time.Duration(at) - c.all.clock()
		c.slowAt.Store(0)
	}
	if c.taken += n; c.taken >= slowStep {
		c.taken, c.left = c.taken%slowStep, c.all.patience
	}
}

// Err returns ErrSlow when the client was cut. Ask after each change of the write
// deadline, which may have replaced the one that was to end it.
func (c *Recipient) Err() error {
	if c != nil && c.ended.Load() {
		return ErrSlow
	}
	return nil
}

// End says that nothing more is sent. It returns err, or ErrSlow in place of it when the client
// was cut.
func (c *Recipient) End(err error) error {
	if c == nil {
		return err
	}
	if c.listed {
		c.listed = false
		c.all.unlist(c)
	}
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
	if err != nil && c.ended.Load() {
		return ErrSlow
	}
	return err
}

// Cut ends the sending. It reports whether there was one to be ended.
func (c *Recipient) Cut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.ended.Load() {
		return false
	}
	c.ended.Store(true)
	c.all.cut.Add(1)
	if d, ok := c.conn.(deadliner); ok {
		d.SetWriteDeadline(time.Now())
	}
	return true
}
