package fetch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// A reader may need bytes that the download, in the order of the blob, would bring late: lazy
// pullers read the end of a layer first, and parallel pullers read it at many places. So when a
// reader begins to wait for bytes, they are claimed for it, if nobody has claimed them, and a
// worker of its own fetches them at once: a demand. Bytes that another worker would come to late
// are taken from its chunk. After that the download goes on in the order of the blob.
const (
	// demandFirst is what is fetched first for a reader of which nobody knows how much it reads;
	// and what is asked for at least at a time of a blob of which only parts were asked for, so
	// that each place in it comes soon.
	demandFirst = 1 << 20

	// demandAhead is how far before a reader its bytes are claimed.
	demandAhead = 8 << 20

	// nearTime is how long a reader waits for bytes that are on their way before they are asked for
	// by another connection: what that costs itself.
	nearTime = 100 * time.Millisecond

	// assumedPace is how many bytes a second a connection is taken to bring before that is known:
	// what a CDN gives at least, mostly.
	assumedPace = 20_000_000

	// pauseMost is how long a connection for whose bytes nobody waits stands still, at most, while
	// others bring what readers wait for. So nothing stands still for good.
	pauseMost = time.Second
)

// demanded is told that a reader begins to wait.
func (d *download) demanded(w storage.Want) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.alive == 0 || d.demanding >= d.ranges {
		return // a worker that has fetched its demand looks at all readers
	}
	if j := d.claimFor(w); j != nil {
		d.demand(j)
	}
}

// demand adds a worker that fetches j, and after that what else readers need. mu is held; alive
// isn't 0.
func (d *download) demand(j *job) {
	d.demanding++
	d.alive++
	d.others.Go(func() {
		defer d.ended()
		d.pool.demands.enter()
		defer d.pool.demands.leave()
		w := &worker{d: d, demand: true}
		if next := d.claimPart(); next != nil { // readers of parts need several chunks at once
			d.mu.Lock()
			d.demanding--
			d.demand(next)
			d.mu.Unlock()
		}
		for ; j != nil; j = d.nextDemand() {
			if !w.held {
				w.seek(toBegin, 0)
			}
			if !w.held || !w.fetch(j) {
				break // the download has ended
			}
		}
		w.putDown()
	})
}

// nextDemand ends a demand and claims what another one of the readers needs, or nil.
func (d *download) nextDemand() *job {
	d.mu.Lock()
	d.demanding-- // from here on demanded begins a new one
	d.mu.Unlock()
	return d.claimWanted(func(storage.Want) bool { return true })
}

// claimPart claims what a reader of a part needs next, and counts the demand, or returns nil.
func (d *download) claimPart() *job {
	return d.claimWanted(func(w storage.Want) bool { return w.Part })
}

func (d *download) claimWanted(from func(storage.Want) bool) *job {
	wants := d.f.in.Wants()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range wants {
		if d.demanding >= d.ranges {
			break
		}
		if !from(w) {
			continue
		}
		if j := d.claimFor(w); j != nil {
			d.demanding++
			return j
		}
	}
	return nil
}

// claimFor claims the first bytes that a reader needs next, and that would otherwise come late. It
// returns nil when there is nothing to claim. mu is held.
func (d *download) claimFor(w storage.Want) *job {
	if d.err != nil || d.size < 0 || w.Waits && d.comesSoon(w.At) && !w.Part {
		return nil
	}
	end := d.window(w)
	for i, s := range d.todo {
		s = storage.Span{From: max(s.From, w.At), To: min(s.To, end)}
		if s.From >= s.To {
			continue
		}
		if i == 0 && s.From == d.todo[0].From && d.comesNext(s.From, w.Part) {
			return nil
		}
		if s.To = min(s.To, s.From+minChunk); d.todo[i].To-s.To < storage.Piece {
			s.To = d.todo[i].To // no request for a small rest
		}
		return d.take(s)
	}
	return nil
}

// window returns how far the bytes of a reader are claimed. mu is held.
func (d *download) window(w storage.Want) int64 {
	to := w.To
	if to < 0 {
		to = d.size
	}
	if !w.Part {
		return min(to, wholePieces(w.At+min(max(2*(w.At-w.From), demandFirst), demandAhead)))
	}
	// Whoever reads a small part often reads the next one after it.
	least := min(max(d.bytesIn(nearTime), storage.Piece), demandFirst)
	return min(d.size, wholePieces(max(min(to, w.At+demandAhead), w.At+least)))
}

