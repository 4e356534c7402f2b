package fetch

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// unusedAfter is how long a blob that was read ahead may wait for its client until it counts
// as fetched in vain.
const unusedAfter = 10 * time.Minute

// ReadAhead fetches the blobs of an image in the background, since a client has asked for one
// of them: as many at a time, of all images together, as Limits.Orphans, until all are in the
// store, one fails, or down returns an error. origin says of each, when its fetch begins,
// under which repository it comes in: a repository may have become private meanwhile.
//
// Images that lack more than half of what isn't pinned of the budget aren't read ahead: they would
// evict themselves.
func (p *Pool) ReadAhead(asked digest.Digest, image []Blob, origin func() storage.Origin, down func() error) {
	missing := int64(0)
	for _, b := range image {
		if _, ok := p.store.Has(b.Digest); !ok {
			missing += max(b.Size, 0)
		}
	}
	if missing > p.store.Unpinned()/2 {
		return
	}
	next := make(chan Blob, len(image))
	for _, b := range image {
		if b.Digest != asked {
			next <- b
		}
	}
	close(next)
	workers := min(len(image)-1, p.bounds.Load().Orphans)
	if workers <= 0 || !p.begin(workers) {
		return
	}
	for range workers {
		go func() {
			defer p.running.Done()
			for b := range next {
				slots := p.bounds.Load().readAhead
				if slots.Acquire(p.closing, 1) != nil {
					return
				}
				b.Origin = origin()
				ok := p.fetchAhead(b, down)
				slots.Release(1)
				if !ok {
					return
				}
			}
		}()
	}
}

// fetchAhead fetches one blob and reports whether to go on. With a single slot it does so while
// there is no other download, and gives way to those of clients.
func (p *Pool) fetchAhead(b Blob, down func() error) bool {
	for onlySlot := p.bounds.Load().Transfers == 1; ; {
		if _, ok := p.store.Has(b.Digest); ok {
			return true
		}
		if down() != nil || p.Failed(b.Origin.Repository, b.Digest) != nil {
			return false
		}
		doubtful := p.failed.Failed(b.key())
		p.mu.Lock()
		if p.flights[b.Digest] != nil {
			p.mu.Unlock()
			return true // a client was first
		}
		if onlySlot && len(p.flights) > 0 {
			idle := p.whenIdle()
			p.mu.Unlock()
			select {
			case <-idle:
				continue
			case <-p.closing.Done():
				return false
			}
		}
		f := p.start(b, doubtful)
		if f == nil {
			p.mu.Unlock()
			return false
		}
		f.ahead = newAhead()
		p.mu.Unlock()
		<-f.done
		if _, ok := p.store.Has(b.Digest); ok || !onlySlot || !errors.Is(context.Cause(f.ctx), errGaveWay) {
			return ok
		}
	}
}

// whenIdle returns a channel that is closed when there are no flights. mu is held, and there are
// some.
func (p *Pool) whenIdle() <-chan struct{} {
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	return p.idle
}

// giveWay ends the downloads that only read ahead, for one that a client needs: they hold the
// only slot. What has arrived is kept. mu is held.
func (p *Pool) giveWay() {
	if p.bounds.Load().Transfers > 1 {
		return
	}
	for _, f := range p.flights {
		if !f.wanted {
			f.cancel(errGaveWay)
		}
	}
}

// Asked says that a client asks for the blob, and returns what is known of it if it was read
// ahead in the last ten minutes, or nil. wanted is false for a HEAD: then it may still have been
// read ahead in vain.
func (p *Pool) Asked(d digest.Digest, wanted bool) *Ahead { return p.unused.asked(d, wanted) }

// Ahead is a blob that was read ahead a moment ago, for a pull whose client has yet to ask for it.
// What is sent of it first is no hit of earlier work: it would have been fetched now. All methods
// are safe for concurrent use.
type Ahead struct {
	size atomic.Int64 // bytes; a large number while it is unknown
	sent atomic.Int64 // bytes that were sent of it, up to size
}

func newAhead() *Ahead {
	a := &Ahead{}
	a.size.Store(math.MaxInt64)
	return a
}

// Sent says that n bytes of it were sent to a client. It returns how many of them are the first
// that were sent of the blob, and whether some were missing before: each byte counts once,
// whether its client asks for the blob as a whole or in parts.
func (a *Ahead) Sent(n int64) (first int64, some bool) {
	for {
		sent := a.sent.Load()
		if first = min(n, a.size.Load()-sent); first < 0 || sent >= a.size.Load() {
			return 0, false
		}
		if a.sent.CompareAndSwap(sent, sent+first) {
			return first, true
		}
	}
}

// unused knows what was read ahead, and counts what is not asked for in time.
type unused struct {
	mu    sync.Mutex // guards what follows
	blobs map[digest.Digest]*unusedBlob
	bytes int64
}

type unusedBlob struct {
	*Ahead
	asked bool // a client has asked for it
	timer *time.Timer
}

// add takes note of a blob that was read ahead. asked says that a client has asked for it already.
func (u *unused) add(d digest.Digest, a *Ahead, asked bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	b := &unusedBlob{Ahead: a, asked: asked}
	b.timer = time.AfterFunc(unusedAfter, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.blobs[d] != b {
			return
		}
		delete(u.blobs, d)
		if !b.asked {
			u.bytes += a.size.Load()
		}
	})
	u.blobs[d] = b
}

func (u *unused) asked(d digest.Digest, wanted bool) *Ahead {
	u.mu.Lock()
	defer u.mu.Unlock()
	b := u.blobs[d]
	if b == nil {
		return nil
	}
	b.asked = b.asked || wanted
	return b.Ahead
}

// stop stops the timers.
func (u *unused) stop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for d, b := range u.blobs {
		b.timer.Stop()
		delete(u.blobs, d)
	}
}

func (u *unused) total() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.bytes
}
