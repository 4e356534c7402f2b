// Package fetch brings blobs into a storage.Store: one download for each blob, for any number
// of readers. What can't be kept is passed through to each reader.
//
// A Pool has a Flight for each blob that is on its way. Clients never read from upstream:
// the client whose request began the flight reads the growing file like all others, so that
// a slow client slows nobody, and one that leaves stops nothing. Where the bytes come from is
// a Source; this package knows no registry.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/storage"
)

// Errors of a flight. What the Source returns comes back as it is, and so do storage.ErrDigest,
// storage.ErrNoRoom and storage.ErrDisk.
var (
	// ErrBypass: the blob can't be kept, and each reader has to fetch it by itself.
	ErrBypass = errors.New("the blob can't be kept")

	// ErrNoFlight: the blob is not being downloaded.
	ErrNoFlight = errors.New("no download is under way")

	// ErrEnded: there was a flight, and it has ended, or none can be started any more. The
	// blob may be in the store now, or a new flight may be started: look again.
	ErrEnded = errors.New("the download has ended")

	// ErrBusy: no slot came free in time.
	ErrBusy = errors.New("too many downloads are under way (limits.transfers, limits.bypass)")

	// ErrAbsent: the Source hasn't got the blob, or refuses it. A Source whose errors wrap it
	// remembers by itself what it hasn't got.
	ErrAbsent = errors.New("the source hasn't got it")

	// ErrLater: the Source can't be asked now, for this blob or any other. A Source whose errors
	// wrap it remembers by itself until when, and answers at once until then.
	ErrLater = errors.New("the source can't be asked now")

	// ErrTimeout: a small blob, which is sent only when it has been verified, took too long.
	ErrTimeout = fmt.Errorf("not all of the blob arrived in %s: %w", verifyDeadline, context.DeadlineExceeded)

	errOrphan  = errors.New("nobody reads it, and there are too many such downloads")
	errGaveWay = errors.New("a client needs the only slot")
	errStopped = errors.New("nobody wants it any more")
	errClosed  = errors.New("the server is stopping")
	notFailure = []error{ErrAbsent, ErrBypass, ErrEnded, ErrBusy, errOrphan, errGaveWay, errStopped, errClosed, storage.ErrNoRoom, storage.ErrDisk} // they say nothing of the source
)

const (
	// failedFirst and failedMost are how long other failures are remembered: for the first
	// time, and at most. A body that broke, or was wrong, is remembered from the second in a
	// row on (cooldown.Failures). A failure before the headers is remembered at once, since
	// the source had tried several times.
	failedFirst = time.Second
	failedMost  = 20 * time.Second

	// A blob whose last body broke is sent only when it has been verified, for at most
	// doubtDeadline, and is given up when no byte has come in silentDeadline. dockerd's older
	// store asks for the rest of a broken body after 5 s, and then for all of it after 10 s
	// more; refused both times it falls back to Hub, and otherwise only after 75 s.
	doubtDeadline  = 10 * time.Second
	silentDeadline = 4 * time.Second

	// verifyDeadline is how long the headers of a small blob wait for all of it. Together
	// with what comes before it is less than the 30 s after which containerd gives up.
	verifyDeadline = 15 * time.Second
)

// Limits bound what goes on at one time. Zero means the default.
type Limits struct {
	Transfers int // connections that carry blob bodies
	Orphans   int // downloads that nobody reads, read-ahead among them
	Ranges    int // connections for one blob that bring bytes at the same time
	Bypass    int // bodies that are passed through without being kept
}

// DefaultLimits returns the limits of an ordinary host: enough connections to fill a gigabit
// from a CDN that gives 20 MB/s to each, and buffers for them in some 16 MiB.
func DefaultLimits() Limits { return Limits{Transfers: 32, Orphans: 8, Ranges: 6, Bypass: 16} }

// orDefault replaces what isn't set.
func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	for _, f := range []struct {
		set *int
		to  int
	}{{&l.Transfers, d.Transfers}, {&l.Orphans, d.Orphans}, {&l.Ranges, d.Ranges}, {&l.Bypass, d.Bypass}} {
		if *f.set <= 0 {
			*f.set = f.to
		}
	}
	return l
}

// Options is what New needs. Store must be set.
type Options struct {
	Store  *storage.Store
	Limits Limits
	Log    *slog.Logger // nil: slog.Default()

	// Verified is told of each blob that has come in and whose digest is right; nil: nobody.
	Verified func(digest.Digest)
}

