package registry

import (
	"context"
	"errors"
	"io/fs"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
)

// Completeness says how much of an image is cached.
type Completeness string

// The values of Completeness.
const (
	Complete Completeness = "complete" // a pull on the platforms needs nothing of the upstream but perhaps a look at the tag
	Partial  Completeness = "partial"
	Absent   Completeness = "absent" // not even what the reference names is known
)

// Cached is what is cached of one reference.
type Cached struct {
	Reference name.Reference
	State     Completeness
	Digest    digest.Digest // what it names as far as the cache knows; ""
	Bytes     int64         // of all that belongs to it on the platforms, as far as is known
	Missing   int64         // bytes of it that are missing, as far as is known
	Err       error         // ErrUnserved; that no client would get the image; that the store can't be read
}

// Cached says of each reference whether it is cached for some platforms, or, with none, for those
// that are cached of it. It asks nothing of the upstream, and is not a use.
func (r *Registry) Cached(ctx context.Context, references []name.Reference, platforms []v1.Platform) []Cached {
	results := make([]Cached, len(references))
	for i, ref := range references {
		results[i] = Cached{Reference: ref, State: Absent}
		m, repository, err := r.mirrorOf(ref)
		if err == nil {
			err = m.look(ctx, repository, platforms, &results[i])
		}
		if err != nil {
			results[i].Err = warmError(err)
		}
	}
	return results
}

// look fills in what is cached of a reference.
func (m *mirror) look(ctx context.Context, repository string, wanted []v1.Platform, c *Cached) error {
	r := &repo{m: m, name: repository, full: m.name + "/" + repository, policy: m.policy.Load()}
	if err := r.refusal(); err != nil {
		return err
	}
	top := c.Reference.Digest
	if top == "" {
		t, err := m.store.Tag(r.full, c.Reference.Tag)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		top = t.Digest
	}
	if !r.has(top) {
		return nil
	}
	if len(wanted) == 0 {
		wanted = m.cachedPlatforms(ctx, top)
	}
	if len(wanted) == 0 {
		wanted = []v1.Platform{platforms.DefaultSpec()}
	}
	all := &closure{platforms: wanted, load: r.loadCached}
	size, _ := m.store.Has(top)
	err := all.add(ctx, image.Child{Digest: top, Size: size, Role: image.RoleManifest}, 0)
	if err != nil && !errors.Is(err, errPlatform) {
		return err
	}
	c.Digest, c.Bytes, c.State = top, all.bytes, Complete
	for _, b := range all.missing {
		c.Bytes += b.Size
		c.Missing += b.Size
	}
	if len(all.missing) > 0 || err != nil {
		c.State = Partial
	}
	for _, b := range all.blobs {
		if _, ok := m.store.Has(b.Digest); !ok && !all.optional[b.Digest] {
			c.Missing += b.Size
			c.State = Partial
		}
	}
	return err
}

// refusal says why no client would get anything of the repository, as far as that is known without
// a question to the upstream; nil if it would.
func (r *repo) refusal() error {
	if !r.policy.allowed(r.name) {
		return notAllowed
	}
	if !r.m.judges() || r.policy.private.match(r.name) {
		return nil
	}
	if v, err := r.m.store.Visibility(r.full); err == nil && !v.Public {
		return privateRepository
	}
	return nil
}

// loadCached returns a cached manifest that the repository has, with its body.
// Errors: fs.ErrNotExist; that the store can't be read.
func (r *repo) loadCached(ctx context.Context, d digest.Digest) (*found, error) {
	if !r.has(d) {
		return nil, fs.ErrNotExist
	}
	s, err := r.m.store.Manifest(d)
	if err != nil {
		return nil, err
	}
	f := &found{digest: d, mediaType: s.MediaType, size: s.Size, body: s.Body, children: s.Children}
	if f.body == nil {
		f.body, err = r.m.readLarge(ctx, d)
	}
	return f, err
}
