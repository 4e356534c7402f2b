package registry

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// A blob of parallelFrom bytes or more is fetched by several closed ranges at once, since
// a CDN gives each connection so much and no more. Where one connection brings all that
// this machine can take in, there is one: several would only bring the bytes out of order.
const (
	parallelFrom = 2 * chunkLeast

	// A chunk is what a connection asks for at a time: at least so much that a round trip
	// does not count, at most what may be left on a connection that has become slow, and in
	// between what takes it chunkTime.
	chunkLeast = 4 << 20
	chunkMost  = 128 << 20
	chunkTime  = 500 * time.Millisecond

	// firstMost is the same for the first chunk, before anything is known.
	firstMost = 32 << 20

	// enough is how much a second, over all downloads, makes more connections useless: a
	// third of what a CPU hashes, 4 Gbit/s.
	enough = 512 << 20

	// steerFirst is how long the first connection may show what it can do; steerEvery is
	// how often it is looked at again.
	steerFirst = 20 * time.Millisecond
	steerEvery = 100 * time.Millisecond

	// handOverBefore the end of a chunk, the next one is asked for: a round trip.
	handOverBefore = 60 * time.Millisecond
)

// download gets a flight's blob into its ingest.
type download struct {
	f      *flight
	r      *Registry
	source *source
	lanes  *lanes
	ranges int // connections at once, at most

	ctx    context.Context // of the flight, and ended by the first failure
	cancel context.CancelCauseFunc
	more   context.Context // of ctx, and ended when nothing is left to claim
	done   context.CancelFunc
	others sync.WaitGroup // the workers but the first

	mu      sync.Mutex     // guards what follows
	todo    []storage.Span // that nobody has claimed yet, in order
	workers int            // connections that there are or will be
	running int            // the part of them that have a lane
	open    int            // the part of them to which bytes come
	marked  time.Time      // when open changed last, or was looked at
	flowed  time.Duration  // how long it has been more than 0 since the last look
	pace    int64          // bytes a second of each of them; 0: not known yet
	fast    bool           // more of them would not help
	err     error          // the first; ends all
}

func newDownload(f *flight) *download {
	r := f.r
	d := &download{f: f, r: r, source: r.source(f.name, f.digest), lanes: r.transfers.Load(), ranges: r.policy.Load().Limits.Ranges,
		workers: 1, running: 1}
	d.ctx, d.cancel = context.WithCancelCause(f.ctx)
	d.more, d.done = context.WithCancel(d.ctx)
	return d
}

// firstChunk is what is asked for of a blob of size bytes before anything is known.
func firstChunk(size int64, ranges int) int64 {
	return min(max(wholePieces(size/int64(2*ranges)), chunkLeast), firstMost)
}

// wholePieces rounds n up, so that no two connections write into one piece of the file.
func wholePieces(n int64) int64 { return (n + storage.Piece - 1) / storage.Piece * storage.Piece }

// run fetches all that is missing. The flight's ingest is set when upstream has answered.
// errBypass: the blob can't be kept.
func (d *download) run() error {
	f, r := d.f, d.r
	defer d.cancel(nil)
	if f.size > r.store.Budget() {
		return errBypass // not a byte need be asked for to know
	}
	if err := f.lane(d.lanes); err != nil {
		return err
	}
	if err := d.first(); err != nil {
		return err
	}
	d.others.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil && len(d.todo) > 0 { // cancelled while all waited for lanes
		return context.Cause(d.ctx)
	}
	return d.err
}

