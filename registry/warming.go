package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// warming is one reference that is being warmed.
type warming struct {
	job  *warmJob
	m    *mirror
	repo *repo
	ref  name.Reference
	res  *Warmed
	top  *found // what the reference names

	mu sync.Mutex // guards res.Fetched while blobs are fetched
}

// run fetches all that is missing.
func (w *warming) run(ctx context.Context) error {
	before := w.namedNow()
	top, err := askPatiently(ctx, w.named)
	if err != nil {
		return err
	}
	w.top, w.res.Digest, w.res.Stale = top, top.digest, top.outcome == OutcomeStale
	c := &closure{load: w.load, refer: w.referring, platforms: w.platforms(ctx, before, top.digest)}
	if err := c.add(ctx, image.Child{Digest: top.digest, Size: top.size, Role: image.RoleManifest}, 0); err != nil {
		return err
	}
	w.res.Bytes = c.bytes
	missing, err := w.job.plan(w.m.store, c)
	if err != nil {
		return err
	}
	w.job.report(WarmEvent{Reference: w.ref, Plan: &WarmPlan{c.bytes, missing}})
	if err := w.blobs(ctx, c); err != nil {
		return err
	}
	w.m.store.Touch(top.digest)
	return w.stillThere(c)
}

// namedNow returns what the tag names as far as the cache knows, or "".
func (w *warming) namedNow() digest.Digest {
	t, err := w.m.store.Tag(w.repo.full, w.ref.Tag)
	if w.ref.Tag == "" || err != nil {
		return ""
	}
	return t.Digest
}

// named returns the manifest that the reference names.
func (w *warming) named(ctx context.Context) (*found, error) {
	q := &manifestRequest{repo: w.repo, ref: cmp.Or(w.ref.Tag, string(w.ref.Digest)), digest: w.ref.Digest, sparing: true}
	if w.job.o.Refresh && q.digest == "" {
		w.m.absent.memory.Forget(absentKey(fetch.Manifests, q.name, q.ref))
		q.now = true
		return q.refreshed(ctx)
	}
	return q.find(ctx)
}

// refreshed is find for a tag that is asked for whatever its TTL.
func (q *manifestRequest) refreshed(ctx context.Context) (*found, error) {
	if err := q.admission.wait(ctx); err != nil {
		return nil, err
	}
	f, err := q.check(ctx)
	if err == nil {
		q.m.hot.drop(q.name, q.ref) // it may be another manifest now
	}
	return f, err
}

// load returns a manifest by its digest, with its body.
func (w *warming) load(ctx context.Context, d digest.Digest) (*found, error) {
	f, err := w.top, error(nil)
	if d != f.digest {
		q := &manifestRequest{repo: w.repo, ref: string(d), digest: d, sparing: true}
		if f, err = askPatiently(ctx, q.find); err != nil {
			return nil, err
		}
	}
	switch f.outcome {
	case OutcomeBypass:
		return nil, fmt.Errorf("%w: the cache can't keep the manifest %s", ErrNoRoom, d)
	case OutcomeMiss:
		w.fetched(f.size)
	}
	if f.body != nil {
		return f, nil
	}
	g := *f
	g.body, err = w.m.readLarge(ctx, d)
	return &g, err
}

// askPatiently asks a question, and again while the upstream is asked too many others.
func askPatiently(ctx context.Context, question func(context.Context) (*found, error)) (*found, error) {
	for try := 1; ; try++ {
		f, err := question(ctx)
		if err == nil || !errors.Is(err, errBusy) || try == busyTries {
			return f, err
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// platforms returns the platforms to warm: before is what the tag named until now.
func (w *warming) platforms(ctx context.Context, before, now digest.Digest) []v1.Platform {
	if len(w.job.o.Platforms) > 0 {
		return w.job.o.Platforms
	}
	all := w.m.cachedPlatforms(ctx, now)
	if before != "" && before != now {
		all = append(all, w.m.cachedPlatforms(ctx, before)...)
	}
	if len(all) == 0 {
		return []v1.Platform{platforms.DefaultSpec()}
	}
	return all
}

// referring asks which manifests refer to one. A registry that can't tell now keeps no image from
// being warmed: Docker does without.
func (w *warming) referring(ctx context.Context, d digest.Digest) ([]digest.Digest, error) {
	l, err := w.repo.list(ctx, "referrers/"+string(d), url.Values{})
	if err != nil {
		w.m.log.Debug("what refers to a manifest is not warmed", "repository", w.repo.full, "digest", d, "error", err)
		return nil, ctx.Err()
	}
	if l.long != nil {
		if l.long.take() {
			l.long.close()
		}
		return nil, nil
	}
	var all []digest.Digest
	for _, m := range image.Members(l.Body) {
		all = append(all, m.Digest)
	}
	return all, nil
}

// saysNo reports whether err says that the upstream hasn't got something, or refuses it.
func saysNo(err error) bool {
	u, ok := errors.AsType[*upstream.Error](err)
	return ok && !u.Down()
}

// blobs fetches the configs and layers that are missing, several at once. One that fails keeps no
// other from coming, unless there is no room.
func (w *warming) blobs(ctx context.Context, c *closure) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group errgroup.Group
	group.SetLimit(warmBlobs)
	for _, b := range c.blobs {
		group.Go(func() error {
			err := w.blob(ctx, b)
			if fetch.NotKept(err) && !errors.Is(err, storage.ErrDisk) {
				err = fmt.Errorf("%w: the cache can't keep %s: %w", ErrNoRoom, b.Digest, err)
				cancel(err)
			}
			if c.optional[b.Digest] && saysNo(err) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// blob fetches one blob if it is missing, and makes sure that the repository is known to have it.
func (w *warming) blob(ctx context.Context, b image.Child) error {
	report := func(received, size int64) {
		w.job.report(WarmEvent{Reference: w.ref, Blob: &WarmBlob{b.Digest, size, received}})
	}
	if _, here := w.m.store.Has(b.Digest); !here {
		report(0, b.Size)
		blob := w.repo.blob(b.Digest, w.repo.claimedSize(b.Digest))
		blob.Origin = w.repo.origin()
		err := w.m.pool.Warm(ctx, blob, func(received, size int64) {
			if size >= 0 {
				received = min(received, size-1) // the last byte is here when the digest is right
			}
			report(max(received, 0), size)
		})
		if err != nil {
			return err
		}
		size, _ := w.m.store.Has(b.Digest)
		w.fetched(size)
		report(size, size)
	}
	return w.link(ctx, b.Digest)
}

// link makes sure that a client may get a cached blob under the repository without a question to
// the upstream.
func (w *warming) link(ctx context.Context, d digest.Digest) error {
	b, err := w.m.store.Open(d)
	if err != nil {
		return err
	}
	b.Close()
	ok, err := w.repo.linked(d, b.Private)
	if err == nil && !ok {
		err = w.repo.confirm(ctx, fetch.Blobs, d, b.Size)
	}
	return err
}

// fetched counts bytes that were not here before.
func (w *warming) fetched(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.res.Fetched += n
}

// stillThere fails if what was warmed has been evicted meanwhile.
func (w *warming) stillThere(c *closure) error {
	gone := func(d digest.Digest) bool { _, ok := w.m.store.Has(d); return !ok && !c.optional[d] }
	if slices.ContainsFunc(c.manifests, gone) || slices.ContainsFunc(c.blobs, func(b image.Child) bool { return gone(b.Digest) }) {
		return fmt.Errorf("%w: a part of it was evicted for what clients asked for meanwhile", ErrNoRoom)
	}
	return nil
}
