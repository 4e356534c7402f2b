package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// WarmOptions say what Warm and Cached do.
type WarmOptions struct {
	// Platforms are those of which an image is wanted. None: those that are cached of it, else the
	// server's own.
	Platforms []v1.Platform

	// Refresh asks the upstream what a tag names, whatever its TTL, and whatever was remembered.
	Refresh bool

	// Report is told what happens, by one goroutine at a time, which waits for it; nil: nobody is.
	Report func(WarmEvent)
}

// WarmEvent is news of one reference: of a blob that is fetched for it, or, with Result, its last.
type WarmEvent struct {
	Reference name.Reference
	Result    *Warmed // nil: Blob is told

	Blob     digest.Digest // a config or a layer
	Size     int64         // of the blob in bytes; -1 while unknown
	Received int64         // bytes of it that are here; equal to Size when all of it is
}

// Warmed is what became of one reference.
type Warmed struct {
	Reference name.Reference
	Digest    digest.Digest // what it names; "" if that isn't known
	Bytes     int64         // of all that belongs to it on these platforms
	Fetched   int64         // bytes of it that were not here before
	Stale     bool          // the upstream couldn't be asked what the tag names now, or not within the quota reserve
	Err       error         // nil: all of it is here
}

// Errors of a reference, beside ErrReserve and those that a client would get.
var (
	// ErrUnserved: the image belongs to a registry that isn't cached.
	ErrUnserved = errors.New("this cache does not serve its registry")

	// ErrNoRoom: the image doesn't fit the budget beside what is pinned and what else is warmed.
	ErrNoRoom = errors.New("there is no room for it")
)

const (
	// warmImages and warmBlobs are how many images are warmed at one time, and how many blobs of
	// each. The pool bounds how many of them are fetched.
	warmImages = 4
	warmBlobs  = 8

	// busyPause and busyTries are how often a question is asked again that found too many others.
	busyPause = 2 * time.Second
	busyTries = 15
)

// Warm brings images into the cache as clients would pull them, with their attestations and
// referrers, and returns what became of each reference, in their order. What is here is not
// fetched again. It follows the same rules as a pull: allow and deny, visibility, budget, limits and
// what is remembered of the upstream. It gives way to clients. Nothing that costs pulls is asked
// for below the quota reserve.
//
// An image that doesn't fit beside what is pinned and what the same call has warmed is refused
// before its first layer. When ctx ends or the registry is closed, Warm ends soon, and what has come
// is kept; downloads are resumed by whoever wants the blobs next.
func (r *Registry) Warm(ctx context.Context, references []name.Reference, o WarmOptions) []Warmed {
	results := make([]Warmed, len(references))
	leave, ok := r.tasks.enter()
	if !ok {
		for i, ref := range references {
			results[i] = Warmed{Reference: ref, Err: errStopping}
		}
		return results
	}
	defer leave()
	ctx, cancel := r.tasks.untilStop(withClient(ctx, thisMachine))
	defer cancel()
	j := &warmJob{r: r, o: o, planned: map[digest.Digest]bool{}}
	var images errgroup.Group
	images.SetLimit(warmImages)
	for i, ref := range references {
		images.Go(func() error {
			results[i] = j.image(ctx, ref)
			j.report(WarmEvent{Reference: ref, Result: &results[i]})
			return nil
		})
	}
	_ = images.Wait() // the errors are in the results
	return results
}

// warmJob is one call of Warm. Its methods are safe for concurrent use.
type warmJob struct {
	r *Registry
	o WarmOptions

	reporting sync.Mutex // held while Report is called

	mu      sync.Mutex // guards what follows
	planned map[digest.Digest]bool
	bytes   int64 // of planned
}

func (j *warmJob) report(e WarmEvent) {
	if j.o.Report == nil {
		return
	}
	j.reporting.Lock()
	defer j.reporting.Unlock()
	j.o.Report(e)
}

// image warms one reference.
func (j *warmJob) image(ctx context.Context, ref name.Reference) Warmed {
	res := Warmed{Reference: ref}
	if res.Err = context.Cause(ctx); res.Err != nil {
		return res
	}
	m, repository, err := j.r.mirrorOf(ref)
	if err != nil {
		res.Err = err
		return res
	}
	w := &warming{job: j, m: m, ref: ref, res: &res}
	w.repo = m.internal(ctx, repository)
	if err := w.run(ctx); err != nil {
		res.Err = warmError(err)
	}
	return res
}

