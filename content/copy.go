package content

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hubcache/hubcache/storage"
)

const (
	// deadlineEvery is how many bytes are sent between two moves of the write deadline, and
	// writeDeadline how long a client may take for them: 4 KiB/s, slower than any that works.
	deadlineEvery = 2 << 20
	writeDeadline = deadlineEvery / (4 << 10) * time.Second

	// bufferSize is the size of the buffer where bytes are copied; whole files go by sendfile.
	bufferSize = 128 << 10

	// growingStep is how much of a growing file is sent at a time to a client that has caught
	// up with it: waking it for less costs more than sending. Bytes that come more slowly
	// don't wait for a full step (storage.BatchDelay).
	growingStep = 512 << 10

	// recentlyWritten is how long written bytes are surely still in the kernel's memory: it
	// takes seconds until it starts to write them to the disk. A gap that is filled may
	// show bytes that are older; the first call that waits for the disk ends the assumption.
	recentlyWritten = time.Second
)

// buffers are shared by all copies.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Bytes is a Sender for an object that is in memory.
func Bytes(b []byte) Sender {
	return func(w http.ResponseWriter, off, n int64) (int64, error) {
		m, err := w.Write(b[off : off+n])
		return int64(m), err
	}
}

// Growing is a Sender for a blob that is still being downloaded. It uses sendfile for what
// has arrived. Where net/http can't do that (TLS, an unknown length), it copies by a buffer
// that is larger than net/http's own.
// Errors: those of storage.Reader.ReadAt, those of the connection.
func Growing(req *http.Request, rd *storage.Reader) Sender {
	ctx := req.Context()
	read := func(p []byte, off int64) (int, error) { return rd.ReadAt(ctx, p, off) }
	return func(w http.ResponseWriter, off, n int64) (sent int64, err error) {
		if req.TLS != nil || n < 0 {
			return Copy(w, off, n, read)
		}
		return sendGrowing(ctx, w, rd, off, n, read)
	}
}

func sendGrowing(ctx context.Context, w http.ResponseWriter, rd *storage.Reader, off, n int64, read func([]byte, int64) (int, error)) (sent int64, err error) {
	http.NewResponseController(w).Flush() // the client waits for the headers
	for since := (time.Time{}); sent < n; {
		want := int64(growingStep)
		if sent == 0 {
			want = 1
		}
		end, err := rd.Available(ctx, off+sent, min(want, n-sent))
		if err != nil {
			return sent, err
		}
		now := time.Now() // all bytes that are new have come since the last time
		m, err := SendFile(w, rd.File(), off+sent, min(end-off-sent, n-sent), now.Sub(since) < recentlyWritten && !rd.Resumed())
		since = now
		sent += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sent, err // the client doesn't get a second deadline
		}
		if err != nil {
			// Either the client or the disk has failed. Reading tells which.
			more, err := Copy(w, off+sent, n-sent, read)
			return sent + more, err
		}
	}
	return sent, nil
}

// Copy sends n bytes, beginning at off, that read returns, and waits for them; with n -1
// until read returns io.EOF.
// Errors: those of read, io.EOF included if it comes before n bytes; those of the connection.
func Copy(w http.ResponseWriter, off, n int64, read func(p []byte, off int64) (int, error)) (sent int64, err error) {
	control := http.NewResponseController(w)
	control.Flush() // the client waits for the headers
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	due := int64(0)
	defer control.SetWriteDeadline(time.Time{})
	for n < 0 || sent < n {
		p := buf[:]
		if n >= 0 {
			p = p[:min(bufferSize, n-sent)]
		}
		m, err := read(p, off+sent)
		if m > 0 {
			if sent >= due {
				control.SetWriteDeadline(time.Now().Add(writeDeadline))
				due = sent + deadlineEvery
			}
			k, werr := w.Write(p[:m])
			sent += int64(k)
			if werr != nil {
				return sent, werr
			}
			control.Flush()
		}
		if err == io.EOF && n < 0 {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
