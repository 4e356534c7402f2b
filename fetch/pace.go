package fetch

import (
	"time"
)

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
