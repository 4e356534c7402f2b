package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// WarmOptions say what Warm and Cached do.
type WarmOptions struct {
	// Platforms are those of which an image is wanted. None: those that are cached of it, else the
	// server's own.
	Platforms []v1.Platform

	// Refresh asks the upstream what a tag names, whatever its TTL, and whatever was remembered.
	Refresh bool

	// Scheduled says that nobody waits for the images: below the quota reserve nothing is done at
	// all for a reference.
	Scheduled bool

	// Report is told what happens, by one goroutine at a time, which waits for it; nil: nobody is.
	Report func(WarmEvent)
}

// WarmEvent is news of one reference. One of its fields is set beside Reference.
type WarmEvent struct {
	Reference name.Reference
	Plan      *WarmPlan // its manifests are here, and it is known what is missing
	Blob      *WarmBlob // a config or a layer that is fetched
	Result    *Warmed   // the last
}

// WarmPlan is what a reference needs, in bytes.
type WarmPlan struct {
	Bytes   int64 // of all that belongs to it
	Missing int64 // of what is to be fetched
}

// WarmBlob is a blob on its way.
type WarmBlob struct {
	Digest   digest.Digest
	Size     int64 // bytes; -1 while unknown
	Received int64 // bytes that are here; equal to Size when all of it is
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
	if j.o.Scheduled && m.client.Scarce(m.policy.Load().QuotaReserve) {
		res.Err = ErrReserve
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
	if m = r.routes.Load().byName[host]; m == nil {
		return nil, "", fmt.Errorf("%w: %s (the setting registries names those that it serves)", ErrUnserved, host)
	}
	return m, repository, nil
}

// Unserved says that the registry of a reference isn't configured; nil if it is.
// Errors: ErrUnserved.
func (r *Registry) Unserved(ref name.Reference) error {
	_, _, err := r.mirrorOf(ref)
	return err
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

// plan takes the room for a closure, unless all of it is here. It returns how many bytes are missing.
// Errors: ErrNoRoom.
func (j *warmJob) plan(s *storage.Store, c *closure) (missing int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	more := int64(0)
	plan := func(d digest.Digest, size int64) {
		e, ok := s.Entry(d)
		if !ok {
			missing += size
		}
		if !j.planned[d] && !e.Pinned { // what is pinned is not in room
			more += size
		}
	}
	for _, d := range c.manifests {
		size, _ := s.Has(d)
		plan(d, size)
	}
	for _, b := range c.blobs {
		plan(b.Digest, b.Size)
	}
	if room := s.Unpinned(); missing > 0 && j.bytes+more > room {
		beside := ""
		if j.bytes > 0 {
			beside = fmt.Sprintf(" beside the %s that are warmed with it", units.BytesSize(float64(j.bytes)))
		}
		return missing, fmt.Errorf("%w: it needs %s%s, and the budget leaves %s that are not pinned: raise budget, or warm less",
			ErrNoRoom, units.BytesSize(float64(more)), beside, units.BytesSize(float64(max(0, room))))
	}
	j.bytes += more
	for _, d := range c.manifests {
		j.planned[d] = true
	}
	for _, b := range c.blobs {
		j.planned[b.Digest] = true
	}
	return missing, nil
}
