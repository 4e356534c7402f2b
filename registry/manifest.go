package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// maxManifest is the size of the largest manifest that clients take (containerd's limit).
const maxManifest = 4 << 20

// failedFor is how long a failure is remembered, so that a client that asks five times
// at once is answered four times from memory.
const failedFor = 10 * time.Second

// brokenFor is the same for a body that broke for good after clients had its headers.
// dockerd's older store asks for the rest of it 5 s later, and, refused, for all of it
// after 10 s more; refused again it falls back to Hub, and otherwise only after 75 s.
const brokenFor = 20 * time.Second

// found is a manifest, or, for a HEAD, what is known of one.
type found struct {
	digest    digest.Digest
	mediaType string
	size      int64
	body      []byte // nil: only headers
	children  []image.Child
	outcome   Outcome
	expires   time.Time // until when a tag may be answered with it unasked; zero with a digest: for ever
}

// manifestFor answers a request for a manifest by tag or digest. head: headers will do.
func (r *Registry) manifestFor(ctx context.Context, q request, head bool) (*found, error) {
	if q.digest == "" && r.unjudged(q.name) {
		// The first time, upstream is asked for verdict and tag together; nothing of the
		// tag is given away before the verdict.
		verdict := make(chan error, 1)
		go func() { verdict <- r.admit(ctx, q.name) }()
		f, err := r.byTag(ctx, q, head)
		if v := <-verdict; v != nil {
			return nil, v
		}
		return f, err
	}
	if err := r.admit(ctx, q.name); err != nil {
		return nil, err
	}
	if q.digest != "" {
		return r.byDigest(ctx, q, head)
	}
	return r.byTag(ctx, q, head)
}

// byDigest answers from the store, or fetches.
func (r *Registry) byDigest(ctx context.Context, q request, head bool) (*found, error) {
	m, err := r.store.Manifest(q.digest)
	if err == nil {
		return r.stored(ctx, q, m)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		r.log.Error("a cached manifest can't be read", "digest", q.digest, "error", err)
	}
	if head {
		return r.headManifest(ctx, q)
	}
	return r.fetchManifest(ctx, q, q.digest)
}

// stored answers with a manifest of the store, if the repository has it and its image can
// be had.
func (r *Registry) stored(ctx context.Context, q request, m *storage.Manifest) (*found, error) {
	ok, err := r.linked(q.name, m.Digest, m.Private)
	if err == nil && !ok {
		q.ref, q.digest = string(m.Digest), m.Digest
		err = r.confirm(ctx, q, int64(len(m.Body)))
	}
	if err != nil {
		return nil, err
	}
	if err := r.deliverable(m); err != nil {
		return nil, err
	}
	r.store.Touch(m.Digest)
	return &found{digest: m.Digest, mediaType: m.MediaType, size: int64(len(m.Body)), body: m.Body, children: m.Children, outcome: OutcomeHit}, nil
}

// deliverable fails for a single-platform manifest whose blobs aren't all here while they
// can't be fetched: some clients commit themselves to a mirror with the manifest, and this
// one would leave them with half an image.
func (r *Registry) deliverable(m *storage.Manifest) error {
	down := r.up.cool.down()
	if down == nil {
		return nil
	}
	for _, c := range m.Children {
		if _, ok := r.store.Has(c.Digest); !ok && c.Role != image.RoleManifest {
			return &failure{status: http.StatusServiceUnavailable, code: errcode.ErrorCodeUnavailable, err: down,
				detail: fmt.Sprintf("blob %s of this image is not cached, and %v", c.Digest, down)}
		}
	}
	return nil
}