// first opens the ingest with the first connection and works to the end, or until others
// can do without. It gives back the lane.
func (d *download) first() error {
	defer d.lanes.release()
	f, r := d.f, d.r
	t := &tap{source: d.source, ctx: d.ctx, end: -1, size: f.size, whole: true}
	defer t.Close()
	if size, gaps := r.store.Partial(f.digest); len(gaps) > 0 && (f.size < 0 || f.size == size) {
		t.at, t.end, t.size = gaps[0].From, gaps[0].To, size
		if d.ranges > 1 {
			t.end = min(t.end, t.at+firstChunk(size, d.ranges))
		}
		r.resumes.Add(1)
	} else if f.size >= parallelFrom && d.ranges > 1 {
		t.end = firstChunk(f.size, d.ranges)
	}
	if err := t.connect(firstDeadline); err != nil {
		return err
	}
	if err := d.begin(t); err != nil {
		return err
	}
	f.announce(nil)
	if t.ranged && d.ranges > 1 && len(d.todo) > 0 {
		d.others.Go(d.steer)
	}
	d.copy(t)
	t.Close()
	d.work(true, func() bool { return true })
	return nil
}

// lane waits for the flight's first lane. What is only read ahead takes none that isn't
// free: who comes for it then starts anew.
func (f *flight) lane(l *lanes) error {
	f.r.flights.mu.Lock()
	wanted := f.wanted
	f.r.flights.mu.Unlock()
	if !wanted {
		if !l.tryAcquire(1) {
			return errLanded
		}
		return nil
	}
	return takeSlot(f.ctx, func(ctx context.Context) error { return l.acquire(ctx, toBegin) })
}

// urgent reports whether somebody reads the blob, or nobody any: what is only read ahead
// must not take the CDN's bandwidth from what clients wait for.
func (f *flight) urgent() bool {
	f.r.flights.mu.Lock()
	defer f.r.flights.mu.Unlock()
	if f.readers > 0 {
		return true
	}
	for _, other := range f.r.flights.all {
		if other.readers > 0 {
			return false
		}
	}
	return true
}

// begin opens the ingest for what the first answer says.
func (d *download) begin(first *tap) error {
	f := d.f
	in, err := d.r.store.Begin(f.origin, f.digest, first.size)
	switch {
	case errors.Is(err, fs.ErrExist):
		return errLanded
	case err != nil:
		return errors.Join(errBypass, err)
	}
	f.in = in
	for _, gap := range in.Missing() {
		if gap.To < 0 {
			continue // all of it, by the first tap
		}
		d.todo = append(d.todo, gap)
	}
	d.todo = slices.DeleteFunc(without(d.todo, storage.Span{From: first.at, To: first.end}), func(s storage.Span) bool { return s.From >= s.To })
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

// steer looks now and then at how fast the bytes come, until the download ends or nothing is
// left to claim, and adds connections while more would help.
func (d *download) steer() {
	look := time.NewTimer(steerFirst)
	defer look.Stop()
	all, own := d.r.up.fetched.Load(), d.f.in.Received()
	for {
		select {
		case <-d.more.Done():
			return
		case <-look.C:
		}
		all2, own2 := d.r.up.fetched.Load(), d.f.in.Received()
		if d.paced(all2-all, own2-own) {
			all, own = all2, own2
			look.Reset(steerEvery)
		} else {
			look.Reset(steerFirst)
		}
	}
}

// paced takes note of how many bytes have come since it was told last, over all and of this
// blob. It reports whether it could: not while connections are being made.
func (d *download) paced(all, own int64) bool {
	urgent := d.f.urgent()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mark(0)
	if d.flowed < steerFirst {
		return false
	}
	second := func(n int64) int64 { return int64(float64(n) / d.flowed.Seconds()) }
	d.fast = second(all) >= enough
	d.pace = max(second(own)/int64(max(d.open, 1)), 1)
	d.flowed = 0
	left := int64(0)
	for _, s := range d.todo {
		left += s.To - s.From
	}
	for want := min(d.ranges, 1+int(left/chunkLeast)); urgent && !d.fast && d.workers < want; {
		d.add()
	}
	return true
}

// mark takes note that bytes come to n more connections. mu is held.
func (d *download) mark(n int) {
	now := time.Now()
	if d.open > 0 {
		d.flowed += now.Sub(d.marked)
	}
	d.open, d.marked = d.open+n, now
}

// add adds a worker, which waits for a lane. mu is held; who calls is a worker, or steers.
func (d *download) add() {
	d.workers++
	d.others.Go(func() {
		if d.lanes.acquire(d.more, toHasten) != nil {
			return
		}
		d.runs()
		held := true
		d.work(false, func() bool {
			if !d.spare() {
				return true
			}
			if held = d.lanes.yield(d.more, toHasten); held {
				d.runs()
			}
			return held
		})
		if held {
			d.lanes.release()
		}
	})
}

// runs counts a worker that has a lane.
func (d *download) runs() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running++
}

