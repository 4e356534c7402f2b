package hubtest

import (
	"sync"
	"time"
)

// pacer spaces bytes out so that no more than a rate pass.
type pacer struct {
	mu   sync.Mutex // guards next
	next time.Time  // when the bytes given out so far have passed
}

// late is how far behind its rate a body may fall and still catch up: a timer that fires a
// millisecond late every ten would make a cap of 20 MB/s one of 15.
const late = 50 * time.Millisecond

// reserve returns how long to wait until n more bytes have passed at rate bytes a second.
func (p *pacer) reserve(n, rate int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.next.IsZero() {
		p.next = now
	} else if least := now.Add(-late); p.next.Before(least) {
		p.next = least
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return p.next.Sub(now)
}

type pace struct {
	pacer *pacer
	rate  int64
}

// pacers are the caps that apply to the body of this exchange.
func (x *exchange) pacers() []pace {
	var all []pace
	if x.face != CDN {
		return nil
	}
	if x.opts.Bandwidth > 0 {
		all = append(all, pace{&pacer{}, x.opts.Bandwidth})
	}
	if x.opts.TotalBandwidth > 0 {
		all = append(all, pace{&x.hub.total, x.opts.TotalBandwidth})
	}
	return all
}

// chunk is how many bytes are written at once: some 10 ms worth where there is a cap.
func (x *exchange) chunk() int64 {
	n := int64(64 << 10)
	if x.face != CDN {
		return n
	}
	for _, rate := range []int64{x.opts.Bandwidth, x.opts.TotalBandwidth} {
		if rate > 0 {
			n = min(n, max(rate/100, 1))
		}
	}
	return n
}

func (x *exchange) pause(all []pace, n int64) bool {
	var d time.Duration
	for _, p := range all {
		d = max(d, p.pacer.reserve(n, p.rate))
	}
	return x.sleep(d)
}
