package fetch

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/storage"
)

// A blob of parallelFrom bytes or more is fetched by several closed ranges at once, since
// a CDN limits the speed of each connection. Where one connection brings all that this
// machine can take in, there is one: several would only bring the bytes out of order.
//
// A gap is a span of missing bytes; a chunk is what one request asks for; a piece is
// storage.Piece, the unit of writing.
const (
	parallelFrom = 2 * minChunk

	// A chunk is what a connection brings in chunkTime: at least minChunk, so that a round
	// trip does not count, and at most maxChunk, so that a connection that becomes slow
	// doesn't hold up too much of the blob.
	minChunk  = 4 << 20
	maxChunk  = 128 << 20
	chunkTime = 500 * time.Millisecond

	// maxFirstChunk takes the place of maxChunk for the first chunk, when no speed is known.
	maxFirstChunk = 32 << 20

	// enough is how many bytes a second, over all downloads, make more connections useless:
	// 512 MiB/s (about 4 Gbit/s), a third of what one CPU hashes.
	enough = 512 << 20

	// measureFirst is the time after which the speed is first measured, and the shortest flow
	// of bytes that gives a usable speed. measureEvery is how often it is measured after that.
	measureFirst = 20 * time.Millisecond
	measureEvery = 100 * time.Millisecond

	// overlap is how long before the end of a chunk the next one is asked for: a round trip.
	overlap = 60 * time.Millisecond

	// slowRead is how many bytes a read brings at most from a connection that is slower than
	// this machine.
	slowRead = 16 << 10
)

// pieces are the buffers of all downloads.
var pieces = sync.Pool{New: func() any { return new([storage.Piece]byte) }}

// download gets a flight's blob into its ingest.
type download struct {
	f     *Flight
	pool  *Pool
	slots *slots.Slots

	transfers int // how many slots there are
	ranges    int // connections at once, at most. Like slots it is the one from the start, so that a slot goes back to where it came from

	ctx    context.Context // child of the flight's; cancelled by the first failure
	cancel context.CancelCauseFunc
	more   context.Context // child of ctx; cancelled when todo is empty
	done   context.CancelFunc
	others sync.WaitGroup // the workers but the first, and measure

	// mu guards what follows. No other lock of this project is taken while it is held.
	mu      sync.Mutex
	todo    []storage.Span // bytes that no worker has claimed yet, in order
	workers int            // workers, including those that wait for a slot
	running int            // workers that have a slot
	copying int            // bodies that are being copied now
	marked  time.Time      // when copying last changed, or the speed was last measured
	flowed  time.Duration  // how long copying has been more than 0 since the last measurement
	pace    int64          // bytes a second of one connection; 0: not known yet
	fast    bool           // all downloads together reach enough
	err     error          // the first; ends all
}

func newDownload(f *Flight) *download {
	b := f.pool.bounds.Load()
	d := &download{f: f, pool: f.pool, slots: b.transfers, transfers: b.Transfers, ranges: b.Ranges, workers: 1, running: 1}
	d.ctx, d.cancel = context.WithCancelCause(f.ctx)
	d.more, d.done = context.WithCancel(d.ctx)
	return d
}

// firstChunk is what is asked for of a blob of size bytes before anything is known.
func firstChunk(size int64, ranges int) int64 {
	return min(max(wholePieces(size/int64(2*ranges)), minChunk), maxFirstChunk)
}

// wholePieces rounds n up to whole pieces, so that no two connections write into one piece of
// the file. Chunks of a resumed blob may still meet inside a piece; that costs only speed.
func wholePieces(n int64) int64 { return (n + storage.Piece - 1) / storage.Piece * storage.Piece }

// run fetches all that is missing. The flight's ingest is set when the source has answered.
// Errors: ErrBypass, when the blob can't be kept; ErrEnded, when it needn't be fetched here;
// ErrBusy; those of the source and of the storage.
func (d *download) run() error {
	defer d.cancel(nil)
	if err := d.firstSlot(); err != nil {
		return err
	}
	if err := d.first(); err != nil {
		return err
	}
	d.others.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil && len(d.todo) > 0 { // cancelled while all waited for slots
		return context.Cause(d.ctx)
	}
	return d.err
}

// firstSlot waits for the flight's first slot. A download that is only read ahead doesn't
// wait: it takes a slot only if another one stays free for a client, or if there is a single one
// (see Pool.giveWay), and otherwise ends with ErrEnded. A client that has joined meanwhile starts
// a new flight.
func (d *download) firstSlot() error {
	if !d.f.isWanted() {
		if !d.slots.TryAcquire(d.f.blob.Client, min(1, d.transfers-1)) {
			return ErrEnded
		}
		return nil
	}
	return waitForSlot(d.f.ctx, d.slots, d.f.blob.Client, toBegin)
}

