package registry

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// FirstByteBounds are the upper bounds of the buckets of a Histogram: from an answer from memory
// to one that a client no longer waits for.
var FirstByteBounds = [...]time.Duration{
	100 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

// Histogram says how long requests took to their first byte. It is a snapshot.
type Histogram struct {
	Count   int64                       // requests
	Sum     time.Duration               // of all of them
	Buckets [len(FirstByteBounds)]int64 // requests that took at most the bound of the same index
}

// histogram counts for a Histogram. The zero value is empty. All methods are safe for concurrent
// use.
type histogram struct {
	buckets [len(FirstByteBounds) + 1]atomic.Int64 // each without those before it; the last one has no bound
	nanos   atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(FirstByteBounds) && d > FirstByteBounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.nanos.Add(int64(d))
}

func (h *histogram) snapshot() (s Histogram) {
	for i := range h.buckets {
		s.Count += h.buckets[i].Load()
		if i < len(s.Buckets) {
			s.Buckets[i] = s.Count
		}
	}
	s.Sum = time.Duration(h.nanos.Load())
	return s
}

// timedWriter knows when the first byte of a body was written. Answers from memory do without
// one.
type timedWriter struct {
	http.ResponseWriter
	first time.Time // zero: none yet
}

// timed returns a writer to w that has what w has of what package content uses.
func timed(w http.ResponseWriter) (http.ResponseWriter, *timedWriter) {
	t := &timedWriter{ResponseWriter: w}
	if _, ok := w.(io.ReaderFrom); ok {
		return timedFile{t}, t
	}
	return t, t
}

func (t *timedWriter) mark() {
	if t.first.IsZero() {
		t.first = time.Now()
	}
}

// Write implements io.Writer.
func (t *timedWriter) Write(p []byte) (int, error) {
	t.mark()
	return t.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// SetWriteDeadline is what http.ResponseController would find with Unwrap.
func (t *timedWriter) SetWriteDeadline(at time.Time) error {
	if c, ok := t.ResponseWriter.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return c.SetWriteDeadline(at)
	}
	return http.ErrNotSupported
}

// timedFile is a timedWriter to a connection that takes files.
type timedFile struct{ *timedWriter }

// ReadFrom implements io.ReaderFrom. What is sent is there already.
func (t timedFile) ReadFrom(r io.Reader) (int64, error) {
	t.mark()
	return t.ResponseWriter.(io.ReaderFrom).ReadFrom(r)
}
