package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// flight is one blob on its way from upstream into the store. Whoever asks for it
// meanwhile reads along; it goes on when they leave.
type flight struct {
	r      *Registry
	name   string // the repository under which it is fetched
	digest digest.Digest
	origin storage.Origin
	size   int64 // as a manifest named it; -1: unknown

	ctx    context.Context
	cancel context.CancelCauseFunc

	ready  chan struct{} // closed when upstream has answered, or has not
	landed chan struct{} // closed when the flight is over
	once   sync.Once
	in     *storage.Ingest // set before ready, unless err
	err    error           // why there is nothing to read; errBypass: each for himself

	// Guarded by flights.mu.
	readers int
	wanted  bool // somebody has asked for it; false: read ahead
}

// errBypass says that a blob can't be kept: its readers fetch it themselves.
var errBypass = errors.New("the blob can't be kept")

// errOrphan ends a flight that nobody reads when there are too many of them.
var errOrphan = errors.New("nobody reads it, and there are too many such downloads")

// flights are those in the air.
type flights struct {
	mu     sync.Mutex // guards all, and the flights' readers and wanted
	all    map[digest.Digest]*flight
	closed bool
	wait   sync.WaitGroup
}

// seat says what join is to do.
type seat struct {
	take    bool // count the caller among the readers: it must leave
	takeOff bool // start a flight when there is none
}

// join returns the flight of the digest, or nil. One that it starts is under the given
// repository; first says so. Whether another repository's may be read is the caller's
// to find out.
func (r *Registry) join(name string, d digest.Digest, size int64, s seat) (f *flight, first bool) {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	if f = r.flights.all[d]; f == nil {
		if r.flights.closed || !s.takeOff {
			return nil, false
		}
		f = &flight{r: r, name: name, digest: d, origin: r.origin(name), size: size, ready: make(chan struct{}), landed: make(chan struct{})}
		f.ctx, f.cancel = context.WithCancelCause(context.Background())
		r.flights.all[d] = f
		r.flights.wait.Go(f.fly)
		first = true
	}
	if s.take {
		f.readers++
		f.wanted = true
	}
	return f, first
}

// aboard returns the flight of d, or nil, without taking a seat.
func (r *Registry) aboard(d digest.Digest) *flight {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	return r.flights.all[d]
}

// leave gives a seat back. A flight without readers goes on, unless there are more of
// that kind than limits.orphans.
func (f *flight) leave() {
	fs := &f.r.flights
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.readers--
	if f.readers > 0 || fs.all[f.digest] != f {
		return
	}
	orphans := 0
	for _, g := range fs.all {
		if g.readers == 0 {
			orphans++
		}
	}
	if orphans > f.r.policy.Load().Limits.Orphans {
		f.cancel(errOrphan)
	}
}

// fly fetches, and lands: commits or aborts.
func (f *flight) fly() {
	d := newDownload(f)
	err := d.run()
	if f.in != nil && err == nil {
		err = f.in.Commit()
		if errors.Is(err, storage.ErrDigest) {
			f.r.mismatches.Add(1)
		}
	} else if f.in != nil {
		f.in.Abort(err)
	}
	f.land(err)
}

// land takes the flight off the board, and remembers a failure for a moment.
func (f *flight) land(err error) {
	r := f.r
	if err != nil && !slices.ContainsFunc(notFailures, func(e error) bool { return errors.Is(err, e) }) {
		remember := failedFor
		if f.in != nil {
			remember = brokenFor
		}
		r.failed.add(f.name+"@"+string(f.digest), remember, err)
		r.log.Warn("fetching a blob failed", "repository", r.full(f.name), "digest", f.digest, "error", err)
	}
	r.flights.mu.Lock()
	delete(r.flights.all, f.digest)
	wanted := f.wanted
	r.flights.mu.Unlock()
	if err == nil {
		r.trusted.add(string(f.digest), trustFor) // it has just been hashed
		if !wanted {
			r.ahead.landed(f.digest, f.in.Size())
		}
	}
	f.announce(err)
	f.cancel(nil)
	close(f.landed)
}

// notFailures end flights and say nothing of upstream.
var notFailures = []error{errBypass, errLanded, errOrphan, errClosed, errTooMany, storage.ErrNoRoom, storage.ErrDisk}

// announce opens ready with what is to be told.
func (f *flight) announce(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.ready)
	})
}

// board waits until there is something to read, and returns a reader of it. small blobs
// are verified by then, so that a bad one still gets an honest answer.
func (f *flight) board(ctx context.Context) (*storage.Reader, error) {
	select {
	case <-f.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.err != nil {
		return nil, f.err
	}
	if size := f.in.Size(); size >= 0 && size <= storage.VerifyFirst {
		wait, cancel := context.WithTimeoutCause(ctx, smallWithin, &upstreamError{cause: timeout, host: f.r.up.base.Host})
		defer cancel()
		if err := f.in.Wait(wait); err != nil {
			return nil, err
		}
	}
	rd, ok := f.in.Reader()
	if !ok {
		return nil, errLanded
	}
	return rd, nil
}

// smallWithin is how long the headers of a small blob wait for all of it: with what came
// before, less than the 30 s after which containerd gives up.
const smallWithin = 15 * time.Second

// errLanded: the flight ended between the look at the board and the reader. Look again.
var errLanded = errors.New("the flight has landed")

// errClosed ends flights when the server stops; what has arrived is kept.
var errClosed = errors.New("the server is stopping")

func (r *Registry) closeFlights(ctx context.Context) error {
	r.flights.mu.Lock()
	r.flights.closed = true
	for _, f := range r.flights.all {
		f.cancel(errClosed)
	}
	r.flights.mu.Unlock()
	done := make(chan struct{})
	go func() { r.flights.wait.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("downloads did not end: %w", context.Cause(ctx))
	}
}

// inflight describes the flights.
func (r *Registry) inflight() []Inflight {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	list := []Inflight{}
	for _, f := range r.flights.all {
		i := Inflight{Digest: string(f.digest), Repository: r.full(f.name), Size: f.size, Readers: f.readers}
		select {
		case <-f.ready:
			if f.in != nil {
				i.Size, i.Received = f.in.Size(), f.in.Received()
			}
		default:
		}
		list = append(list, i)
	}
	return list
}

// memory remembers things for a while. The zero value is ready.
type memory struct {
	mu sync.Mutex // guards m
	m  map[string]remembered
}

type remembered struct {
	until time.Time
	err   error
}

// maxRemembered bounds a memory: beyond it the expired are swept, or all is forgotten.
const maxRemembered = 10_000

func (m *memory) add(key string, d time.Duration, errs ...error) {
	if d <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if len(m.m) >= maxRemembered {
		for k, v := range m.m {
			if now.After(v.until) {
				delete(m.m, k)
			}
		}
	}
	if m.m == nil || len(m.m) >= maxRemembered {
		m.m = map[string]remembered{}
	}
	v := remembered{until: now.Add(d)}
	if len(errs) > 0 {
		v.err = errs[0]
	}
	m.m[key] = v
}

func (m *memory) get(key string) (remembered, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.m[key]
	if ok && time.Now().After(v.until) {
		delete(m.m, key)
		ok = false
	}
	return v, ok
}

func (m *memory) has(key string) bool {
	_, ok := m.get(key)
	return ok
}

func (m *memory) forget(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.m, key)
}
