package storage

import (
	"context"
	"hash"
	"io"
	"os"
	"slices"
	"time"
)

// Reader reads an ingest while it grows. Not safe for concurrent use.
type Reader struct {
	in     *Ingest
	to     *Recipient
	closed bool

	// These are guarded by the ingest's mu.
	part  bool // nothing is held back from it
	want  Want
	parts []Span // what it reads after want
}

// Reader returns a reader of the blob, which can read what has arrived before too. It can
// still be used after Commit, Abort and eviction. Close it. ok is false when the ingest has
// ended and its last reader has left.
func (in *Ingest) Reader() (r *Reader, ok bool) {
	in.reservation.room.mu.Lock() // so that the entry can't go before it is held
	defer in.reservation.room.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed && in.readers == 0 {
		return nil, false
	}
	in.readers++
	if in.entry != nil {
		in.reservation.room.lru.Hold(in.entry)
	}
	r = &Reader{in: in, to: in.reservation.room.recipients.Add(in), want: Want{To: -1}}
	in.reading = append(in.reading, r)
	return r, true
}

// Readers returns how many readers are open.
func (in *Ingest) Readers() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.readers
}

// BatchDelay is how long Available waits for all the bytes that are wanted before fewer are
// enough. To send larger pieces costs less CPU time, and nobody notices 20 ms in a download.
const BatchDelay = 20 * time.Millisecond

// Available waits until there are want bytes to read at off, or, after BatchDelay, any at all,
// and returns where they end. Fewer are enough at the end of the blob, and before its last byte,
// which is held back. When the ingest has failed it returns what had arrived first.
//
// Errors: io.EOF at the end of the blob; why the ingest has failed; that of ctx.
func (r *Reader) Available(ctx context.Context, off, want int64) (end int64, err error) {
	in := r.in
	r.wants(off)
	shown := func() bool {
		end = r.shown(off)
		return end-off >= want || in.phase == verified || end > off && end == in.size-1
	}
	if want > 1 {
		patient, cancel := context.WithTimeout(ctx, BatchDelay)
		in.until(patient, shown) // its error is found again below
		cancel()
		want = 1
	}
	err = in.until(ctx, shown)
	if end > off {
		return end, nil
	}
	if err == nil {
		err = io.EOF
	}
	return off, err
}

// ReadAt reads what there is at off, at most len(p) bytes, and waits for it as Available does.
// Errors: those of Available; ErrDisk.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	end, err := r.Available(ctx, off, 1)
	if err != nil {
		return 0, err
	}
	n, err := r.in.f.ReadAt(p[:min(int64(len(p)), end-off)], off)
	if err != nil {
		err = r.in.s.files.faults.diskError(err)
	}
	return n, err
}

// File returns the growing file, for sendfile of what is Available, until the Reader is closed.
// Its offset must not be used: all readers share it.
func (r *Reader) File() *os.File { return r.in.f }

// Resumed reports whether some of the bytes came in with an earlier ingest. The page cache may
// not have them.
func (r *Reader) Resumed() bool { return r.in.resumed }

// shown returns up to where the reader may read from off on. The ingest's mu is held.
func (r *Reader) shown(off int64) int64 {
	in := r.in
	end := in.have.end(off)
	switch {
	case in.phase == verified || r.part:
	case in.size >= 0 && in.size <= VerifyFirst:
		return off
	case in.size < 0 && end <= VerifyFirst:
		return off // it may turn out to be a small one
	case in.size < 0 || end == in.size:
		end-- // it may be the last byte
	}
	return end
}

// Fallback says from which byte on a blob that can't be kept has to come from elsewhere.
type Fallback struct {
	At      int64     // the file has the bytes before
	Hash    hash.Hash // of the bytes before At
	Pending []byte    // the last of the bytes before At, which the reader hasn't got yet
}

// maxPending bounds Fallback.Pending: what is held back from readers, and some that have just
// arrived.
const maxPending = VerifyFirst + Piece

// Fallback returns from where a reader of a failed ingest, who has the bytes before off, has to go
// on by itself. ok is false when it hasn't failed, when what is there can't be read again, or when
// the reader lacks too much of it.
func (in *Ingest) Fallback(off int64) (s Fallback, ok bool) {
	in.mu.Lock()
	ok = in.phase == failed
	in.mu.Unlock()
	if !ok {
		return s, false
	}
	in.hashing.Wait()
	// With the hashing ended, this lock guards hasher and hashed: mu must not be held so long.
	in.rest.Lock()
	defer in.rest.Unlock()
	in.mu.Lock()
	end := in.have.end(0)
	in.mu.Unlock()
	if end-off > maxPending {
		return s, false
	}
	// Readers may have read more than has been hashed.
	rest := io.NewSectionReader(in.f, in.hashed, end-in.hashed)
	n, err := io.Copy(in.hasher, rest)
	in.hashed += n
	if err != nil {
		return s, false
	}
	s = Fallback{At: in.hashed, Pending: make([]byte, max(in.hashed-off, 0))}
	if _, err := in.f.ReadAt(s.Pending, in.hashed-int64(len(s.Pending))); err != nil {
		return s, false
	}
	c, ok := in.hasher.(hash.Cloner)
	if !ok {
		return s, false
	}
	s.Hash, err = c.Clone()
	return s, err == nil
}

// Recipient is the client that the bytes are sent to.
func (r *Reader) Recipient() *Recipient { return r.to }

// Close ends the reading; the second time it does nothing. Errors: those of os.File.Close, from
// the last reader.
func (r *Reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	in := r.in
	in.mu.Lock()
	in.readers--
	in.reading = slices.DeleteFunc(in.reading, func(other *Reader) bool { return other == r })
	e, last := in.entry, in.readers == 0 && in.closed
	in.mu.Unlock()
	var err error
	if last {
		err = in.f.Close()
	}
	if e != nil {
		in.reservation.room.release(e) // an unlinked file takes room until it is closed
	}
	return err
}

// become makes the owner and the readers of the ingest holders of e, which it has turned into:
// a committed blob, a parked partial, or an unlinked file. It is called once, with room.mu held.
func (in *Ingest) become(e *entry) {
	in.reservation.room.lru.Hold(e) // until finish
	in.mu.Lock()
	in.entry = e
	for range in.readers {
		in.reservation.room.lru.Hold(e)
	}
	in.mu.Unlock()
}

// finish says that the owner doesn't need the file any more. become has been called.
func (in *Ingest) finish() {
	in.mu.Lock()
	in.closed = true
	e, last := in.entry, in.readers == 0
	in.mu.Unlock()
	if last {
		in.f.Close()
	}
	in.reservation.room.release(e)
}
