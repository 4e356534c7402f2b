package tier

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// Uses are the last uses of what lies in the bucket, as lease.Redis has them; see there.
type Uses interface {
	Use(ctx context.Context, onlyNew bool, all ...lease.Use) error
	Oldest(ctx context.Context, n int) ([]lease.Use, error)
	Forget(ctx context.Context, names ...string) error
}

const (
	// evictKey is the lease of the node that evicts.
	evictKey = "evict"

	// maxNoted is how many uses may wait to be written. What is beyond is not noted: the store of the
	// node knows it too.
	maxNoted = 10_000

	// evictBatch is how many objects are looked at at a time, and atRisk how many of the oldest a node
	// compares with its store.
	evictBatch, atRisk = 100, 500

	// untilFree is which share of the budget is full after an eviction.
	untilFree = 0.95

	// abandoned is how old an upload in parts is that nobody goes on with.
	abandoned = 48 * time.Hour
)

// What Stats says of eviction, if it isn't Off. It may also be why the last round failed.
const (
	NeedsLease = "needs shared.lease"
	ByOther    = "another node"
	ByThis     = "this node"
)

// evictor notes what of the bucket is used, and, if it is this node's turn, deletes what was used the
// longest ago. All methods are safe for concurrent use.
type evictor struct {
	t      *Tier
	uses   Uses  // nil: nothing is noted or deleted
	budget int64 // bytes of blobs and manifests; 0: as much as there is

	objects, bytes, size atomic.Int64 // deleted; the size of the bucket when it was last counted

	mu    sync.Mutex // guards what follows
	used  map[string]time.Time
	state string
}

func newEvictor(t *Tier, uses Uses, budget int64) *evictor {
	e := &evictor{t: t, uses: uses, budget: budget, used: map[string]time.Time{}, state: Off}
	switch {
	case t.bucket == nil:
	case uses == nil && budget > 0:
		e.state = NeedsLease
	case uses != nil && budget > 0:
		e.state = ByOther
	}
	return e
}

func (e *evictor) set(state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.budget > 0 {
		e.state = state
	}
}

func (e *evictor) get() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// use notes that an object of the bucket is in use.
func (e *evictor) use(object string) {
	if e.uses == nil || e.budget == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.used) < maxNoted {
		e.used[object] = time.Now()
	}
}

// work tells the others of uses, and takes its turn, until the end.
func (e *evictor) work(ctx context.Context) {
	note, round := time.NewTicker(e.t.pace.noteUses), time.NewTimer(e.t.pace.evict/10)
	defer note.Stop()
	defer round.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-note.C:
			e.tell(ctx)
		case <-round.C:
			e.turn(ctx)
			round.Reset(e.t.pace.evict)
		}
	}
}

// ask asks Redis, unless it is unwell.
func (e *evictor) ask(ctx context.Context, f func() error) error {
	if !e.t.leaseHealth.ask() {
		return errUnasked
	}
	err := f()
	e.t.leaseHealth.note(ctx, err)
	return err
}

// tell tells the others what this node has used since: what it had from the bucket, and, of what would be
// deleted first, what it has used on its own disk. What can't be told is told the next time.
func (e *evictor) tell(ctx context.Context) {
	if e.budget == 0 {
		return
	}
	e.mu.Lock()
	used := e.used
	e.used = map[string]time.Time{}
	e.mu.Unlock()
	all := make([]lease.Use, 0, len(used))
	for name, at := range used {
		all = append(all, lease.Use{Name: name, At: at})
	}
	for len(all) > 0 {
		n := min(len(all), 1000)
		if e.ask(ctx, func() error { return e.uses.Use(ctx, false, all[:n]...) }) != nil {
			e.putBack(all)
			return
		}
		all = all[n:]
	}
	e.compare(ctx)
}

func (e *evictor) putBack(all []lease.Use) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range all {
		if _, newer := e.used[u.Name]; !newer && len(e.used) < maxNoted {
			e.used[u.Name] = u.At
		}
	}
}

// compare tells the others of the oldest objects that this node has used later.
func (e *evictor) compare(ctx context.Context) error {
	var oldest, later []lease.Use
	err := e.ask(ctx, func() (err error) { oldest, err = e.uses.Oldest(ctx, atRisk); return err })
	for _, u := range oldest {
		if entry, ok := e.t.store.Entry(digestOf(u.Name)); ok && entry.LastUse.Sub(u.At) > time.Second {
			later = append(later, lease.Use{Name: u.Name, At: entry.LastUse})
		}
	}
	if err == nil && len(later) > 0 {
		err = e.ask(ctx, func() error { return e.uses.Use(ctx, false, later...) })
	}
	return err
}

