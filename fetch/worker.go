package fetch

import (
	"io"
	"time"

	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/storage"
)

// worker fetches chunks over one connection at a time. It belongs to one goroutine.
type worker struct {
	d      *download
	held   bool // it has a slot
	demand bool // it fetches what readers wait for, and nothing else
}

// add adds a worker, which waits for a slot. mu is held; the caller is a worker or measure, so
// that others.Wait can't have returned yet.
func (d *download) add() {
	d.workers++
	d.alive++
	d.others.Go(func() {
		defer d.ended()
		if d.slots.Acquire(d.more, d.f.blob.Client, toHasten) != nil {
			return
		}
		d.gotSlot()
		w := &worker{d: d, held: true}
		w.work(false, w.letOthers)
		w.putDown()
	})
}

// ended counts a worker that has ended.
func (d *download) ended() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive--
}

// letOthers gives the slot to whoever needs one more urgently, and reports whether the worker has
// one after that.
func (w *worker) letOthers() bool {
	if !w.d.tryPause() {
		return true
	}
	if w.held = w.d.slots.Yield(w.d.more, w.d.f.blob.Client, toHasten); w.held {
		w.d.gotSlot()
	}
	return w.held
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
func (w *worker) work(fetched bool, between func() bool) {
	for more := true; more; more = between() {
		j := w.d.claim(fetched)
		if j == nil {
			return
		}
		fetched = true
		if !w.fetch(j) {
			return
		}
	}
}

// fetch gets a claimed chunk, and reports whether its bytes could be asked for.
func (w *worker) fetch(j *job) bool {
	d := w.d
	defer d.finished(j)
	from, to := d.span(j)
	body, err := d.pool.open(d.ctx, d.f.blob.Source, Part{From: from, To: to, Size: d.size})
	if err != nil {
		d.fail(err)
		return false
	}
	defer body.Close()
	w.copy(j, body)
	return true
}

// copy moves what a body brings into the ingest, in whole pieces when they come fast: that
// costs half the CPU time of writing each read of a socket by itself (see storage.Piece).
func (w *worker) copy(j *job, body *Body) {
	d := w.d
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
		most := d.next(j, at)
		if most == 0 {
			return // the rest is another worker's
		}
		n, err := readPiece(body, buf[:most], first)
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
		if !overlapped && !w.demand {
			overlapped = d.beginNext(body.To - at)
		}
		w.giveWay(j)
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

// seeker is a worker that waits for a slot: for one of the pool's, or for that of another worker of
// the same blob. Its fields are guarded by the download's mu.
type seeker struct {
	stop   func() // ends the waiting for one of the pool's
	handed bool   // a worker has handed over its own
	demand bool
}

// seek waits for a slot, for patience at most (0: as long as the download goes on), and sets held.
func (w *worker) seek(p slots.Priority, patience time.Duration) {
	d := w.d
	ctx, cancel := waiting(d.ctx, patience)
	defer cancel()
	s := &seeker{stop: cancel, demand: w.demand}
	d.mu.Lock()
	d.seekers = append(d.seekers, s)
	d.mu.Unlock()
	err := d.slots.Acquire(ctx, d.f.blob.Client, p)
	d.mu.Lock()
	if !s.handed {
		d.removeSeeker(s)
	}
	d.mu.Unlock()
	if s.handed && err == nil { // both at the same moment
		d.slots.Release(d.f.blob.Client)
	}
	w.held = s.handed || err == nil
}

// putDown gives the slot to the worker of this blob that has waited longest, or back to the pool.
func (w *worker) putDown() {
	if !w.held {
		return
	}
	w.held = false
	w.d.mu.Lock()
	handed := w.d.hand()
	w.d.mu.Unlock()
	if !handed {
		w.d.slots.Release(w.d.f.blob.Client)
	}
}

// hand gives the caller's slot to the seeker that has waited longest, if there is one. mu is held.
func (d *download) hand() bool {
	if len(d.seekers) == 0 {
		return false
	}
	s := d.seekers[0]
	d.removeSeeker(s)
	s.handed = true
	s.stop()
	return true
}
