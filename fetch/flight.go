package fetch

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// Flight is one blob on its way from its source into the store. Any number of readers can
// follow it; it goes on when they leave. All methods are safe for concurrent use.
type Flight struct {
	pool *Pool
	blob Blob

	ctx    context.Context
	cancel context.CancelCauseFunc

	ready chan struct{} // closed when the source has answered, or has failed
	done  chan struct{} // closed when the flight is over

	whole atomic.Bool // somebody has asked for more than parts of it, or nobody for anything: it is worth more than one connection

	// Written before done is closed.
	again bool  // it has failed, and nothing is remembered of it
	ended error // why the blob is not in the store; nil: it is

	// These are written before ready is closed, and never after.
	announced sync.Once
	stated    int64           // the size that the source has stated, -1 when none
	doubtful  bool            // the last body of the blob broke, or a manifest claims another size: headers wait until this one is verified
	in        *storage.Ingest // nil if err isn't
	err       error           // why the flight failed before there was anything to read; later errors reach the readers of in

	// Guarded by the pool's mu.
	ahead   *Ahead // nil: a client's request has started it
	readers int
	wanted  bool // somebody has asked for it; false: it is read ahead
}

// Join returns the flight of the blob and counts the caller as one of its readers. On success
// the caller must call Leave exactly once. Join waits while a cancelled or failed flight ends.
// Errors: ErrNoFlight, ErrEnded, ctx's cause.
func (p *Pool) Join(ctx context.Context, d digest.Digest) (*Flight, error) {
	p.mu.Lock()
	f := p.flights[d]
	if f != nil {
		f.enter()
	}
	p.mu.Unlock()
	if f == nil {
		return nil, ErrNoFlight
	}
	return f.joined(ctx)
}

// Start joins the flight of the blob, or starts one; first reports whether it did. A flight
// that exists may belong to another repository (see Origin): the caller must check whether its
// client may read it. Only a new flight uses more of b than its digest.
// Errors: ErrEnded, also when the pool is closed; ctx's cause.
func (p *Pool) Start(ctx context.Context, b Blob) (f *Flight, first bool, err error) {
	doubtful := p.failed.Failed(b.key())
	p.mu.Lock()
	if f = p.flights[b.Digest]; f == nil {
		p.giveWay()
		f = p.start(b, doubtful)
		first = f != nil
	}
	if f != nil {
		f.enter()
	}
	p.mu.Unlock()
	if f == nil {
		return nil, false, ErrEnded
	}
	f, err = f.joined(ctx)
	return f, first, err
}

