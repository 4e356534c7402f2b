package fetch

import (
	"slices"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// job is a chunk that a worker has claimed. The download's mu guards its fields.
type job struct {
	at, to  int64         // what is still to be read; to is -1 while nobody knows where the blob ends
	reading int64         // where the read ends that goes on now
	fixed   bool          // the source knows no ranges: what is read now can't be asked for otherwise
	cut     bool          // what came after to is another worker's
	wanted  int64         // a reader waits for this byte of it; -1: none
	wake    chan struct{} // ends a pause of its worker; nil: it doesn't pause
}

// firstChunk is what is asked for of a blob of size bytes before anything is known.
func firstChunk(size int64, ranges int) int64 {
	return min(max(wholePieces(size/int64(2*ranges)), minChunk), maxFirstChunk)
}

// wholePieces rounds n up to whole pieces, so that no two connections write into one piece of
// the file. Chunks of a resumed blob may still meet inside a piece, and those that begin where a
// reader waits; that costs only speed.
func wholePieces(n int64) int64 { return (n + storage.Piece - 1) / storage.Piece * storage.Piece }

// without returns the parts of spans that lie outside s.
func without(spans []storage.Span, s storage.Span) (rest []storage.Span) {
	for _, t := range spans {
		if s.To <= t.From || t.To <= s.From {
			rest = append(rest, t)
			continue
		}
		rest = append(rest, storage.Span{From: t.From, To: min(t.To, s.From)}, storage.Span{From: max(t.From, s.To), To: t.To})
	}
	return slices.DeleteFunc(rest, func(s storage.Span) bool { return s.From >= s.To })
}

// bytesIn is what a connection brings in that time. mu is held.
func (d *download) bytesIn(t time.Duration) int64 { return int64(float64(d.pace) * t.Seconds()) }

// claim takes the next chunk, in the order of the blob, in which its readers need it. It returns
// nil when the worker must end; then it is no longer counted. A worker that has fetched a
// chunk before ends when the other workers are enough.
func (d *download) claim(fetched bool) *job {
	whole := d.f.whole.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(d.todo) == 0 || fetched && d.fast && d.running > 1 {
		d.workers--
		d.running--
		return nil
	}
	s := d.todo[0]
	least, during := int64(minChunk), chunkTime
	if !whole {
		least, during = demandFirst, nearTime
	}
	chunk := min(max(wholePieces(d.bytesIn(during)), least), maxChunk)
	if !d.fast { // leave something for the other connections
		chunk = min(chunk, max(wholePieces((s.To-s.From)/int64(d.ranges)), least))
	}
	if (d.ranges > 1 || !whole) && s.To-s.From > chunk+least/2 { // no round trip for a small rest
		s.To = s.From + chunk
	}
	return d.take(s)
}

// take makes a job of a part of todo. mu is held.
func (d *download) take(s storage.Span) *job {
	d.todo = without(d.todo, s)
	if len(d.todo) == 0 {
		d.done()
	}
	j := &job{at: s.From, to: s.To, reading: s.From, wanted: -1}
	d.jobs = append(d.jobs, j)
	return j
}

// finished says that a job is over.
func (d *download) finished(j *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.jobs = slices.DeleteFunc(d.jobs, func(other *job) bool { return other == j })
}

// span returns what a job asks for.
func (d *download) span(j *job) (from, to int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return j.at, j.to
}

// next says how far the body of a job has been read, and returns how many bytes to read now: a
// read ends at a multiple of storage.Piece. 0: what comes next is another worker's.
func (d *download) next(j *job, at int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	most := storage.Piece - at%storage.Piece
	if j.cut {
		most = min(most, j.to-at)
	}
	d.brought += at - j.at
	j.at, j.reading = at, at+most
	return most
}
