package tier

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier/bucket"
)

// source is an upstream registry with the tier in front of it.
type source struct {
	fetch.Source // the registry itself
	t            *Tier
	registry     string
	account      Account
}

// full is the name of a repository in the bucket.
func (s *source) full(repository string) string { return s.registry + "/" + repository }

// isDown reports whether an error says that the upstream is unwell, and not that it says no.
func isDown(err error) bool {
	var d interface{ Down() bool }
	return errors.As(err, &d) && d.Down()
}

// Resolve is answered by the bucket for digests. For tags it is answered by the upstream; while that is down,
// by what it has last told any node.
func (s *source) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	if d, err := digest.Parse(reference); err == nil {
		return s.resolveDigest(ctx, repository, k, d)
	}
	d, err := s.Source.Resolve(ctx, repository, k, reference)
	now := tag{Schema: schema, Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Checked: time.Now().UTC()}
	s.checked(repository, reference, now)
	if err == nil {
		s.t.noteTag(s.full(repository), reference, now)
		s.served(repository)
		return d, nil
	}
	if !isDown(err) || ctx.Err() != nil || !s.mayBeRead(ctx, repository) {
		return d, err
	}
	var r tag
	if readErr := s.t.read(ctx, tagName(s.full(repository), reference), &r); readErr != nil || r.Digest.Validate() != nil {
		return d, err
	}
	return fetch.Descriptor{Digest: r.Digest, MediaType: r.MediaType, Size: r.Size, Checked: r.Checked}, nil
}

func (s *source) resolveDigest(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) (fetch.Descriptor, error) {
	object := blobName(d)
	if k == fetch.Manifests {
		object = manifestName(d)
	}
	var o bucket.Object
	err := s.t.ask(ctx, func() (err error) { o, err = s.t.bucket.Stat(ctx, object); return err })
	if err == nil && (k == fetch.Blobs && s.named(repository, d, o.Private) || s.isLinked(ctx, repository, d)) {
		return fetch.Descriptor{Digest: d, MediaType: o.MediaType, Size: o.Size}, nil
	}
	return s.Source.Resolve(ctx, repository, k, string(d))
}

// isLinked reports whether the bucket says that the upstream has it in this repository.
func (s *source) isLinked(ctx context.Context, repository string, d digest.Digest) bool {
	ok, err := s.t.linked(ctx, s.full(repository), d)
	return ok && err == nil && s.mayBeRead(ctx, repository)
}

// named reports whether this node knows that the repository has a blob: by a manifest that names it,
// which counts for public blobs, or by the upstream.
func (s *source) named(repository string, d digest.Digest, private bool) bool {
	l, err := s.t.store.Link(s.full(repository), d)
	return err == nil && (l.Confirmed || !private)
}

// maxManifest is the size of the largest manifest that is served.
const maxManifest = 4 << 20

// Manifest is answered by the bucket for digests, if it has the right bytes.
func (s *source) Manifest(ctx context.Context, repository, reference string) (fetch.Manifest, error) {
	d, err := digest.Parse(reference)
	if err == nil {
		if m, ok := s.fromBucket(ctx, repository, d); ok {
			return m, nil
		}
	}
	m, err := s.Source.Manifest(ctx, repository, reference)
	if err != nil {
		return m, err
	}
	s.served(repository)
	if d == "" {
		d = digest.FromBytes(m.Body)
	}
	if d.Algorithm().FromBytes(m.Body) == d {
		s.t.uploads.add(upload{Kind: fetch.Manifests, Repository: s.full(repository), Digest: d, MediaType: m.MediaType}, 0)
	}
	return m, nil
}

// fromBucket returns a manifest that the bucket has, and has for this repository.
func (s *source) fromBucket(ctx context.Context, repository string, d digest.Digest) (fetch.Manifest, bool) {
	if !s.isLinked(ctx, repository, d) {
		return fetch.Manifest{}, false
	}
	w, err := s.t.readAll(ctx, manifestName(d), maxManifest)
	if err != nil {
		return fetch.Manifest{}, false
	}
	if d.Algorithm().FromBytes(w.content) != d {
		s.t.drop(manifestName(d), d)
		return fetch.Manifest{}, false
	}
	s.t.hits.Add(1)
	s.t.bytes.Add(w.Size)
	s.t.evictor.use(manifestName(d))
	return fetch.Manifest{MediaType: w.MediaType, Body: w.content, Host: "bucket"}, true
}

// Confirm is answered by the bucket if the upstream has said yes to any node.
func (s *source) Confirm(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	if s.isLinked(ctx, repository, d) {
		return nil
	}
	err := s.Source.Confirm(ctx, repository, k, d)
	if err == nil {
		s.served(repository)
		s.t.soon(func(ctx context.Context) { s.t.writeLink(ctx, s.full(repository), d) })
	}
	return err
}

// Blob returns a blob that comes from the bucket, from the node that fetches it, or from the upstream.
func (s *source) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return &blob{s: s, repository: repository, digest: d, upstream: s.Source.Blob(repository, d)}
}