// first opens the ingest with the first connection and works to the end, or until the other
// connections are enough. It gives back the slot.
func (d *download) first() error {
	defer d.slots.Release(d.f.blob.Client)
	f := d.f
	body, err := d.pool.open(d.ctx, f.blob.Source, d.firstPart())
	if err != nil {
		return err
	}
	defer body.Close()
	f.stated = body.Size
	f.doubtful = f.doubtful || f.blob.Size >= 0 && body.Size >= 0 && f.blob.Size != body.Size
	if err := d.openIngest(body); err != nil {
		return err
	}
	f.announce(nil)
	if body.Ranged && d.ranges > 1 && len(d.todo) > 0 { // no other worker changes todo yet
		d.others.Go(d.measure)
	}
	d.copy(body)
	body.Close() // now: work may last long, and the connection can be used again
	d.work(true, func() bool { return true })
	return nil
}

// firstPart is what is asked for first. The sizes that it goes by are hints. What the source
// answers tells the size, and that the repository has the blob.
func (d *download) firstPart() Part {
	claim := d.f.blob.Size
	p := Part{To: -1, Size: claim, Claim: true, Whole: true}
	switch size, gaps := d.pool.store.Partial(d.f.blob.Digest); {
	case len(gaps) > 0:
		p.From, p.To, p.Size = gaps[0].From, gaps[0].To, size
		if d.ranges > 1 {
			p.To = min(p.To, p.From+firstChunk(size, d.ranges))
		}
		d.pool.resumes.Add(1)
	case size > 0: // nothing is missing: the process was killed before it could verify
		p.From, p.To, p.Size = size-1, size, size
		d.pool.resumes.Add(1)
	case claim > d.pool.store.Budget(): // if that is true, no more bytes are needed to know it
		p.To = 1
	case claim >= parallelFrom && d.ranges > 1:
		p.To = firstChunk(claim, d.ranges)
	}
	return p
}

// openIngest opens the ingest with the size that the first body tells, and puts into todo what
// that body doesn't bring.
// Errors: ErrEnded when the store has the blob already; ErrBypass with the reason otherwise.
func (d *download) openIngest(first *Body) error {
	f := d.f
	in, err := d.pool.store.Begin(f.blob.Origin, f.blob.Digest, first.Size)
	switch {
	case errors.Is(err, fs.ErrExist):
		return ErrEnded
	case err != nil:
		return errors.Join(ErrBypass, err)
	}
	f.in = in
	for _, gap := range in.Missing() {
		if gap.To < 0 {
			continue // all of it, by the first connection
		}
		d.todo = append(d.todo, gap)
	}
	d.todo = slices.DeleteFunc(without(d.todo, storage.Span{From: first.From, To: first.To}), func(s storage.Span) bool { return s.From >= s.To })
	return nil
}

// without returns the parts of spans that lie outside s.
func without(spans []storage.Span, s storage.Span) (rest []storage.Span) {
	for _, t := range spans {
		if s.To <= t.From || t.To <= s.From {
			rest = append(rest, t)
			continue
		}
		rest = append(rest, storage.Span{From: t.From, To: min(t.To, s.From)}, storage.Span{From: max(t.From, s.To), To: t.To})
	}
	return rest
}

// measure measures now and then how fast the bytes come, until the download ends or nothing
// is left to claim, and adds connections while more would help.
func (d *download) measure() {
	timer := time.NewTimer(measureFirst)
	defer timer.Stop()
	all, own := d.pool.received.Load(), d.f.in.Received()
	for {
		select {
		case <-d.more.Done():
			return
		case <-timer.C:
		}
		all2, own2 := d.pool.received.Load(), d.f.in.Received()
		if d.adjust(all2-all, own2-own) {
			all, own = all2, own2
			timer.Reset(measureEvery)
		} else {
			timer.Reset(measureFirst)
		}
	}
}

// adjust computes the speed from the bytes since the last call that reported true (all: of all
// blobs; own: of this one), and adds workers while more would help. It reports false, and
// changes nothing, while bytes have flowed for less than measureFirst.
func (d *download) adjust(all, own int64) bool {
	urgent := d.f.urgent() // it takes the pool's lock, which must not be taken under mu
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mark(0)
	if d.flowed < measureFirst {
		return false
	}
	second := func(n int64) int64 { return int64(float64(n) / d.flowed.Seconds()) }
	d.fast = second(all) >= enough
	d.pace = max(second(own)/int64(max(d.copying, 1)), 1)
	d.flowed = 0
	left := int64(0)
	for _, s := range d.todo {
		left += s.To - s.From
	}
	for want := min(d.ranges, 1+int(left/minChunk)); urgent && !d.fast && d.workers < want; {
		d.add()
	}
	return true
}

// mark counts n more bodies that are being copied. mu is held.
func (d *download) mark(n int) {
	now := time.Now()
	if d.copying > 0 {
		d.flowed += now.Sub(d.marked)
	}
	d.copying, d.marked = d.copying+n, now
}

