package storage

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Errors of an ingest.
var (
	// ErrNoRoom: the budget, or the free space to keep, has no room for it now. What is
	// fetched has to bypass the store.
	ErrNoRoom = errors.New("no room in the cache")

	// ErrDigest: all bytes are there, and they have another digest.
	ErrDigest = errors.New("digest does not match")

	// ErrBusy: somebody else is ingesting the same digest.
	ErrBusy = errors.New("already being ingested")

	// ErrDisk: the disk failed. What is fetched has to bypass the store.
	ErrDisk = errors.New("cache disk failed")
)

const (
	// VerifyFirst is the size in bytes up to which no byte of a blob is handed out before all
	// of it is verified: configs and other small blobs that clients parse at once.
	VerifyFirst = 1 << 20

	// growStep is how many bytes are reserved at a time for a blob of unknown size.
	growStep = 8 << 20

	// Piece is how many bytes of an ingest are best written at once, at a multiple of Piece.
	// The kernel then keeps them in large folios, and to write, read and send them takes half
	// the CPU time. A larger buffer doesn't fit into the second-level cache.
	Piece = 256 << 10

	// stateEvery is how many bytes, and stateAfter how much time, may pass before the state of
	// a partial is written: so much is fetched again after the process was killed.
	stateEvery = 16 << 20
	stateAfter = time.Second
)

// Ingest is a blob that comes into the store: a growing file that any number of readers can
// follow. Its bytes may be written in any order; they are hashed from first to last. The last
// byte, or all of a small blob, is held back from readers until the digest is right.
//
// One caller owns it and ends it with Commit or Abort. All methods are safe for concurrent use.
//
// A crash loses the bytes of the last second, or the last 16 MiB; the next Begin resumes the
// rest.
type Ingest struct {
	s      *Store
	digest digest.Digest
	from   Origin
	f      *os.File

	manifest    *Manifest // nil: not a manifest
	resumed     bool      // some of its bytes came in with an earlier ingest
	parked      bool      // an earlier ingest has left a partial, and its room is reserved again
	reservation reservation

	// mu guards what follows. It is never held during I/O, and taken after room.mu.
	mu       sync.Mutex
	size     int64 // -1: not known yet
	have     spans
	claimed  spans     // have, and what is being written
	hasher   hash.Hash // of the bytes before hashed
	hashed   int64
	phase    phase
	err      error // why the phase is failed
	waiters  []*waiter
	hashWake chan struct{} // closed when there is a piece to hash; nil: the hasher doesn't wait
	readers  int
	reading  []*Reader  // those that are open
	onWait   func(Want) // told of a reader that begins to wait; nil: nobody
	closed   bool       // the owner doesn't need f any more: the last reader closes it
	entry    *entry

	stateAt    time.Time // when the state file was last due
	stateBytes int64     // how many bytes the state file names

	hashing   sync.WaitGroup // the goroutine that hashes
	rest      sync.Mutex     // queues those who hash the rest of a failed ingest
	stateFile sync.Mutex     // queues those who write the state file
}

// Origin says from which repository a blob comes in, and whether that is a private one.
type Origin struct {
	Repository string
	Private    bool
	Used       time.Time // its last use at the place that it is imported from; zero: now
}

type phase uint8

const (
	running  phase = iota
	verified       // length and digest are right: the last byte is out
	failed
)

// Begin starts or resumes the ingest of a blob of size bytes, -1 when unknown. Room is made
// first: the least recently used blobs that nobody reads are evicted.
//
// Errors: ErrNoRoom; ErrBusy; ErrDisk; fs.ErrExist when the blob is there already; that d is
// invalid.
func (s *Store) Begin(from Origin, d digest.Digest, size int64) (*Ingest, error) {
	return s.begin(&Ingest{digest: d, from: from, size: size})
}

func (s *Store) begin(in *Ingest) (*Ingest, error) {
	if err := in.digest.Validate(); err != nil {
		return nil, err
	}
	in.s, in.hasher = s, in.digest.Algorithm().Hash()
	in.reservation.room, in.reservation.digest = &s.room, in.digest
	s.house.adoptUnknown(in.digest)
	if err := s.files.claim(in); err != nil {
		return nil, err
	}
	if err := in.open(); err != nil {
		if in.f != nil {
			in.f.Close()
			s.files.removePartial(in.digest)
		}
		s.files.unclaim(in, in.reservation.giveBack)
		if !errors.Is(err, ErrNoRoom) {
			err = s.files.faults.diskError(err)
		}
		return nil, err
	}
	in.hashing.Add(1)
	go in.hash()
	return in, nil
}

