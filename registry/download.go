package registry

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/hubcache/hubcache/storage"
)

// A blob of parallelFrom bytes or more is fetched by several closed ranges at once, since
// a CDN gives each connection so much and no more. Chunks are small enough for the
// connections to finish together, and large enough for a round trip not to count.
const (
	parallelFrom = 2 * chunkLeast
	chunkLeast   = 4 << 20
	chunkMost    = 32 << 20
)

// download gets a flight's blob into its ingest.
type download struct {
	f      *flight
	r      *Registry
	source *source

	mu   sync.Mutex     // guards what follows
	todo []storage.Span // that nobody has claimed yet, in order
	err  error          // the first; ends all
}

func newDownload(f *flight) *download {
	r := f.r
	return &download{f: f, r: r, source: r.source(f.name, f.digest)}
}

func chunkFor(size int64, ranges int) int64 {
	return min(max(size/int64(2*ranges), chunkLeast), chunkMost)
}

// run fetches all that is missing. The flight's ingest is set when upstream has answered.
// errBypass: the blob can't be kept.
func (d *download) run() error {
	f, r := d.f, d.r
	limits := r.policy.Load().Limits
	if f.size > r.store.Budget() {
		return errBypass // not a byte need be asked for to know
	}
	slots := r.transfers.Load()
	if err := f.slot(slots); err != nil {
		return err
	}
	defer slots.Release(1)

	first := &tap{source: d.source, ctx: f.ctx, end: -1, size: f.size, whole: true}
	defer first.Close()
	chunk := chunkFor(f.size, limits.Ranges)
	if size, gaps := r.store.Partial(f.digest); len(gaps) > 0 && (f.size < 0 || f.size == size) {
		first.at, first.end, first.size = gaps[0].From, gaps[0].To, size
		chunk = chunkFor(size, limits.Ranges)
		first.end = min(first.end, first.at+chunk)
		r.resumes.Add(1)
	} else if f.size >= parallelFrom && limits.Ranges > 1 {
		first.end = chunk
	}
	if err := first.connect(firstDeadline); err != nil {
		return err
	}
	if err := d.begin(first); err != nil {
		return err
	}
	f.announce(nil)

	var others sync.WaitGroup
	if first.ranged {
		d.mu.Lock()
		parts := 0
		for _, s := range d.todo {
			parts += int((s.To - s.From + chunk - 1) / chunk)
		}
		d.mu.Unlock()
		for range min(parts, limits.Ranges-1) {
			if !slots.TryAcquire(1) {
				break
			}
			others.Go(func() { d.help(slots, chunk) })
		}
	}
	d.copy(first)
	first.Close()
	d.work(chunk, nil)
	others.Wait()
	return d.failed()
}

// slot waits for a transfer's slot. What is only read ahead takes none that isn't free:
// who comes for it then starts anew.
func (f *flight) slot(slots *slots) error {
	f.r.flights.mu.Lock()
	wanted := f.wanted
	f.r.flights.mu.Unlock()
	if !wanted {
		if !slots.TryAcquire(1) {
			return errLanded
		}
		return nil
	}
	return takeSlot(f.ctx, slots)
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

// help works on chunks until there are none, or somebody else needs the slot more.
func (d *download) help(slots *slots, chunk int64) {
	held := true
	d.work(chunk, func() bool {
		slots.Release(1)
		held = slots.TryAcquire(1)
		return held
	})
	if held {
		slots.Release(1)
	}
}

// work claims and fetches chunks. between, if any, is asked before each but the first
// whether to go on.
func (d *download) work(chunk int64, between func() bool) {
	for n := 0; ; n++ {
		if n > 0 && between != nil && !between() {
			return
		}
		span, ok := d.claim(chunk)
		if !ok {
			return
		}
		t := &tap{source: d.source, ctx: d.f.ctx, at: span.From, end: span.To, size: d.f.in.Size()}
		if err := t.connect(firstDeadline); err != nil {
			d.fail(err)
			return
		}
		d.copy(t)
		t.Close()
	}
}

// claim takes the next chunk: in the order of the blob, which is that of need.
func (d *download) claim(chunk int64) (s storage.Span, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(d.todo) == 0 {
		return s, false
	}
	s = d.todo[0]
	if s.To-s.From > chunk {
		s.To = s.From + chunk
		d.todo[0].From = s.To
	} else {
		d.todo = d.todo[1:]
	}
	return s, true
}

// copy moves what a tap gives into the ingest.
func (d *download) copy(t *tap) {
	buf := copyBuffers.Get().(*[copyPiece]byte)
	defer copyBuffers.Put(buf)
	for {
		at := t.at
		n, err := t.Read(buf[:])
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
	}
}

func (d *download) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
}

func (d *download) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}
