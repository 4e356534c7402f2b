package storage

import (
	"context"
	"hash"
	"io"
	"os"
	"time"
)

// Reader reads an ingest behind its write head. Not safe for concurrent use.
type Reader struct{ in *Ingest }

// Reader returns a reader of the blob, from its first byte on if need be: what came before
// is in the file. It works on after Commit, Abort and eviction. Close it.
// ok is false when the ingest has ended meanwhile and its last reader has left.
func (in *Ingest) Reader() (r *Reader, ok bool) {
	in.s.mu.Lock() // so that the entry isn't gone before it is held
	defer in.s.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed && in.readers == 0 {
		return nil, false
	}
	in.readers++
	if in.entry != nil {
		in.s.lru.Hold(in.entry)
	}
	return &Reader{in}, true
}

// Readers returns how many readers are open.
func (in *Ingest) Readers() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.readers
}

// BatchDelay is how long Available waits for more than the first byte.
const BatchDelay = 20 * time.Millisecond

// Available waits until there are want bytes to read at off, or, after BatchDelay, any at all, and
// returns where they end; what the end of the blob or the holding back of its last byte
// leaves of want will do. At the end of the blob it returns io.EOF. When the ingest has failed
// it shows what arrived before, and then returns the reason.
func (r *Reader) Available(ctx context.Context, off, want int64) (end int64, err error) {
	in := r.in
	shown := func() bool {
		end = in.shown(off)
		return end-off >= want || in.phase == verified || end > off && end == in.size-1
	}
	if want > 1 {
		patient, cancel := context.WithTimeout(ctx, BatchDelay)
		in.until(patient, shown) // what it says, the second look says again
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

// ReadAt reads what there is at off, at most len(p) bytes, and waits for it as Available does,
// whose errors it returns, and ErrDisk.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	end, err := r.Available(ctx, off, 1)
	if err != nil {
		return 0, err
	}
	n, err := r.in.f.ReadAt(p[:min(int64(len(p)), end-off)], off)
	if err != nil {
		err = r.in.diskError(err)
	}
	return n, err
}

// File returns the growing file, for sendfile of what is Available, until the Reader is closed.
// Its offset is nobody's.
func (r *Reader) File() *os.File { return r.in.f }

// Resumed reports whether some of the bytes came in with an earlier ingest, of which the
// kernel may have nothing in memory.
func (r *Reader) Resumed() bool { return r.in.resumed }

// shown returns up to where readers at off may see. mu is held.
func (in *Ingest) shown(off int64) int64 {
	end := in.have.end(off)
	switch {
	case in.phase == verified:
	case in.size >= 0 && in.size <= VerifyFirst:
		return off
	case in.size < 0 && end <= VerifyFirst:
		return off // it may yet turn out to be a small one
	case in.size < 0 || end == in.size:
		end-- // the last byte, for all we know
	}
	return end
}

// Fallback is from where on a blob that can't be kept has to come from elsewhere: the file
// has the bytes before At, and Hash their digest so far.
type Fallback struct {
	At   int64
	Hash hash.Hash
}

// Fallback returns where the readers of a failed ingest have to go on by themselves.
// ok is false when it hasn't failed, or when what is there can't be read again.
func (in *Ingest) Fallback() (s Fallback, ok bool) {
	in.mu.Lock()
	ok = in.phase == failed
	in.mu.Unlock()
	if !ok {
		return s, false
	}
	in.hashing.Wait()
	in.spilling.Lock() // hasher and hashed are ours now, and mu must not be held so long
	defer in.spilling.Unlock()
	in.mu.Lock()
	end := in.have.end(0)
	in.mu.Unlock()
	// Readers may be ahead of the hasher.
	rest := io.NewSectionReader(in.f, in.hashed, end-in.hashed)
	n, err := io.Copy(in.hasher, rest)
	in.hashed += n
	if err != nil {
		return s, false
	}
	c, ok := in.hasher.(hash.Cloner)
	if !ok {
		return s, false
	}
	h, err := c.Clone()
	return Fallback{At: in.hashed, Hash: h}, err == nil
}

// Close ends the reading.
func (r *Reader) Close() error {
	in := r.in
	in.mu.Lock()
	in.readers--
	e, last := in.entry, in.readers == 0 && in.closed
	in.mu.Unlock()
	var err error
	if last {
		err = in.f.Close()
	}
	if e != nil {
		in.s.letGo(e) // an unlinked file takes room until it is closed
	}
	return err
}

// become makes the owner and the readers of the ingest holders of e, into which it has
// turned: a committed blob, an idle partial, or an unlinked file. It is called once, with
// the store's mu held.
func (in *Ingest) become(e *entry) {
	in.s.lru.Hold(e) // until finish
	in.mu.Lock()
	in.entry = e
	for range in.readers {
		in.s.lru.Hold(e)
	}
	in.mu.Unlock()
}

// finish is the owner's goodbye to the file. become has been called.
func (in *Ingest) finish() {
	in.mu.Lock()
	in.closed = true
	e, last := in.entry, in.readers == 0
	in.mu.Unlock()
	if last {
		in.f.Close()
	}
	in.s.letGo(e)
}
