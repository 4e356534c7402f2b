package main

import (
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// span is a range of bytes; to is exclusive.
type span struct{ from, to int64 }

// part reads a range of a blob as clients do that know ranges: they take a 200 for the whole blob,
// and read on until they have what they want.
func (c *client) part(ctx context.Context, repository string, d ocispec.Descriptor, field string, s span) error {
	resp, err := c.getRange(ctx, repository, d, field)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n := s.to - s.from
	if resp.StatusCode == http.StatusOK {
		n = s.to
	}
	_, err = io.CopyN(struct{ io.Writer }{io.Discard}, resp.Body, n)
	return err
}

func (c *client) getRange(ctx context.Context, repository string, d ocispec.Descriptor, field string) (*http.Response, error) {
	return c.ask(ctx, http.MethodGet, repository, "/blobs/"+d.Digest.String(), field)
}

// know gets the manifests of an image, as clients do before they ask for a layer.
func (c *client) know(ctx context.Context, b *bench) (repository string, layer ocispec.Descriptor, err error) {
	img := b.upstream.many
	for _, d := range []ocispec.Descriptor{img.Descriptor, img.Manifests[0].Descriptor} {
		if err := c.read(ctx, img.Repository, "/manifests/", d); err != nil {
			return "", layer, err
		}
	}
	return img.Repository, img.Manifests[0].Layers[0], nil
}

// ofLayer measures what read does with a layer that no cache has. Its values are the seconds that
// this takes, and what the upstream has sent by then, as a share of the layer.
func (b *bench) ofLayer(read func(ctx context.Context, c *client, repository string, layer ocispec.Descriptor) error) func(context.Context, *target) (values, error) {
	return func(ctx context.Context, t *target) (values, error) {
		c := newClient(t)
		defer c.close()
		repository, layer, err := c.know(ctx, b)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		if err := read(ctx, c, repository, layer); err != nil {
			return nil, err
		}
		took := time.Since(start)
		sent := int64(0)
		for _, e := range b.upstream.hub.Ledger() {
			if e.Face == hubtest.CDN && e.Reference == layer.Digest.String() {
				sent += e.BodyBytes
			}
		}
		return values{"s": took.Seconds(), "bytes/blob": float64(sent) / float64(layer.Size)}, nil
	}
}

// tailFirst reads the last MiB of a layer.
func tailFirst(ctx context.Context, c *client, repository string, layer ocispec.Descriptor) error {
	return c.part(ctx, repository, layer, "bytes=-1048576", span{layer.Size - 1<<20, layer.Size})
}

// lazyMount reads a layer as stargz-snapshotter does: its footer, its index, and then small pieces
// of it, one after the other.
func lazyMount(ctx context.Context, c *client, repository string, layer ocispec.Descriptor) error {
	spans := []span{{layer.Size - 51, layer.Size}, {layer.Size - 300<<10, layer.Size - 51}}
	for i := range int64(8) {
		at := (i*5 + 3) % 8 * (layer.Size / 9)
		spans = append(spans, span{at, at + 64<<10})
	}
	for _, s := range spans {
		if err := c.part(ctx, repository, layer, fmt.Sprintf("bytes=%d-%d", s.from, s.to-1), s); err != nil {
			return err
		}
	}
	return nil
}

// parallelRanges reads a layer as containerd 2.1 and later do: by eight open-ended ranges at once,
// each of which is closed early.
func parallelRanges(ctx context.Context, c *client, repository string, layer ocispec.Descriptor) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range int64(8) {
		s := span{i * layer.Size / 8, (i + 1) * layer.Size / 8}
		g.Go(func() error { return c.part(ctx, repository, layer, fmt.Sprintf("bytes=%d-", s.from), s) })
	}
	return g.Wait()
}

// multiRange reads four pieces of a layer in one request, as podman does of a zstd:chunked layer.
// It takes one part for each, or the whole blob.
func multiRange(ctx context.Context, c *client, repository string, layer ocispec.Descriptor) error {
	q := layer.Size / 4
	resp, err := c.getRange(ctx, repository, layer, fmt.Sprintf("bytes=%d-%d,%d-%d,%d-%d,%d-%d", 3*q, 3*q+65535, 0, 65535, 2*q, 2*q+65535, q, q+65535))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode == http.StatusOK || err != nil || kind != "multipart/byteranges" {
		return c.drain(resp.Body, layer)
	}
	n := 0
	for parts := multipart.NewReader(resp.Body, params["boundary"]); ; n++ {
		p, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, p); err != nil {
			return err
		}
	}
	if n != 4 {
		return fmt.Errorf("%d parts", n)
	}
	return nil
}
