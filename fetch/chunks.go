package fetch

import (
	"time"

	"github.com/hubcache/hubcache/storage"
)

// firstChunk is what is asked for of a blob of size bytes before anything is known.
func firstChunk(size int64, ranges int) int64 {
	return min(max(wholePieces(size/int64(2*ranges)), minChunk), maxFirstChunk)
}

// wholePieces rounds n up to whole pieces, so that no two connections write into one piece of
// the file. Chunks of a resumed blob may still meet inside a piece; that costs only speed.
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
	return rest
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