// fetchManifest gets the manifest d from upstream under the repository of q, once for all
// who wait, and keeps it. The first to ask is a miss, the others share.
func (r *Registry) fetchManifest(ctx context.Context, q request, d digest.Digest) (*found, error) {
	first := false
	f, err := share(ctx, r, "manifest "+q.name+"@"+string(d), func(ctx context.Context) (*found, error) {
		// Another one may have brought it between our look at the store and this one's take-off.
		if m, err := r.store.Manifest(d); err == nil {
			return r.stored(ctx, q, m)
		}
		first = true
		ctx, cancel := context.WithTimeout(ctx, manifestDeadline)
		defer cancel()
		return r.getManifest(ctx, q, d)
	})
	if err != nil {
		return nil, err
	}
	if !first && f.outcome == OutcomeMiss {
		g := *f
		g.outcome = OutcomeShared
		return &g, nil
	}
	return f, nil
}

// getManifest is one GET, by digest, or by tag when d is "": where HEAD named no digest.
func (r *Registry) getManifest(ctx context.Context, q request, d digest.Digest) (*found, error) {
	ref := string(d)
	if d == "" {
		ref = q.ref
	}
	header := http.Header{"Accept": {acceptManifest}}
	resp, host, err := r.up.follow(ctx, http.MethodGet, r.up.url(q.name+"/manifests/"+ref), header, pulls)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	bad := func(err error) error {
		return &upstreamError{cause: broken, host: host.Host, status: resp.StatusCode, err: err}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, bad(nil)
	}
	body, err := io.ReadAll(io.LimitReader(counted{resp.Body, &r.up.fetched}, maxManifest+1))
	if err != nil {
		return nil, classify(host.Host, err)
	}
	if len(body) > maxManifest {
		return nil, bad(fmt.Errorf("a manifest of more than %d bytes", maxManifest))
	}
	if d == "" {
		// No digest vouches for it, and captive portals answer 200 to everything.
		if !isManifest(body) {
			return nil, bad(errors.New("not a manifest"))
		}
		d = digest.FromBytes(body)
	} else if d.Algorithm().FromBytes(body) != d {
		r.mismatches.Add(1)
		return nil, bad(fmt.Errorf("the manifest's bytes are not those of %s", d))
	}
	// The verdict may have been asked for at the same time: nothing is kept before it.
	if err := r.admit(ctx, q.name); err != nil {
		return nil, err
	}
	mediaType := mediaTypeOf(resp.Header)
	f := &found{digest: d, mediaType: mediaType, size: int64(len(body)), body: body, children: image.Children(body), outcome: OutcomeMiss}
	switch err := r.store.PutManifest(r.origin(q.name), d, mediaType, body); {
	case errors.Is(err, storage.ErrBusy): // by another repository's request
		r.store.Confirm(r.full(q.name), d, f.size)
	case err != nil:
		f.outcome = OutcomeBypass
	}
	return f, nil
}

// isManifest reports whether body is JSON with the one field that all manifests have.
func isManifest(body []byte) bool {
	var m struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	return json.Unmarshal(body, &m) == nil && m.SchemaVersion > 0
}

// mediaTypeOf is the media type as upstream named it, without parameters, which the
// spec forbids and containerd strips.
func mediaTypeOf(h http.Header) string {
	t := h.Get("Content-Type")
	if m, _, err := mime.ParseMediaType(t); err == nil {
		return m
	}
	return t
}

// headManifest asks upstream for a manifest's headers, by tag or digest, and keeps
// nothing but what a tag resolves to.
func (r *Registry) headManifest(ctx context.Context, q request) (*found, error) {
	return share(ctx, r, "head "+q.name+":"+q.ref, func(ctx context.Context) (*found, error) {
		ctx, cancel := context.WithTimeout(ctx, manifestDeadline)
		defer cancel()
		header := http.Header{"Accept": {acceptManifest}}
		resp, _, err := r.up.follow(ctx, http.MethodHead, r.up.url(q.name+"/manifests/"+q.ref), header, pulls)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if q.digest != "" {
			d = q.digest
		}
		if resp.StatusCode != http.StatusOK || !name.ValidDigest(string(d)) || resp.ContentLength < 0 {
			// Not what the spec asks for, but there are such registries: get it.
			return r.getManifest(ctx, q, q.digest)
		}
		return &found{digest: d, mediaType: mediaTypeOf(resp.Header), size: resp.ContentLength, outcome: OutcomeMiss}, nil
	})
}