// add adds a worker, which waits for a slot. mu is held; the caller is a worker or measure, so
// that others.Wait can't have returned yet.
func (d *download) add() {
	d.workers++
	d.others.Go(func() {
		if d.slots.Acquire(d.more, d.f.blob.Client, toHasten) != nil {
			return
		}
		d.gotSlot()
		held := true
		d.work(false, func() bool {
			if !d.tryPause() {
				return true
			}
			if held = d.slots.Yield(d.more, d.f.blob.Client, toHasten); held {
				d.gotSlot()
			}
			return held
		})
		if held {
			d.slots.Release(d.f.blob.Client)
		}
	})
}

// gotSlot counts the caller among the workers that have a slot.
func (d *download) gotSlot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running++
}

// tryPause takes the caller out of running and reports true, unless it is the last one that
// runs: then this blob would stand still until other downloads give back a slot.
func (d *download) tryPause() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == 1 {
		return false
	}
	d.running--
	return true
}

// work claims and fetches chunks until there are none, or the other workers are enough.
// fetched says that the worker has fetched a chunk before. between is asked after each chunk
// whether to go on.
func (d *download) work(fetched bool, between func() bool) {
	for more := true; more; more = between() {
		span, ok := d.claim(fetched)
		if !ok {
			return
		}
		fetched = true
		body, err := d.pool.open(d.ctx, d.f.blob.Source, Part{From: span.From, To: span.To, Size: d.f.in.Size()})
		if err != nil {
			d.fail(err)
			return
		}
		d.copy(body)
		body.Close()
	}
}

// bytesIn is what a connection brings in that time. mu is held.
func (d *download) bytesIn(t time.Duration) int64 { return int64(float64(d.pace) * t.Seconds()) }

// claim takes the next chunk, in the order of the blob, in which its readers need it. ok is
// false when the worker must end; then it is no longer counted. A worker that has fetched a
// chunk before ends when the other workers are enough.
func (d *download) claim(fetched bool) (s storage.Span, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(d.todo) == 0 || fetched && d.fast && d.running > 1 {
		d.workers--
		d.running--
		return s, false
	}
	s = d.todo[0]
	chunk := min(max(wholePieces(d.bytesIn(chunkTime)), minChunk), maxChunk)
	if !d.fast { // leave something for the other connections
		chunk = min(chunk, max(wholePieces((s.To-s.From)/int64(d.ranges)), minChunk))
	}
	if d.ranges > 1 && s.To-s.From > chunk+minChunk/2 { // no round trip for a small rest
		s.To = s.From + chunk
		d.todo[0].From = s.To
	} else {
		d.todo = d.todo[1:]
	}
	if len(d.todo) == 0 {
		d.done()
	}
	return s, true
}

// copy moves what a body brings into the ingest, in whole pieces when they come fast: that
// costs half the CPU time of writing each read of a socket by itself (see storage.Piece).
func (d *download) copy(body *Body) {
	flows := func(n int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.mark(n)
	}
	flows(1)
	defer flows(-1)
	buf := pieces.Get().(*[storage.Piece]byte)
	defer pieces.Put(buf)
	at := body.From
	for overlapped, first := false, true; ; first = false {
		// A write ends at a multiple of Piece.
		n, err := readPiece(body, buf[:storage.Piece-at%storage.Piece], first)
		if n > 0 {
			if _, werr := d.f.in.WriteAt(buf[:n], at); werr != nil {
				d.fail(werr)
				return
			}
			at += int64(n)
		}
		if err == io.EOF {
			if d.f.in.Size() < 0 {
				if err := d.f.in.SetSize(at); err != nil {
					d.fail(err)
				}
			}
			return
		}
		if err != nil {
			d.fail(err)
			return
		}
		if d.failed() != nil {
			return
		}
		if !overlapped {
			overlapped = d.beginNext(body.To - at)
		}
	}
}

// readPiece reads until p is full. It returns early with the first bytes of a body, and with
// what there is when the bytes come slowly: readers wait for them.
func readPiece(body *Body, p []byte, first bool) (n int, err error) {
	began := time.Now()
	for n < len(p) && err == nil {
		var m int
		m, err = body.Read(p[n:])
		n += m
		if m < slowRead || first || time.Since(began) > storage.BatchDelay {
			break
		}
	}
	return n, err
}

// beginNext begins with the next chunk while the only connection still has left bytes to
// bring, so that the next one's round trip passes meanwhile. It reports whether it did.
func (d *download) beginNext(left int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.fast || d.workers > 1 || len(d.todo) == 0 || left > d.bytesIn(overlap) {
		return false
	}
	d.add()
	return true
}

func (d *download) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
		d.cancel(err)
	}
}

func (d *download) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}
