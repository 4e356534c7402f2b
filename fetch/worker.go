package fetch

import (
	"io"
	"time"

	"github.com/hubcache/hubcache/storage"
)

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
