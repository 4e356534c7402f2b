package registry

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/upstream"
)

// registrySource is the fetch.Source that is an upstream registry. It is here because
// fetch and upstream don't know each other. Errors are *upstream.Error.
type registrySource struct{ client *upstream.Client }

func (s registrySource) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	d, err := s.client.Resolve(ctx, repository, upstream.Kind(k), reference)
	return fetch.Descriptor(d), err
}

func (s registrySource) Manifest(ctx context.Context, repository, reference string) (fetch.Manifest, error) {
	m, err := s.client.Manifest(ctx, repository, reference)
	return fetch.Manifest(m), err
}

func (s registrySource) Confirm(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	return s.client.Confirm(ctx, repository, upstream.Kind(k), d)
}

func (s registrySource) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return registryBlob{s.client.Blob(repository, d)}
}

type registryBlob struct{ blob *upstream.Blob }

func (b registryBlob) Open(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	body, err := b.blob.Open(ctx, upstream.Part(p))
	if err != nil {
		return nil, err
	}
	from, to := body.Span()
	return &fetch.Body{ReadCloser: body, From: from, To: to, Size: body.Size(), Ranged: body.Ranged()}, nil
}
