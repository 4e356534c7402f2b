package fetch

import (
	"context"
	"errors"
	"slices"
	"time"
)

const (
	// warmProgress is how often Warm tells how far a blob has come.
	warmProgress = 200 * time.Millisecond

	// warmTries is how many times Warm tries a blob of which nothing comes, for reasons that say
	// nothing of the blob.
	warmTries = 20
)

// endedByOthers are the reasons for which a flight ends that say nothing of the blob.
var endedByOthers = []error{ErrEnded, ErrBusy, errOrphan, errGaveWay, errStopped}

// Warm brings a blob into the store, for nobody who waits for its bytes, and returns when it is
// there. It joins a download that is under way. One of its own gives way to clients as read-ahead
// does: it is one of Limits.Orphans, begins only while a slot stays free for a client, and with a
// single slot makes room for a client's download and goes on after that.
//
// When ctx ends, Warm's own download ends too, unless a client has joined it; what has arrived is
// kept. progress is called now and then with what has come and the size, both in bytes; the size is
// -1 while it is unknown. nil: nobody wants to know.
//
// Errors: ErrBypass, storage.ErrNoRoom and storage.ErrDisk when the store can't keep the blob; that
// the pool is closed; those of the Source, also from a moment ago; ctx's cause.
func (p *Pool) Warm(ctx context.Context, b Blob, progress func(received, size int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	b.Client = ""
	for tries := 1; ; tries++ {
		if _, ok := p.store.Has(b.Digest); ok {
			return nil
		}
		if err := p.Failed(b.Origin.Repository, b.Digest); err != nil {
			return err
		}
		foreign := false // another repository's download: nothing that it meets says anything of ours
		var err error
		if f := p.flight(b); f != nil {
			foreign = f.Origin().Repository != b.Origin.Repository
			err = p.follow(ctx, f, false, progress)
		} else {
			err = p.warmOne(ctx, b, progress)
		}
		again := foreign || slices.ContainsFunc(endedByOthers, func(e error) bool { return errors.Is(err, e) })
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errGaveWay): // something has come, and it waits until it may go on
			tries = 0
		case !again || tries == warmTries:
			return err
		}
	}
}

// flight returns the flight of the blob, or nil.
func (p *Pool) flight(b Blob) *Flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flights[b.Digest]
}

// warmOne starts a flight for Warm when it may, and follows it. ErrEnded: look again.
func (p *Pool) warmOne(ctx context.Context, b Blob, progress func(received, size int64)) error {
	bounds := p.bounds.Load()
	if bounds.readAhead.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	defer bounds.readAhead.Release(1)
	if err := p.waitForSpare(ctx, bounds); err != nil {
		return err
	}
	if _, ok := p.store.Has(b.Digest); ok {
		return nil
	}
	doubtful := p.failed.Failed(b.key())
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errClosed
	}
	if p.flights[b.Digest] != nil { // a client was first
		p.mu.Unlock()
		return ErrEnded
	}
	f := p.start(b, doubtful)
	p.mu.Unlock()
	return p.follow(ctx, f, true, progress)
}

// waitForSpare waits until there is a slot for what no client waits for.
func (p *Pool) waitForSpare(ctx context.Context, b *bounds) error {
	if b.Transfers > 1 {
		return b.transfers.WaitFree(ctx, 1)
	}
	for {
		p.mu.Lock()
		if len(p.flights) == 0 || p.closed {
			p.mu.Unlock()
			return nil
		}
		idle := p.whenIdle()
		p.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follow waits for the end of a flight and returns why it has ended; nil: the blob is in the store.
// When ctx ends, it ends a flight that is its own and that nobody else wants.
func (p *Pool) follow(ctx context.Context, f *Flight, own bool, progress func(received, size int64)) error {
	tick := time.NewTicker(warmProgress)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			return f.ended
		case <-ctx.Done():
			if own {
				f.stop()
			}
			return context.Cause(ctx)
		case <-tick.C:
			select {
			case <-f.ready:
				if f.in != nil {
					progress(f.in.Received(), f.in.Size())
				}
			default:
			}
		}
	}
}

// stop ends the flight, unless a client has asked for the blob, and waits for its end.
func (f *Flight) stop() {
	f.pool.mu.Lock()
	wanted := f.wanted
	if !wanted {
		f.cancel(errStopped)
	}
	f.pool.mu.Unlock()
	if !wanted {
		<-f.done
	}
}