// spare reports whether a worker may do without its lane for a while, and then counts it as
// one that does: the last one must not, or the blob's clients wait for other blobs' clients.
func (d *download) spare() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == 1 {
		return false
	}
	d.running--
	return true
}

// work claims and fetches chunks until there are none, or others will do for the worker, which
// may have had one before. between is asked after each whether to go on.
func (d *download) work(before bool, between func() bool) {
	for more := true; more; more = between() {
		span, ok := d.claim(before)
		if !ok {
			return
		}
		before = true
		t := &tap{source: d.source, ctx: d.ctx, at: span.From, end: span.To, size: d.f.in.Size()}
		if err := t.connect(firstDeadline); err != nil {
			d.fail(err)
			return
		}
		d.copy(t)
		t.Close()
	}
}

// bytesIn is what a connection brings in that time. mu is held.
func (d *download) bytesIn(t time.Duration) int64 { return int64(float64(d.pace) * t.Seconds()) }

// claim takes the next chunk: in the order of the blob, which is that of need. again is for
// a worker who has brought one.
func (d *download) claim(again bool) (s storage.Span, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(d.todo) == 0 || again && d.fast && d.running > 1 {
		d.workers--
		d.running--
		return s, false
	}
	s = d.todo[0]
	chunk := min(max(wholePieces(d.bytesIn(chunkTime)), chunkLeast), chunkMost)
	if !d.fast { // and there is something for all
		chunk = min(chunk, max(wholePieces((s.To-s.From)/int64(d.ranges)), chunkLeast))
	}
	if d.ranges > 1 && s.To-s.From > chunk+chunkLeast/2 { // no round trip for a scrap
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

// copy moves what a tap gives into the ingest, in whole pieces where they come fast: to the
// kernel they are half the work of what a socket happens to hold.
func (d *download) copy(t *tap) {
	flows := func(n int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.mark(n)
	}
	flows(1)
	defer flows(-1)
	buf := pieces.Get().(*[storage.Piece]byte)
	defer pieces.Put(buf)
	for handed, first := false, true; ; first = false {
		at, n, err := t.at, 0, error(nil)
		began := time.Now()
		for whole := int(storage.Piece - at%storage.Piece); n < whole && err == nil; {
			var m int
			m, err = t.Read(buf[n:whole])
			n += m
			if m < few || first || time.Since(began) > storage.BatchDelay { // who waits for this shall have it
				break
			}
		}
		if n > 0 {
			if _, werr := d.f.in.WriteAt(buf[:n], at); werr != nil {
				d.fail(werr)
				return
			}
		}
		if err == io.EOF {
			if d.f.in.Size() < 0 {
				if err := d.f.in.SetSize(t.at); err != nil {
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
		if !handed {
			handed = d.handOver(t.end - t.at)
		}
	}
}

// few is what a read brings at most from a connection that is slower than we are.
const few = 16 << 10

var pieces = sync.Pool{New: func() any { return new([storage.Piece]byte) }}

// handOver begins with the next chunk while the only connection still has left bytes to
// bring: the next one's round trip passes meanwhile.
func (d *download) handOver(left int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.fast || d.workers > 1 || len(d.todo) == 0 || left > d.bytesIn(handOverBefore) {
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
