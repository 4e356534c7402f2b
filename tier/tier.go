// Package tier is what several nodes share: a bucket with what any of them has fetched, and
// leases by which one of them fetches a blob while the others read from it. It is a fetch.Source
// in front of that of an upstream registry; docs/design/shared-tier.md describes it.
//
// All bytes from bucket or node are verified by who reads them, as those of an upstream are.
// While bucket or leases are unwell, a Tier goes on without them.
package tier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// Leases are who fetches what, as lease.Redis has them; see there.
type Leases interface {
	Take(ctx context.Context, key string, mine lease.Lease, ttl time.Duration) (lease.Lease, error)
	Replace(ctx context.Context, key string, dead, mine lease.Lease, ttl time.Duration) (lease.Lease, error)
	Extend(ctx context.Context, key string, mine lease.Lease, ttl time.Duration) (bool, error)
	Release(ctx context.Context, key string, mine lease.Lease) error
}

// Options is what New needs. Store, Dir and at least one of Bucket and Leases must be set.
type Options struct {
	Store  *storage.Store
	Dir    string         // a folder of its own for uploads that haven't ended; it is made
	Bucket *bucket.Bucket // nil: none
	Leases Leases         // nil: none; it needs Advertise
	Notes  Notes          // nil: none
	Uses   Uses           // nil: none; then nothing is deleted from the bucket. It needs Leases
	Budget int64          // bytes of blobs and manifests in the bucket; 0: as many as there are

	// Advertise is the URL by which other nodes reach the pull API of this one.
	Advertise string

	Log *slog.Logger // nil: slog.Default()

	pace pace // zero: usual
}

// pace is how long a Tier waits until it does something again. Tests have less.
type pace struct {
	// After a failure an engine isn't asked for restFirst, and after each further one twice as
	// long, up to restMost. probe is how long the one that then tries has, before another one may.
	restFirst, restMost, probe time.Duration

	// again is how long after a failure an upload is tried again, if the bucket is asked at all.
	again time.Duration

	// arrive is how long what is to be uploaded may take to come into the store. After that it
	// isn't kept here, or is gone.
	arrive time.Duration

	// byOthers is how long a node that has a blob from another one leaves it to that one to upload
	// it.
	byOthers time.Duration

	// noteUses is how often the uses of objects are told, and evict how often the bucket is counted.
	noteUses, evict time.Duration
}

var usual = pace{restFirst: time.Second, restMost: 30 * time.Second, probe: 5 * time.Second, again: 5 * time.Second, arrive: time.Minute, byOthers: 20 * time.Second, noteUses: 10 * time.Second, evict: 10 * time.Minute}

// Tier is the shared tier of a process. All methods are safe for concurrent use.
//
// A crash loses what was fetched in its last moment and not yet written down as an upload; the bucket
// gets it when it is fetched again.
type Tier struct {
	store  *storage.Store
	bucket *bucket.Bucket
	log    *slog.Logger

	pace pace

	bucketHealth, leaseHealth *health
	holds                     *holds
	uploads                   *uploads
	evictor                   *evictor
	peers                     *http.Client
	hidden                    hidden
	told                      Notes           // nil: the nodes tell each other nothing
	noted                     cooldown.Memory // tags whose record has just been written
	distrusted                cooldown.Memory // blobs of which bucket or peer had wrong bytes
	dropping, wrong           cooldown.Memory // names of objects with wrong bytes: that are being deleted, and that couldn't be
	smallWrites               chan struct{}   // slots of writes that nobody waits for

	hits, bytes, mismatches, recalls atomic.Int64

	ctx   context.Context // ends with Close
	close context.CancelFunc

	mu      sync.Mutex // guards closed; no other lock is taken while it is held
	closed  bool
	running sync.WaitGroup // added to with mu held and closed false
}

// smallWrites is how many records may be on their way into the bucket. What doesn't find a place isn't
// written, which costs another node a question to the upstream.
const smallWrites = 64

// New returns a Tier, and goes on with the uploads of an earlier one. It makes no request.
// Errors: an Advertise that is no URL, those of the folder.
func New(o Options) (*Tier, error) {
	t := &Tier{
		store: o.Store, bucket: o.Bucket, told: o.Notes, log: cmp.Or(o.Log, slog.Default()),
		hidden: hidden{wake: make(chan struct{}, 1), all: map[string]time.Time{}},
		pace:   cmp.Or(o.pace, usual), peers: newPeerClient(), smallWrites: make(chan struct{}, smallWrites),
	}
	t.bucketHealth, t.leaseHealth = &health{name: "bucket", log: t.log, pace: t.pace}, &health{name: "lease", log: t.log, pace: t.pace}
	if o.Leases != nil {
		u, err := url.Parse(o.Advertise)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil {
			return nil, fmt.Errorf("the URL by which other nodes reach this one must be like http://10.0.0.1:5000, not %q", o.Advertise)
		}
	}
	t.ctx, t.close = context.WithCancel(context.Background())
	t.holds = &holds{t: t, leases: o.Leases, mine: lease.Of(strings.TrimRight(o.Advertise, "/")), held: map[digest.Digest]*hold{}, taking: map[digest.Digest]int{}}
	t.evictor = newEvictor(t, o.Uses, o.Budget)
	var err error
	if t.uploads, err = newUploads(t, o.Dir); err != nil {
		t.close()
		return nil, err
	}
	if t.bucket != nil {
		for range uploaders {
			t.background(func(context.Context) { t.uploads.work() })
		}
		t.background(t.tellHidden)
		if o.Uses != nil && o.Leases != nil {
			t.background(t.evictor.work)
		}
	}
	return t, nil
}