// open finds or makes the file. The claim on the digest is held.
func (in *Ingest) open() error {
	if in.resume() {
		return nil
	}
	want := in.size
	if want < 0 {
		want = growStep
	}
	if err := in.reservation.resize(want); err != nil {
		return err
	}
	path := in.s.files.layout.partial(in.digest)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // somebody has removed the folder
		in.s.house.folderLost()
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		}
	}
	if err != nil {
		return err
	}
	in.f = f
	if in.size > 0 {
		// Allocating now finds a full disk before the first byte is promised.
		if err := allocate(f, in.size); err != nil {
			return err
		}
		in.reservation.filled(in.size)
	}
	return in.writeState()
}

// allocate gives f its full size, and reserves it on disk where the file system can do that.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.Truncate(size)
	}
	return err
}

// Digest returns the digest that the blob must have.
func (in *Ingest) Digest() digest.Digest { return in.digest }

// Origin returns where the blob comes from.
func (in *Ingest) Origin() Origin { return in.from }

// Size returns the size of the blob in bytes, -1 until it is known.
func (in *Ingest) Size() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.size
}

// Received returns how many bytes have arrived.
func (in *Ingest) Received() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.have.bytes()
}

// Missing returns what is still to be written. If the size isn't known, that is one span with
// an end of -1.
func (in *Ingest) Missing() []Span {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.size < 0 {
		return []Span{{in.have.end(0), -1}}
	}
	return in.have.missing(in.size)
}

// SetSize says how many bytes the blob has, for one that began without a known size.
// Errors: ErrNoRoom, ErrDisk, or that more has been written already.
func (in *Ingest) SetSize(size int64) error {
	in.mu.Lock()
	known, have := in.size, in.have
	in.mu.Unlock()
	if known == size {
		return nil
	}
	if n := len(have); n > 0 && have[n-1].To > size {
		return fmt.Errorf("%d bytes have arrived of a blob of %d", have[n-1].To, size)
	}
	if err := in.reservation.resize(size); err != nil {
		return err
	}
	var err error
	if size < known || size == have.end(0) {
		err = in.f.Truncate(size)
	} else {
		err = allocate(in.f, size)
	}
	if err != nil {
		return in.s.files.faults.diskError(err)
	}
	in.reservation.filled(size)
	in.mu.Lock()
	in.size = size
	in.progress()
	in.mu.Unlock()
	in.writeState() // an error may be ignored, as in WriteAt
	return nil
}

// WriteAt writes p at off, for readers to read and to be hashed. There may be any number of
// concurrent calls for different places.
//
// Errors: ErrDisk; ErrNoRoom when the blob has no known size and there is no room for more of
// it; that the blob is longer than its size; why the ingest has failed.
func (in *Ingest) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	in.mu.Lock()
	size, err := in.size, in.err
	in.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if size >= 0 && end > size {
		return 0, fmt.Errorf("more than the %d bytes that were announced", size)
	}
	if more := end - in.reservation.bytes(); size < 0 && more > 0 { // then only one caller writes
		if err := in.reservation.grow(max(growStep, more)); err != nil {
			return 0, err
		}
	}
	// No byte is written twice: what came first may have been hashed, or read.
	in.mu.Lock()
	parts := in.claimed.missingIn(Span{off, end})
	in.claimed = in.claimed.add(Span{off, end})
	in.mu.Unlock()
	for _, s := range parts {
		if n, err := in.f.WriteAt(p[s.From-off:s.To-off], s.From); err != nil {
			return int(s.From-off) + n, in.s.files.faults.diskError(err)
		}
	}
	in.reservation.filled(end)
	in.mu.Lock()
	for _, s := range parts {
		in.have = in.have.add(s)
	}
	in.progress()
	due := in.have.bytes()-in.stateBytes >= stateEvery || time.Since(in.stateAt) >= stateAfter
	if due {
		in.stateAt = time.Now() // only one writer sees it due
	}
	in.mu.Unlock()
	if due {
		in.writeState() // if it fails, a killed process fetches more again, nothing worse
	}
	return len(p), nil
}

// waiter waits until done returns true.
type waiter struct {
	done func() bool   // called with mu held, by the goroutine that makes progress
	wake chan struct{} // closed when done returned true, or never will
}

// progress wakes the waiters that are done. To wake them all for each piece, so that they look
// and wait again, would cost more than the piece itself. mu is held.
func (in *Ingest) progress() {
	in.waiters = slices.DeleteFunc(in.waiters, func(w *waiter) bool {
		over := in.phase == failed || w.done()
		if over {
			close(w.wake)
		}
		return over
	})
	if in.hashWake != nil && (in.phase != running || in.have.hasPiece(in.hashed, in.size)) {
		close(in.hashWake)
		in.hashWake = nil
	}
}

// hashBuffers are shared by all ingests.
var hashBuffers = sync.Pool{New: func() any { return new([Piece]byte) }}