// comesNext reports whether a worker is about to claim the bytes at from, the first that nobody has
// claimed, for a reader that needs them. mu is held.
func (d *download) comesNext(from int64, part bool) bool {
	if part {
		return d.fast && d.running > 0
	}
	return !slices.ContainsFunc(d.jobs, func(j *job) bool { return j.at > from })
}

// near is how many bytes a connection brings so soon that nothing is gained by another one. Before
// the speed is known it is taken for assumedPace. mu is held.
func (d *download) near() int64 {
	if d.pace > 0 {
		return max(storage.Piece, d.bytesIn(nearTime))
	}
	d.mark(0)
	pace := float64(assumedPace)
	if d.flowed >= measureFirst && d.brought >= storage.Piece {
		pace = float64(d.brought) / d.flowed.Seconds() / float64(max(d.copying, 1))
	}
	return max(storage.Piece, int64(pace*nearTime.Seconds()))
}

// comesSoon reports whether a worker brings the byte at off before long. If one would bring it
// late, its chunk is cut before it. mu is held.
func (d *download) comesSoon(off int64) bool {
	for _, j := range d.jobs {
		if off < j.at || j.to >= 0 && off >= j.to {
			continue
		}
		if off-j.reading < d.near() || j.fixed || j.to < 0 {
			j.wanted = max(j.wanted, off)
			if j.wake != nil {
				close(j.wake)
				j.wake = nil
			}
			return true
		}
		rest := storage.Span{From: off - off%storage.Piece, To: j.to}
		j.to, j.cut = rest.From, true
		d.todo = append(d.todo, rest)
		slices.SortFunc(d.todo, func(a, b storage.Span) int { return int(min(max(a.From-b.From, -1), 1)) })
		return false
	}
	return false
}

// giveWay lets the worker stand still while others bring what readers wait for: when one of them
// has no slot, or there are more connections than one blob may have, or nobody reads the blob as a
// whole. What the upstream has sent waits in the connection, so that nothing is fetched twice.
func (w *worker) giveWay(j *job) {
	d := w.d
	if w.demand || !d.pool.demands.any() {
		return
	}
	whole := d.f.in.ReadAsWhole()
	d.mu.Lock()
	lacking := slices.ContainsFunc(d.seekers, func(s *seeker) bool { return s.demand })
	spare := j.wanted < j.at && (!whole || d.demanding > 0 && d.running+d.demanding > d.ranges)
	if d.err != nil || !lacking && !spare {
		d.mu.Unlock()
		return
	}
	wake := make(chan struct{})
	j.wake = wake
	d.running--
	w.held = false
	handed := d.hand()
	d.mu.Unlock()
	if !handed {
		d.slots.Release(d.f.blob.Client)
		d.pause(wake)
	}
	w.comeBack(j)
}

// pause waits until nobody waits for bytes any more, or wake is closed.
func (d *download) pause(wake <-chan struct{}) {
	most := time.NewTimer(pauseMost)
	defer most.Stop()
	select {
	case <-wake:
	case <-d.pool.demands.over():
	case <-most.C:
	case <-d.ctx.Done():
	}
}

// comeBack gets a slot again for a worker that has stood still.
func (w *worker) comeBack(j *job) {
	d := w.d
	for !w.held && d.ctx.Err() == nil {
		whole := d.f.in.ReadAsWhole()
		d.mu.Lock()
		wanted := j.wanted >= j.at
		d.mu.Unlock()
		if whole || wanted {
			w.seek(toBegin, pauseMost)
		} else {
			w.seek(toHasten, pauseMost)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	j.wake = nil
	d.running++
}

// removeSeeker takes a seeker out of those that wait. mu is held.
func (d *download) removeSeeker(s *seeker) {
	d.seekers = slices.DeleteFunc(d.seekers, func(other *seeker) bool { return other == s })
}

// waiting is a context that ends after patience; 0: with ctx.
func waiting(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	if patience == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, patience)
}

// demands counts the demands of all downloads.
type demands struct {
	mu   sync.Mutex // guards what follows
	n    int
	none chan struct{} // closed when n becomes 0; nil: n is 0
}

func (s *demands) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n++; s.n == 1 {
		s.none = make(chan struct{})
	}
}

func (s *demands) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n--; s.n == 0 {
		close(s.none)
		s.none = nil
	}
}

func (s *demands) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n > 0
}

// over returns a channel that is closed when there are no demands.
func (s *demands) over() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.none == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.none
}