// start starts a flight, or returns nil when the pool is closed. mu is held.
func (p *Pool) start(b Blob, doubtful bool) *Flight {
	if p.closed {
		return nil
	}
	f := &Flight{pool: p, blob: b, doubtful: doubtful, stated: -1, ready: make(chan struct{}), done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.whole.Store(!b.Part)
	p.flights[b.Digest] = f
	p.running.Go(f.run)
	return f
}

// enter counts a reader, and marks the flight as asked for by a client. mu is held.
func (f *Flight) enter() {
	if f.readers == 0 {
		f.pool.withReaders++
	}
	f.readers++
	f.wanted = true
}

// joined returns f. If f has been cancelled, has failed or is ending, it waits for the end, so
// that the caller can look again: what broke for others must not break for one who asks later.
func (f *Flight) joined(ctx context.Context) (*Flight, error) {
	if f.ctx.Err() == nil && !f.failed() {
		return f, nil
	}
	defer f.Leave()
	select {
	case <-f.done:
		return nil, ErrEnded
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// failed reports whether the bytes of the flight have failed. Its readers know that before the
// flight leaves the pool.
func (f *Flight) failed() bool {
	select {
	case <-f.ready:
		return f.in != nil && f.in.Failed()
	default:
		return false
	}
}

// Leave says that the caller reads no more. If nobody reads the flight then, it goes on,
// unless more than Limits.Orphans flights have no readers: then this one is cancelled, and
// what has arrived is kept for a later start.
func (f *Flight) Leave() {
	p := f.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	f.readers--
	if f.readers > 0 || p.flights[f.blob.Digest] != f {
		return
	}
	p.withReaders--
	if len(p.flights)-p.withReaders > p.bounds.Load().Orphans {
		f.cancel(errOrphan)
	}
}

// run fetches the blob and ends the flight: it commits or aborts.
func (f *Flight) run() {
	err := newDownload(f).run()
	if f.in != nil && err == nil {
		err = f.in.Commit() // it has called Abort when it fails
		if errors.Is(err, storage.ErrDigest) {
			f.pool.mismatches.Add(1)
		}
	} else if f.in != nil {
		f.in.Abort(err)
	}
	f.finish(err)
}

// finish ends the flight: it remembers and logs a failure, reports success, and wakes
// everybody who waits. The failure is remembered, and the source told, before the flight leaves the pool, so that no
// client can start another one in between.
func (f *Flight) finish(err error) {
	p := f.pool
	switch {
	case err == nil:
		p.failed.Forget(f.blob.key())
	case !slices.ContainsFunc(notFailure, func(e error) bool { return errors.Is(err, e) }):
		if !errors.Is(err, ErrLater) {
			f.again = p.failed.Add(f.blob.key(), err, f.in == nil) == 0
		}
		p.log.Warn("fetching a blob failed", "repository", f.blob.Origin.Repository, "digest", f.blob.Digest, "error", err)
	}
	if e, ok := f.blob.Source.(Ender); ok {
		e.Ended(err)
	}
	p.mu.Lock()
	delete(p.flights, f.blob.Digest)
	if f.readers > 0 {
		p.withReaders--
	}
	if len(p.flights) == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
	wanted, ahead := f.wanted, f.ahead
	p.mu.Unlock()
	if err == nil {
		p.verified(f.blob.Digest)
		if ahead != nil {
			ahead.size.Store(f.in.Size())
			p.unused.add(f.blob.Digest, ahead, wanted)
		}
	}
	f.announce(err)
	f.cancel(nil)
	f.ended = err
	close(f.done)
}

// announce tells those who wait for the source that it has answered, or why not.
func (f *Flight) announce(err error) {
	f.announced.Do(func() {
		f.err = err
		close(f.ready)
	})
}

// isWanted reports whether anybody has asked for the blob.
func (f *Flight) isWanted() bool {
	f.pool.mu.Lock()
	defer f.pool.mu.Unlock()
	return f.wanted
}

// urgent reports whether the flight may add connections: it has a reader, or no flight has
// one. Read-ahead and flights whose clients have left give way to what clients wait for. A blob
// of which clients ask for parts only has one connection for the rest of it, which nobody needs.
func (f *Flight) urgent() bool {
	if !f.whole.Load() {
		return false
	}
	f.pool.mu.Lock()
	defer f.pool.mu.Unlock()
	return f.readers > 0 || f.pool.withReaders == 0
}

// Ahead returns what is sent of a flight that read-ahead has started, and nil for one that a client
// has.
func (f *Flight) Ahead() *Ahead {
	f.pool.mu.Lock()
	defer f.pool.mu.Unlock()
	return f.ahead
}

// Origin returns the repository under which the blob is fetched.
func (f *Flight) Origin() storage.Origin { return f.blob.Origin }

// Reader waits until there is something to read, and returns a reader of it. Close it. A blob
// of known size up to storage.VerifyFirst has been verified by then, so that its client gets an
// error status and not a broken body. So has one whose last body broke, or of which the source states
// another size than the manifest claims, unless that takes long. parts is given the size of the blob,
// -1 if it is unknown, and returns which parts of it the client gets, or nil if it gets all or all
// from some byte on, as with a parts of nil: no digest speaks for a part, so that nothing of it waits for that of the blob.
// Errors: ErrBypass, ErrEnded, ErrBusy, ErrTimeout, that the pool is closed, those of the
// Source and of the storage, ctx's cause.
func (f *Flight) Reader(ctx context.Context, parts func(size int64) []storage.Span) (*storage.Reader, error) {
	select {
	case <-f.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.err != nil {
		return nil, f.err
	}
	var of []storage.Span
	if parts != nil {
		of = parts(f.in.Size())
	}
	if of == nil {
		f.whole.Store(true)
		if err := f.verifiedFirst(ctx); err != nil {
			return nil, err
		}
	}
	rd, ok := f.in.Reader()
	if !ok {
		return nil, ErrEnded
	}
	if of != nil {
		rd.ReadsParts(of)
	}
	return rd, nil
}

// verifiedFirst waits for what must be verified before a client gets any of it.
func (f *Flight) verifiedFirst(ctx context.Context) error {
	if size := f.in.Size(); size >= 0 && size <= storage.VerifyFirst {
		return f.verifiedWithin(ctx, verifyDeadline)
	}
	if !f.doubtful {
		return nil
	}
	err := f.verifiedWithin(ctx, silentDeadline)
	if errors.Is(err, ErrTimeout) && f.in.Received() > 0 {
		err = f.verifiedWithin(ctx, doubtDeadline-silentDeadline)
		if errors.Is(err, ErrTimeout) {
			err = nil
		}
	}
	return err
}

// verifiedWithin waits until the blob is verified, of which its client has got nothing yet.
// Errors: ErrTimeout; ErrEnded when it has failed and the next flight may begin at once; why the
// flight has failed; ctx's cause.
func (f *Flight) verifiedWithin(ctx context.Context, patience time.Duration) error {
	wait, cancel := context.WithTimeoutCause(ctx, patience, ErrTimeout)
	defer cancel()
	err := f.in.Wait(wait)
	if err == nil || wait.Err() != nil || NotKept(err) {
		return err
	}
	select {
	case <-f.done:
	case <-wait.Done():
		return err
	}
	if f.again {
		return ErrEnded
	}
	return err
}

// Stated returns the size that the source has stated of the blob, -1 when it has stated none. Call
// it when Reader has returned.
func (f *Flight) Stated() int64 { return f.stated }

// Size returns the size of the blob in bytes, -1 while it is unknown. It panics unless Reader
// has succeeded.
func (f *Flight) Size() int64 { return f.in.Size() }

// Verified waits until the blob is verified. It panics unless Reader has succeeded.
// Errors: why it will not be, ctx's cause.
func (f *Flight) Verified(ctx context.Context) error { return f.in.Wait(ctx) }

// Continue sends n bytes of the blob, beginning at off, to a client of a flight that has failed.
// The client must have the bytes before off. rd, its reader, is closed, so that the file takes no
// room while the client gets the rest. own is the blob under the client's own
// repository, from which comes what the file doesn't have; the hash goes on from that of the file.
// n is -1 for everything to the end. It panics unless Reader has succeeded.
// Errors: ErrBusy, storage.ErrDigest, those of the Source and of the connection, ctx's cause.
func (f *Flight) Continue(ctx context.Context, w http.ResponseWriter, own Blob, rd *storage.Reader, off, n int64) (int64, error) {
	own.Size = f.in.Size()
	if rd.Parts() {
		rd.Close()
		return f.pool.passPart(ctx, w, own, off, n)
	}
	from, ok := f.in.Fallback(off)
	rd.Close()
	if !ok { // what the file has can't be used: read all of it again
		from = storage.Fallback{Hash: f.blob.Digest.Algorithm().Hash()}
	}
	return f.pool.PassThrough(ctx, w, own, from, off, n)
}

// NotKept reports whether err says that the store can't keep a blob, so that it has to be
// passed through.
func NotKept(err error) bool {
	return errors.Is(err, ErrBypass) || errors.Is(err, storage.ErrNoRoom) || errors.Is(err, storage.ErrDisk)
}