// hash hashes the bytes that arrive, from first to last, until all are hashed or the ingest
// ends. It reads them back, which the page cache makes cheap.
func (in *Ingest) hash() {
	defer in.hashing.Done()
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.phase == running && in.hashed != in.size {
		if !in.have.hasPiece(in.hashed, in.size) {
			wake := make(chan struct{})
			in.hashWake = wake
			in.mu.Unlock()
			<-wake
			in.mu.Lock()
			continue
		}
		end := in.have.end(in.hashed)
		at := in.hashed
		in.mu.Unlock()
		buf := hashBuffers.Get().(*[Piece]byte)
		p := buf[:min(end-at, Piece)]
		_, err := in.f.ReadAt(p, at)
		if err == nil {
			in.hasher.Write(p)
		}
		hashBuffers.Put(buf)
		if err != nil {
			in.fail(in.s.files.faults.diskError(err))
		}
		in.mu.Lock()
		if err != nil {
			return
		}
		in.hashed += int64(len(p))
		if in.hashed == in.size {
			in.progress()
		}
	}
}

// verify waits until all is hashed, and compares length and digest.
func (in *Ingest) verify() error {
	if in.Size() < 0 {
		return errors.New("the end of the blob has not been seen")
	}
	in.mu.Lock()
	if gaps := in.have.missing(in.size); len(gaps) > 0 {
		in.mu.Unlock()
		return fmt.Errorf("bytes %d to %d are missing: %w", gaps[0].From, gaps[0].To, io.ErrUnexpectedEOF)
	}
	in.progress() // nothing else wakes the hasher of an empty blob
	in.mu.Unlock()
	in.hashing.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.phase == failed {
		return in.err
	}
	if got := digest.NewDigest(in.digest.Algorithm(), in.hasher); got != in.digest {
		return fmt.Errorf("%w: got %s for %s", ErrDigest, got, in.digest)
	}
	in.phase = verified
	in.progress()
	return nil
}

// Commit verifies length and digest, lets readers have the last byte, and makes the file a
// blob of the store: fsync, rename, fsync of the folder, index. When it fails it has called
// Abort. Readers of a blob that was verified get all of it all the same.
//
// Errors: ErrDigest; io.ErrUnexpectedEOF when bytes are missing; ErrDisk; why the ingest has
// failed.
func (in *Ingest) Commit() error {
	if err := in.verify(); err != nil {
		in.Abort(err)
		return err
	}
	if err := in.s.files.commit(in); err != nil {
		err = in.s.files.faults.diskError(err)
		in.Abort(err)
		return err
	}
	in.s.house.flushSoon()
	in.finish()
	return nil
}

// Abort ends the ingest: readers get what is there, and then err. What has arrived is kept, so
// that a later Begin can resume it, unless err is ErrDigest, ErrDisk or ErrNoRoom, or the blob is
// no larger than VerifyFirst.
func (in *Ingest) Abort(err error) {
	in.fail(err)
	in.hashing.Wait()
	keep := !errors.Is(err, ErrDigest) && !errors.Is(err, ErrDisk) && !errors.Is(err, ErrNoRoom)
	in.mu.Lock()
	keep = keep && in.size > VerifyFirst && len(in.have) > 0 && in.phase == failed
	size := in.size
	in.mu.Unlock()
	if keep {
		keep = in.writeState() == nil
	}
	e := &entry{Key: in.digest, Size: size, Value: info{bits: isPartial}}
	if !keep {
		in.s.files.removePartial(in.digest)
		if fi, err := in.f.Stat(); err == nil {
			e.Size = fi.Size()
		} else {
			e.Size = 0
		}
	}
	in.s.files.unclaim(in, func() {
		if keep {
			in.reservation.park(e)
		} else {
			in.reservation.discard(e)
		}
		in.become(e)
	})
	in.finish()
}

// fail ends the ingest with err, unless it has ended.
func (in *Ingest) fail(err error) {
	in.mu.Lock()
	if in.phase == running {
		in.phase, in.err = failed, err
	}
	in.progress()
	in.mu.Unlock()
}

// Failed reports whether the ingest has failed: no more bytes will come than there are.
func (in *Ingest) Failed() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.phase == failed
}

// Wait blocks until the blob is verified. Errors: why it will not be; that of ctx.
func (in *Ingest) Wait(ctx context.Context) error {
	return in.until(ctx, func() bool { return in.phase == verified })
}

// until blocks until done, called with mu held, is true.
func (in *Ingest) until(ctx context.Context, done func() bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for !done() {
		if in.phase == failed {
			return in.err
		}
		w := &waiter{done, make(chan struct{})}
		in.waiters = append(in.waiters, w)
		in.mu.Unlock()
		select {
		case <-w.wake:
		case <-ctx.Done():
		}
		in.mu.Lock()
		if err := context.Cause(ctx); err != nil {
			in.waiters = slices.DeleteFunc(in.waiters, func(other *waiter) bool { return other == w })
			return err
		}
	}
	return nil
}