// Close ends what is under way, and gives back the leases. What isn't in the bucket yet is
// uploaded after the next New.
func (t *Tier) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.close()
	t.running.Wait()
	t.holds.releaseAll()
	t.peers.CloseIdleConnections()
}

// Source returns the source that puts the tier in front of the upstream registry of that name, where the
// nodes have that account.
func (t *Tier) Source(registry string, a Account, next fetch.Source) fetch.Source {
	return &source{Source: next, t: t, registry: registry, account: a}
}

// What Stats says of bucket and leases, beside why they are unwell.
const (
	Off  = "off"
	Well = "well"
)

// Stats is a snapshot of a Tier. The counters begin with the start of the program.
type Stats struct {
	Bucket     string // Off, Well, or why it isn't asked now
	Lease      string // the same
	Hits       int64  // parts of blobs, and manifests, that came from bucket or another node
	Bytes      int64  // of them
	Mismatches int64  // what came from there and had wrong bytes
	Recalls    int64  // checks of tags that another node had just made
	Uploads    int    // what isn't in the bucket yet
	Holding    int    // leases of this node

	// Eviction says which node keeps the bucket within Budget: Off without one, ByThis, ByOther,
	// NeedsLease, or why that fails. Size is that of the bucket when this node has last counted it; Evicted
	// and EvictedBytes are what this node has deleted.
	Eviction              string
	Budget, Size          int64
	Evicted, EvictedBytes int64
}

// Stats returns a snapshot.
func (t *Tier) Stats() Stats {
	s := Stats{Bucket: Off, Lease: Off, Hits: t.hits.Load(), Bytes: t.bytes.Load(), Mismatches: t.mismatches.Load(), Recalls: t.recalls.Load(), Uploads: t.uploads.len(), Holding: t.holds.len()}
	e := t.evictor
	s.Eviction, s.Budget, s.Size, s.Evicted, s.EvictedBytes = e.get(), e.budget, e.size.Load(), e.objects.Load(), e.bytes.Load()
	if t.bucket != nil {
		s.Bucket = t.bucketHealth.state()
	}
	if t.holds.leases != nil || t.told != nil {
		s.Lease = t.leaseHealth.state()
	}
	return s
}

// Peer reports whether token is that of the lease by which this node fetches the blob. Who knows it
// is another node of the tier.
func (t *Tier) Peer(token string, d digest.Digest) bool { return t.holds.isToken(token, d) }

// errUnasked: bucket or Redis isn't there, or was unwell a moment ago.
var errUnasked = errors.New("it isn't asked now, since it was unwell a moment ago")

// ask calls f, which asks the bucket, unless the bucket is unwell.
// Errors: errUnasked; those of f.
func (t *Tier) ask(ctx context.Context, f func() error) error {
	if t.bucket == nil || !t.bucketHealth.ask() {
		return errUnasked
	}
	err := f()
	t.noteBucket(ctx, err)
	return err
}

// noteBucket takes note of how the bucket fared. An object that isn't there, or is too short, is no
// failure.
func (t *Tier) noteBucket(ctx context.Context, err error) {
	if errors.Is(err, bucket.ErrAbsent) || errors.Is(err, bucket.ErrRange) {
		err = nil
	}
	t.bucketHealth.note(ctx, err)
}

// background calls f in a goroutine, with a context that ends with Close. After Close it does nothing.
func (t *Tier) background(f func(context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.running.Go(func() { f(t.ctx) })
	}
}

// soon calls f, which asks the bucket for something small, in the background, or not at all.
func (t *Tier) soon(f func(context.Context)) {
	if t.bucket != nil {
		t.later(f)
	}
}

// later calls f, which asks bucket or Redis for something small, in the background, or not at all.
func (t *Tier) later(f func(context.Context)) {
	select {
	case t.smallWrites <- struct{}{}:
	default:
		return
	}
	t.background(func(ctx context.Context) {
		defer func() { <-t.smallWrites }()
		f(ctx)
	})
}

// wrongTime is how long an object with wrong bytes that couldn't be deleted is remembered. Until then
// an upload replaces it.
const wrongTime = time.Hour

// drop takes an object with wrong bytes out of the bucket, if it can. Uploads of it wait meanwhile, so
// that the right one isn't deleted.
func (t *Tier) drop(name string, d digest.Digest) {
	t.mismatches.Add(1)
	t.log.Warn("the shared tier had wrong bytes, which are dropped", "digest", d)
	t.wrong.Add(name, wrongTime, nil)
	t.soon(func(ctx context.Context) {
		t.dropping.Add(name, wrongTime, nil)
		defer t.dropping.Forget(name)
		if t.ask(ctx, func() error { return t.bucket.Delete(ctx, name) }) == nil {
			t.wrong.Forget(name)
		}
	})
}