// digestOf returns the digest of a blob's or manifest's object; "" of another one.
func digestOf(object string) digest.Digest {
	parts := strings.Split(object, "/") // v1, blobs, sha256, 2 hex, hex
	if len(parts) != 5 {
		return ""
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(parts[2]), parts[4])
	if d.Validate() != nil {
		return ""
	}
	return d
}

// turn keeps the bucket within its budget, if no other node does.
func (e *evictor) turn(ctx context.Context) {
	if !e.isMine(ctx) {
		return
	}
	err := e.round(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		e.set(err.Error())
		e.t.log.Warn("the bucket can't be kept within shared.budget now", "error", err)
		return
	}
	e.set(ByThis)
}

// isMine reports whether this node is the one that evicts, and remains so for the next round.
func (e *evictor) isMine(ctx context.Context) bool {
	var got lease.Lease
	mine := e.t.holds.mine
	ttl := 2 * e.t.pace.evict
	err := e.ask(ctx, func() (err error) {
		if got, err = e.t.holds.leases.Take(ctx, evictKey, mine, ttl); err == nil && got == mine {
			_, err = e.t.holds.leases.Extend(ctx, evictKey, mine, ttl)
		}
		return err
	})
	switch {
	case err != nil:
		e.set("not now: " + err.Error())
	case got != mine:
		e.set(ByOther)
	}
	return err == nil && got == mine
}

var errOutvoted = errors.New("another node evicts now")

// still returns an error when this node is no longer the one that evicts.
func (e *evictor) still(ctx context.Context) error {
	var ok bool
	err := e.ask(ctx, func() (err error) {
		ok, err = e.t.holds.leases.Extend(ctx, evictKey, e.t.holds.mine, 2*e.t.pace.evict)
		return err
	})
	if err == nil && !ok {
		err = errOutvoted
	}
	return err
}

// round counts the bucket, and deletes what is too much. Uploads that nobody goes on with are
// forgotten.
// Errors: that bucket or Redis is unwell.
func (e *evictor) round(ctx context.Context) error {
	b := e.t.bucket
	if err := e.t.ask(ctx, func() error { _, err := b.AbortOld(ctx, version+"blobs", time.Now().Add(-abandoned)); return err }); err != nil {
		return err
	}
	if e.budget == 0 {
		return nil
	}
	size := int64(0)
	for _, folder := range []string{"blobs", "manifests"} {
		var redis error // which says nothing of the bucket
		err := e.t.ask(ctx, func() error {
			err := b.Each(ctx, version+folder, func(page []bucket.Listed) error {
				size += sizeOf(page)
				redis = e.learn(ctx, page)
				return redis
			})
			if redis != nil {
				return nil
			}
			return err
		})
		if err := cmp.Or(redis, err); err != nil {
			return err
		}
	}
	e.size.Store(size)
	if size <= e.budget {
		return nil
	}
	return e.shrink(ctx, size-int64(untilFree*float64(e.budget)))
}

func sizeOf(page []bucket.Listed) (n int64) {
	for _, o := range page {
		n += o.Size
	}
	return n
}

// learn makes known to all what has no use yet: then it was used when it was written.
func (e *evictor) learn(ctx context.Context, page []bucket.Listed) error {
	all := make([]lease.Use, len(page))
	for i, o := range page {
		all[i] = lease.Use{Name: o.Name, At: o.Written}
	}
	if err := e.ask(ctx, func() error { return e.uses.Use(ctx, true, all...) }); err != nil {
		return err
	}
	return e.still(ctx)
}

// shrink deletes what was used the longest ago until so many bytes are free.
func (e *evictor) shrink(ctx context.Context, bytes int64) error {
	for bytes > 0 {
		if err := errors.Join(e.still(ctx), e.compare(ctx)); err != nil {
			return err
		}
		var oldest []lease.Use
		err := e.ask(ctx, func() (err error) { oldest, err = e.uses.Oldest(ctx, evictBatch); return err })
		if err != nil {
			return err
		}
		if len(oldest) == 0 {
			return nil
		}
		for _, u := range oldest {
			if bytes <= 0 {
				return nil
			}
			n, err := e.evict(ctx, u.Name)
			if err != nil {
				return err
			}
			bytes -= n
		}
	}
	return nil
}

// evict deletes one object, and returns how many bytes it had.
func (e *evictor) evict(ctx context.Context, object string) (int64, error) {
	var o bucket.Object
	if digestOf(object) != "" { // otherwise it is none of ours
		err := e.t.ask(ctx, func() (err error) {
			if o, err = e.t.bucket.Stat(ctx, object); err == nil {
				err = e.t.bucket.Delete(ctx, object)
			}
			return err
		})
		switch {
		case err == nil:
			e.objects.Add(1)
			e.bytes.Add(o.Size)
			e.size.Add(-o.Size)
		case !errors.Is(err, bucket.ErrAbsent):
			return 0, err
		}
	}
	return o.Size, e.ask(ctx, func() error { return e.uses.Forget(ctx, object) })
}