// mirrorOf returns the mirror of a reference and the repository as that names it.
// Errors: ErrUnserved.
func (r *Registry) mirrorOf(ref name.Reference) (m *mirror, repository string, err error) {
	host, repository, _ := strings.Cut(ref.Repository, "/")
	if m = r.byNamespace[host]; m == nil {
		return nil, "", fmt.Errorf("%w: %s", ErrUnserved, host)
	}
	return m, repository, nil
}

// internal resolves a repository for what no client asks for.
func (m *mirror) internal(ctx context.Context, repository string) *repo {
	r := &repo{m: m, name: repository, full: m.name + "/" + repository, policy: m.policy.Load(), client: thisMachine}
	r.admission = m.admit(ctx, r)
	return r
}

// warmError is an error of a reference as people read it: what a client would get, and why.
func warmError(err error) error {
	for _, known := range []error{ErrUnserved, ErrNoRoom, ErrReserve, errPlatform, context.Canceled} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fail(manifest, err)
}

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
	top, err := w.ask(ctx, w.named)
	if err != nil {
		return err
	}
	w.top, w.res.Digest, w.res.Stale = top, top.digest, top.outcome == OutcomeStale
	c := &closure{load: w.load, refer: w.referring, platforms: w.platforms(ctx, before, top.digest)}
	if err := c.add(ctx, image.Child{Digest: top.digest, Size: top.size, Role: image.RoleManifest}, 0); err != nil {
		return err
	}
	w.res.Bytes = c.bytes
	if err := w.job.plan(w.m.store, c); err != nil {
		return err
	}
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
		if f, err = w.ask(ctx, q.find); err != nil {
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

// ask asks a question, and again while the upstream is asked too many others.
func (w *warming) ask(ctx context.Context, question func(context.Context) (*found, error)) (*found, error) {
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

// plan takes the room for a closure, unless all of it is here.
// Errors: ErrNoRoom.
func (j *warmJob) plan(s *storage.Store, c *closure) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	more, missing := int64(0), int64(0)
	plan := func(d digest.Digest, size int64) {
		if !j.planned[d] {
			more += size
		}
		if _, ok := s.Has(d); !ok {
			missing += size
		}
	}
	for _, d := range c.manifests {
		size, _ := s.Has(d)
		plan(d, size)
	}
	for _, b := range c.blobs {
		plan(b.Digest, b.Size)
	}
	st := s.Stats()
	if room := st.BudgetBytes - st.PinnedBytes; missing > 0 && j.bytes+more > room {
		beside := ""
		if j.bytes > 0 {
			beside = fmt.Sprintf(" beside the %s that are warmed with it", units.BytesSize(float64(j.bytes)))
		}
		return fmt.Errorf("%w: it needs %s%s, and the budget leaves %s that are not pinned: raise budget, or warm less",
			ErrNoRoom, units.BytesSize(float64(more)), beside, units.BytesSize(float64(max(0, room))))
	}
	j.bytes += more
	for _, d := range c.manifests {
		j.planned[d] = true
	}
	for _, b := range c.blobs {
		j.planned[b.Digest] = true
	}
	return nil
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
	event := WarmEvent{Reference: w.ref, Blob: b.Digest, Size: b.Size}
	size, here := w.m.store.Has(b.Digest)
	if !here {
		w.job.report(event)
		blob := w.repo.blob(b.Digest, w.repo.claimedSize(b.Digest))
		blob.Origin = w.repo.origin()
		err := w.m.pool.Warm(ctx, blob, func(received, size int64) {
			event.Received, event.Size = min(received, max(size-1, 0)), size // the last byte is here when the digest is right
			w.job.report(event)
		})
		if err != nil {
			return err
		}
		size, _ = w.m.store.Has(b.Digest)
		w.fetched(size)
	}
	if err := w.link(ctx, b.Digest); err != nil {
		return err
	}
	event.Received, event.Size = size, size
	w.job.report(event)
	return nil
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
