package server

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hubcache/hubcache/registry"
)

const (
	// batchFor is how long a line of the access log may wait for others. A process that is
	// killed loses these lines.
	batchFor = 100 * time.Millisecond
	// batchBytes is how many bytes are written without waiting longer: some hundred lines.
	batchBytes = 32 << 10
)

// batch gathers what is written to it for a moment. A write for each request would make a
// request of a manifest in memory a tenth slower, and much slower with a journal behind a
// socket. It is safe for concurrent use.
type batch struct {
	w io.Writer

	mu  sync.Mutex // guards what follows; held during writes, so that lines stay in order
	buf []byte
	due *time.Timer // runs while buf holds something
}

// Write takes p and never fails: p is written later.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) == 0 {
		if b.due == nil {
			b.due = time.AfterFunc(batchFor, b.flush)
		} else {
			b.due.Reset(batchFor)
		}
	}
	if b.buf = append(b.buf, p...); len(b.buf) >= batchBytes {
		b.write()
	}
	return len(p), nil
}

// flush writes what has been gathered.
func (b *batch) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write()
}

// write is flush for callers that hold mu.
func (b *batch) write() {
	if len(b.buf) == 0 {
		return
	}
	b.due.Stop()
	b.w.Write(b.buf) // there is no other place to report an error of the log
	b.buf = b.buf[:0]
}

// batchHandler sends every record through a batch. Only lines of the access log wait
// there.
type batchHandler struct {
	slog.Handler
	batch *batch
}

func (h batchHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Message != registry.AccessLine || r.Level > slog.LevelInfo {
		h.batch.flush()
	}
	return err
}

func (h batchHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return batchHandler{h.Handler.WithAttrs(attrs), h.batch}
}

func (h batchHandler) WithGroup(name string) slog.Handler {
	return batchHandler{h.Handler.WithGroup(name), h.batch}
}