// Pool has all flights of a process. All methods are safe for concurrent use.
//
// A crash loses what storage.Ingest says of unfinished downloads, and nothing else.
type Pool struct {
	store    *storage.Store
	log      *slog.Logger
	verified func(digest.Digest)

	bounds  atomic.Pointer[bounds]
	failed  *cooldown.Failures // blobs whose fetch has failed, by Blob.key
	unused  unused
	readers *storage.Recipients // of what is passed through
	demands demands

	received   atomic.Int64 // bytes from sources, for the pace of all downloads together
	resumes    atomic.Int64
	mismatches atomic.Int64

	closing context.Context
	close   context.CancelFunc

	// mu guards what follows, and the readers and wanted of the flights. Nothing is called
	// while it is held that takes another lock or does I/O.
	mu          sync.Mutex
	flights     map[digest.Digest]*Flight
	withReaders int           // the number of flights that have readers
	idle        chan struct{} // closed when flights becomes empty; nil: nobody waits for that
	closed      bool
	running     sync.WaitGroup // flights and read-ahead; added to with mu held and closed false
}

// bounds are the limits in force, and the slots that enforce them.
type bounds struct {
	Limits
	transfers *slots.Slots
	bypass    *bypassSlots
	readAhead *semaphore.Weighted
}

// New returns a Pool in which nothing is on its way.
func New(o Options) *Pool {
	p := &Pool{
		store: o.Store, log: cmp.Or(o.Log, slog.Default()), verified: o.Verified,
		failed: cooldown.NewFailures(failedFirst, failedMost),
		unused: unused{blobs: map[digest.Digest]*unusedBlob{}}, flights: map[digest.Digest]*Flight{},
		readers: storage.NewRecipients(0),
	}
	if p.verified == nil {
		p.verified = func(digest.Digest) {}
	}
	p.closing, p.close = context.WithCancel(context.Background())
	p.SetLimits(o.Limits)
	return p
}

// SetLimits changes the limits for what begins after it.
func (p *Pool) SetLimits(l Limits) {
	l = l.orDefault()
	if old := p.bounds.Load(); old != nil && old.Limits == l {
		return
	}
	p.bounds.Store(&bounds{
		Limits: l, transfers: slots.New(l.Transfers, 0),
		bypass: newBypassSlots(l.Bypass, p.readers), readAhead: semaphore.NewWeighted(int64(l.Orphans)),
	})
}

// Close ends all flights, keeping what has arrived for the next start, and waits for them
// until ctx is done.
// Errors: that they did not end in time, with ctx's cause.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for _, f := range p.flights {
		f.cancel(errClosed)
	}
	p.mu.Unlock()
	p.close()
	p.unused.stop()
	done := make(chan struct{})
	go func() { p.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("downloads did not end: %w", context.Cause(ctx))
	}
}

// Failed returns why a fetch of the blob under the repository failed a moment ago, or nil when
// it may be tried.
func (p *Pool) Failed(repository string, d digest.Digest) error {
	_, err := p.failed.Get((&Blob{Digest: d, Origin: storage.Origin{Repository: repository}}).key())
	return err
}

// Inflight is one blob that is being fetched.
type Inflight struct {
	Digest, Repository string
	Size, Received     int64 // bytes; Size is -1 while unknown
	Readers            int
}

// Stats is a snapshot of a Pool. The counters begin with the start of the program.
type Stats struct {
	Resumes          int64 // partial downloads of an earlier start that were taken up again
	DigestMismatches int64 // bodies whose digest or length was wrong
	ReadAheadUnused  int64 // bytes that were read ahead and not asked for in time
	SlowReaders      int64 // clients that were cut off because they kept slots that others needed
	Inflight         []Inflight
}

// Stats returns a snapshot.
func (p *Pool) Stats() Stats {
	s := Stats{Resumes: p.resumes.Load(), DigestMismatches: p.mismatches.Load(), ReadAheadUnused: p.unused.total(), SlowReaders: p.readers.Cut(), Inflight: []Inflight{}}
	p.mu.Lock()
	flights := make([]*Flight, 0, len(p.flights))
	for _, f := range p.flights {
		flights = append(flights, f)
		s.Inflight = append(s.Inflight, Inflight{Digest: string(f.blob.Digest), Repository: f.blob.Origin.Repository, Size: -1, Readers: f.readers})
	}
	p.mu.Unlock()
	for i, f := range flights {
		select {
		case <-f.ready:
			if f.in != nil {
				s.Inflight[i].Size, s.Inflight[i].Received = f.in.Size(), f.in.Received()
			}
		default:
		}
	}
	return s
}

// begin counts n things that Close waits for; ok is false when the pool is closed.
func (p *Pool) begin(n int) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Add(n)
	}
	return !p.closed
}

// open opens a body of the source whose bytes are counted.
func (p *Pool) open(ctx context.Context, s BlobSource, part Part) (*Body, error) {
	b, err := s.Open(ctx, part)
	if err == nil {
		b.ReadCloser = counted{b.ReadCloser, &p.received}
	}
	return b, err
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
