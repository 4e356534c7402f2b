package fetch

import (
	"context"
	"errors"
	"io/fs"
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
	mu        sync.Mutex
	size      int64          // of the blob; -1: the source hasn't said it. Written before there are readers
	todo      []storage.Span // bytes that no worker has claimed yet, in order
	jobs      []*job         // what workers have claimed
	seekers   []*seeker      // workers that wait for a slot in the middle of the work; those that came first, first
	alive     int            // all workers that haven't ended. Where it is 0, none may be added
	workers   int            // workers but those of demands, including those that wait for a slot
	running   int            // those of them that have a slot
	demanding int            // demands, including those that wait for a slot
	copying   int            // bodies that are being copied now
	marked    time.Time      // when copying last changed, or the speed was last measured
	brought   int64          // bytes that have been read of all bodies
	flowed    time.Duration  // how long copying has been more than 0 since the last measurement
	pace      int64          // bytes a second of one connection; 0: not known yet
	fast      bool           // all downloads together reach enough
	err       error          // the first; ends all
}

func newDownload(f *Flight) *download {
	b := f.pool.bounds.Load()
	d := &download{f: f, pool: f.pool, slots: b.transfers, transfers: b.Transfers, ranges: b.Ranges, size: -1, alive: 1, workers: 1, running: 1}
	d.ctx, d.cancel = context.WithCancelCause(f.ctx)
	d.more, d.done = context.WithCancel(d.ctx)
	return d
}

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
	defer d.ended()
	w := &worker{d: d, held: true}
	defer w.putDown()
	f := d.f
	body, err := d.pool.open(d.ctx, f.blob.Source, d.firstPart())
	if err != nil {
		return err
	}
	defer body.Close()
	f.stated = body.Size
	f.doubtful = f.doubtful || f.blob.Size >= 0 && body.Size >= 0 && f.blob.Size != body.Size
	j, err := d.openIngest(body)
	if err != nil {
		return err
	}
	f.in.OnWait(d.demanded)
	measured := body.Ranged && d.ranges > 1 && len(d.todo) > 0 // no other worker changes todo yet
	f.announce(nil)
	if measured {
		d.others.Go(d.measure)
	}
	w.copy(j, body)
	d.finished(j)
	body.Close() // now: work may last long, and the connection can be used again
	w.work(true, func() bool { return true })
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
		switch {
		case !d.f.whole.Load():
			p.To = min(p.To, p.From+demandFirst)
		case d.ranges > 1:
			p.To = min(p.To, p.From+firstChunk(size, d.ranges))
		}
		d.pool.resumes.Add(1)
	case size > 0: // nothing is missing: the process was killed before it could verify
		p.From, p.To, p.Size = size-1, size, size
		d.pool.resumes.Add(1)
	case claim > d.pool.store.Budget(): // if that is true, no more bytes are needed to know it
		p.To = 1
	case claim >= 2*demandFirst && !d.f.whole.Load():
		p.To = demandFirst
	case claim >= parallelFrom && d.ranges > 1:
		p.To = firstChunk(claim, d.ranges)
	}
	return p
}

// openIngest opens the ingest with the size that the first body tells, and puts into todo what
// that body doesn't bring. It returns the job of that body.
// Errors: ErrEnded when the store has the blob already; ErrBypass with the reason otherwise.
func (d *download) openIngest(first *Body) (*job, error) {
	f := d.f
	in, err := d.pool.store.Begin(f.blob.Origin, f.blob.Digest, first.Size)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, ErrEnded
	case err != nil:
		return nil, errors.Join(ErrBypass, err)
	}
	f.in = in
	for _, gap := range in.Missing() {
		if gap.To < 0 {
			continue // all of it, by the first connection
		}
		d.todo = append(d.todo, gap)
	}
	d.todo = without(d.todo, storage.Span{From: first.From, To: first.To})
	d.size = first.Size
	j := &job{at: first.From, to: first.To, reading: first.From, fixed: !first.Ranged, wanted: -1}
	d.jobs = append(d.jobs, j)
	return j, nil
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
