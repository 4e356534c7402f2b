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

// pace is how long a client may take: within that time for so many bytes.
type pace struct {
	every  int64 // bytes that are sent between two moves of the write deadline
	within time.Duration
}

var (
	// long is the pace of blobs: 4 KiB/s, slower than any client that works. The steps are
	// large because setting the deadline takes time.
	long = pace{2 << 20, 512 * time.Second}

	// short is the pace of all other answers, of which most are a few KB: 6.4 KiB/s, in steps
	// that end well before the 30 s that running requests have when the server stops.
	short = pace{bufferSize, 20 * time.Second}
)

// buffers are shared by all copies.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Bytes is a Sender for an object that is in memory.
func Bytes(b []byte) Sender {
	return func(w http.ResponseWriter, off, n int64) (int64, error) { return Write(w, b[off:off+n]) }
}

// Write sends a body that is in memory. Everything but the body of a blob goes through it, or
// through SendShort.
// Errors: those of the connection; os.ErrDeadlineExceeded when the client reads too slowly.
func Write(w http.ResponseWriter, body []byte) (sent int64, err error) {
	for len(body) > 0 {
		setDeadline(w, short.within)
		n, err := w.Write(body[:min(short.every, int64(len(body)))])
		sent, body = sent+int64(n), body[n:]
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// Finish gives the client time for what net/http still holds of an answer: its headers, or the
// last of its body. It is the last thing that a handler does. The deadline stays when the
// answer is over; all that is sent on the connection later begins with another one.
func Finish(w http.ResponseWriter) { setDeadline(w, short.within) }

// allow gives the client time for the next bytes. Errors: storage.ErrSlow.
func allow(w http.ResponseWriter, to *storage.Recipient, within time.Duration) error {
	setDeadline(w, within)
	return to.Err()
}

// flush sends what net/http holds, and waits for the client.
func flush(control *http.ResponseController, to *storage.Recipient) {
	to.Wait()
	control.Flush()
	to.Took(0)
}

// setDeadline says how long the next write may wait for the client.
func setDeadline(w http.ResponseWriter, within time.Duration) {
	// Not by an http.ResponseController, which makes an error where there are no deadlines.
	if c, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		c.SetWriteDeadline(time.Now().Add(within))
	}
}

// Growing is a Sender for a blob that is still being downloaded. It uses sendfile for what
// has arrived. Where net/http can't do that (TLS, an unknown length), it copies by a buffer
// that is larger than net/http's own.
// Errors: those of storage.Reader.ReadAt, those of the connection, storage.ErrSlow.
func Growing(req *http.Request, rd *storage.Reader) Sender {
	ctx := req.Context()
	read := func(p []byte, off int64) (int, error) { return rd.ReadAt(ctx, p, off) }
	return func(w http.ResponseWriter, off, n int64) (sent int64, err error) {
		if !rd.Parts() {
			rd.ReadsFrom(off)
		}
		rd.Recipient().Begin(w)
		if req.TLS != nil || n < 0 {
			sent, err = copyTo(w, rd.Recipient(), off, n, read)
		} else {
			sent, err = sendGrowing(ctx, w, rd, off, n, read)
		}
		return sent, rd.Recipient().End(err)
	}
}

func sendGrowing(ctx context.Context, w http.ResponseWriter, rd *storage.Reader, off, n int64, read func([]byte, int64) (int, error)) (sent int64, err error) {
	to := rd.Recipient()
	setDeadline(w, long.within)
	flush(http.NewResponseController(w), to) // the client waits for the headers
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
		m, err := sendFile(w, to, rd.File(), off+sent, min(end-off-sent, n-sent), now.Sub(since) < recentlyWritten && !rd.Resumed())
		since = now
		sent += m
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, storage.ErrSlow) {
			return sent, err // the client doesn't get a second deadline
		}
		if err != nil {
			// Either the client or the disk has failed. Reading tells which.
			more, err := copyTo(w, to, off+sent, n-sent, read)
			return sent + more, err
		}
	}
	return sent, nil
}

// Copy sends n bytes, beginning at off, that read returns, and waits for them; with n -1
// until read returns io.EOF. The client keeps something from others until it has them (nil: it keeps
// nothing).
// Errors: those of read, io.EOF included if it comes before n bytes; those of the connection;
// storage.ErrSlow.
func Copy(w http.ResponseWriter, to *storage.Recipient, off, n int64, read func(p []byte, off int64) (int, error)) (sent int64, err error) {
	to.Begin(w)
	sent, err = copyTo(w, to, off, n, read)
	return sent, to.End(err)
}

// copyTo is Copy between Begin and End.
func copyTo(w http.ResponseWriter, to *storage.Recipient, off, n int64, read func(p []byte, off int64) (int, error)) (sent int64, err error) {
	control := http.NewResponseController(w)
	setDeadline(w, long.within)
	flush(control, to) // the client waits for the headers
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	due := int64(0)
	for n < 0 || sent < n {
		p := buf[:]
		if n >= 0 {
			p = p[:min(bufferSize, n-sent)]
		}
		m, err := read(p, off+sent)
		if m > 0 {
			if sent >= due {
				if err := allow(w, to, long.within); err != nil {
					return sent, err
				}
				due = sent + long.every
			}
			to.Wait()
			k, werr := w.Write(p[:m])
			if werr == nil {
				werr = control.Flush()
			}
			to.Took(int64(k))
			sent += int64(k)
			if werr != nil && !errors.Is(werr, errors.ErrUnsupported) {
				return sent, werr
			}
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

// CopyShort sends all that r has, and waits for it. The client has the pace of Write for what has
// come, however slowly that comes.
// Errors: those of reading r and of the connection.
func CopyShort(w http.ResponseWriter, r io.Reader) (sent int64, err error) {
	control := http.NewResponseController(w)
	setDeadline(w, short.within)
	control.Flush() // the client waits for the headers
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			setDeadline(w, short.within)
			k, werr := w.Write(buf[:n])
			sent += int64(k)
			if werr != nil {
				return sent, werr
			}
			control.Flush()
		}
		if err == io.EOF {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
}
