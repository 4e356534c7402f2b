package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hubcache/hubcache/registry"
)

const (
	// batchFor is how long a line of the access log may wait for others: what a killed
	// process loses of it.
	batchFor = 100 * time.Millisecond
	// batchBytes end the wait: some hundred lines.
	batchBytes = 32 << 10
)

// batch gathers what is written to it for a moment. With a write for each request, a hot
// manifest would cost a tenth more, and a journal behind a socket much more than that.
// Safe for concurrent use.
type batch struct {
	w io.Writer

	mu  sync.Mutex // guards what follows; held during writes, so that lines stay in order
	buf []byte
	due *time.Timer // runs while buf holds something
}

// Write takes p. What becomes of it is not known yet, so it never fails.
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

// flush writes what has gathered.
func (b *batch) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write()
}

// write is flush with mu held.
func (b *batch) write() {
	if len(b.buf) == 0 {
		return
	}
	b.due.Stop()
	b.w.Write(b.buf) // a log that can't be written has nowhere to say so
	b.buf = b.buf[:0]
}

// batchHandler sends every record through a batch, and waits with the access log only.
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
