// Package history keeps what a server has counted by the minute, for the charts of the dashboard:
// minutes for an hour, quarters of an hour for a day, and quarters of a day for a month. It is
// bounded, and survives a restart.
package history

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Counts are counters of a server, or what they grew by in a step. All are zero or more.
type Counts struct {
	Requests int64 `json:"requests,omitempty"` // for manifests and blobs that were answered without an error
	Hits     int64 `json:"hits,omitempty"`     // of Requests: answered with what earlier ones had fetched
	Errors   int64 `json:"errors,omitempty"`   // for manifests and blobs that were answered with an error
	Served   int64 `json:"served,omitempty"`   // bytes sent to clients
	Hit      int64 `json:"hit,omitempty"`      // of Served: fetched by earlier requests
	Fetched  int64 `json:"fetched,omitempty"`  // bytes read from upstreams
}

// each applies f to each counter of two Counts.
func each(a, b Counts, f func(a, b int64) int64) Counts {
	return Counts{f(a.Requests, b.Requests), f(a.Hits, b.Hits), f(a.Errors, b.Errors), f(a.Served, b.Served), f(a.Hit, b.Hit), f(a.Fetched, b.Fetched)}
}

// Plus returns the sum of two Counts.
func (c Counts) Plus(o Counts) Counts {
	return each(c, o, func(a, b int64) int64 { return a + b })
}

// since returns what the counters have grown by, never less than zero.
func (c Counts) since(before Counts) Counts {
	return each(c, before, func(a, b int64) int64 { return max(0, a-b) })
}

// Series is the time up to now in steps.
type Series struct {
	Name   string // hour, day or month
	Step   time.Duration
	Points []Point // one for each step, the oldest first; the last step isn't over yet
}

// Sum adds the points up.
func (s Series) Sum() (sum Counts) {
	for _, p := range s.Points {
		sum = sum.Plus(p.Counts)
	}
	return sum
}

// Point is one step.
type Point struct {
	At time.Time // when the step begins, in UTC
	Counts
}

// resolutions are the series. Their order and steps are part of the file's format.
var resolutions = [...]struct {
	name  string
	step  time.Duration
	steps int
}{{"hour", time.Minute, 60}, {"day", 15 * time.Minute, 96}, {"month", 6 * time.Hour, 124}}

// Options is what Open needs.
type Options struct {
	Path  string        // of the file; the folder must exist
	Count func() Counts // the counters of this run, which begin at zero; safe for concurrent use
	Log   *slog.Logger
}

// Ring is the history. All methods are safe for concurrent use.
//
// A crash of the process or of the machine loses the last minute.
type Ring struct {
	o    Options
	file file // used by one goroutine at a time: Open, keep, Close

	stop, changed  chan struct{} // stop is closed by Close
	sampling, kept sync.WaitGroup

	mu     sync.Mutex // guards what follows; not held during I/O
	points [len(resolutions)]points
	last   Counts    // that are in the points
	at     time.Time // when they were counted, without the monotonic clock, so that jumps are seen
}

// points are the steps of one resolution by their beginning, in seconds since 1970. Steps in which
// nothing was counted are absent. Besides those of the series there are as many others at most, for
// when the clock is wrong: a machine without a clock of its own begins in 1970 until it has asked
// for the time, and must not forget its history meanwhile.
type points map[int64]Counts

// Open reads the file, if there is one, and begins to count. It never fails: a file that can't be
// used is logged. A damaged one is set aside, one of a newer version stays as it is.
func Open(o Options) *Ring {
	r := &Ring{o: o, stop: make(chan struct{}), changed: make(chan struct{}, 1), at: time.Now().Round(0)}
	for i := range r.points {
		r.points[i] = points{}
	}
	r.file = file{path: o.Path, log: o.Log, absorb: r.absorb, snapshot: r.snapshot}
	r.file.read()
	r.sampling.Go(r.sample)
	r.kept.Go(r.keep)
	return r
}

// Close counts for the last time and writes the file.
func (r *Ring) Close() {
	close(r.stop)
	r.sampling.Wait()
	r.count(time.Now())
	close(r.changed)
	r.kept.Wait()
	r.file.write()
}

// Series returns the last hour, day and month.
func (r *Ring) Series() []Series {
	now := time.Now()
	r.count(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Series
	for i, res := range resolutions {
		s := Series{Name: res.name, Step: res.step}
		end := stepOf(now, res.step)
		for at := end - int64(res.steps-1)*seconds(res.step); at <= end; at += seconds(res.step) {
			s.Points = append(s.Points, Point{time.Unix(at, 0).UTC(), r.points[i][at]})
		}
		all = append(all, s)
	}
	return all
}

// sample counts at the end of each minute of the clock, and lets the file be written.
func (r *Ring) sample() {
	for {
		now := time.Now()
		timer := time.NewTimer(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
		select {
		case <-timer.C:
			r.count(time.Now())
			select {
			case r.changed <- struct{}{}:
			default: // it is being written
			}
		case <-r.stop:
			timer.Stop()
			return
		}
	}
}

// keep writes the file. A disk that hangs keeps the counting waiting in no way.
func (r *Ring) keep() {
	for range r.changed {
		r.file.write()
	}
}

// late is how long ago the last count can be for what has come since to belong to that time.
const late = 2 * time.Minute

// count adds what was counted since the last time. It belongs to the step of that time, unless the
// clock has jumped, or the machine has slept.
func (r *Ring) count(now time.Time) {
	now = now.Round(0)
	c := r.o.Count()
	r.mu.Lock()
	defer r.mu.Unlock()
	grown, at := c.since(r.last), r.at
	if gone := now.Sub(at); gone < 0 || gone > late {
		at = now
	}
	r.last, r.at = c, now
	if grown == (Counts{}) {
		return
	}
	for i, res := range resolutions {
		step := stepOf(at, res.step)
		r.points[i][step] = r.points[i][step].Plus(grown)
	}
	r.bound(now)
}

// bound drops points: of those that are not in the series now, the newest stay. mu is held.
func (r *Ring) bound(now time.Time) {
	for i, res := range resolutions {
		p := r.points[i]
		if len(p) <= res.steps {
			continue
		}
		end := stepOf(now, res.step)
		var outside []int64
		for at := range p {
			if at > end || at <= end-int64(res.steps)*seconds(res.step) {
				outside = append(outside, at)
			}
		}
		slices.Sort(outside)
		for _, at := range outside[:max(0, len(outside)-res.steps)] {
			delete(p, at)
		}
	}
}

// absorb adds what the file has from earlier runs.
func (r *Ring) absorb(old [len(resolutions)]points) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range old {
		for at, c := range old[i] {
			r.points[i][at] = r.points[i][at].Plus(c)
		}
	}
	r.bound(time.Now())
}

// snapshot returns a copy of the points.
func (r *Ring) snapshot() (all [len(resolutions)]points) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.points {
		all[i] = maps.Clone(r.points[i])
	}
	return all
}

// stepOf returns the beginning of the step that a time is in, in seconds since 1970.
func stepOf(t time.Time, step time.Duration) int64 {
	s := t.Unix()
	return s - (s%seconds(step)+seconds(step))%seconds(step)
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
