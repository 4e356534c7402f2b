package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
)

// repo is the repository of one request: resolved once, so that all steps of the request see
// the same mirror, the same policy and the same admission. Immutable.
type repo struct {
	m         *mirror
	name      string // as the upstream has it: "library/redis"
	full      string // as the store has it: "docker.io/library/redis"
	policy    *policy
	admission *admission
	client    *asker // who asks
}

// repository resolves the repository of a request.
func (m *mirror) repository(req *http.Request, a *asker, name string) *repo {
	r := &repo{m: m, name: name, full: m.name + "/" + name, policy: m.policy.Load(), client: a}
	r.admission = m.admit(withClient(req.Context(), r.client), r)
	return r
}

// origin says under which repository something comes in. What is in upstream.private counts
// as private, whatever it is, and so does what comes in before its visibility is known.
func (r *repo) origin() storage.Origin {
	o := storage.Origin{Repository: r.full}
	if r.m.client.HasCredential() {
		v, err := r.m.store.Visibility(r.full)
		o.Private = err != nil || !v.Public || r.policy.private.match(r.name)
	}
	return o
}

// blob returns a blob to fetch under this repository; size is a hint, -1 when there is none.
func (r *repo) blob(d digest.Digest, size int64) fetch.Blob {
	return fetch.Blob{Digest: d, Size: size, Origin: storage.Origin{Repository: r.full}, Source: r.m.source.Blob(r.name, d), Client: r.client.name()}
}

// linked reports whether the repository has the blob, which came through a private
// repository or not. That one of its manifests names a private blob proves nothing: anybody
// who knows a digest can write it into a manifest.
func (r *repo) linked(d digest.Digest, private bool) (bool, error) {
	l, err := r.m.store.Link(r.full, d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && (l.Confirmed || !private), err
}

// claimedSize returns the size of the blob as a manifest of the repository claims it, or -1. It
// is a hint, and nothing to be told to a client. There are tools that write 0 for any blob.
func (r *repo) claimedSize(d digest.Digest) int64 {
	l, err := r.m.store.Link(r.full, d)
	if err != nil || l.Size == 0 {
		return -1
	}
	return l.Size
}

// confirm asks upstream whether the repository has the blob or manifest d, and links it. size is
// what its verified bytes have, or -1.
func (r *repo) confirm(ctx context.Context, k fetch.Kind, d digest.Digest, size int64) error {
	_, err := share(withClient(ctx, r.client), r.m.tasks, &r.m.calls, "confirm "+r.name+"@"+string(d), func(ctx context.Context) (struct{}, error) {
		err := r.m.source.Confirm(ctx, r.name, k, d)
		if err == nil {
			r.m.store.Confirm(r.full, d, size)
		}
		return struct{}{}, err
	})
	return err
}

// setTag keeps what a tag names, as upstream has just said.
func (r *repo) setTag(tag string, f *found) {
	r.m.store.SetTag(r.full, tag, storage.Tag{Digest: f.digest, MediaType: f.mediaType, Size: f.size, Checked: f.checkedAt()})
}

// forgetTag drops a tag that upstream has no longer, or, with KeepGone, only the answer in
// memory.
func (r *repo) forgetTag(tag string) {
	if r.policy.KeepGone {
		r.m.hot.drop(r.name, tag)
		return
	}
	r.dropTag(tag)
}

// dropTag drops a tag.
func (r *repo) dropTag(tag string) {
	r.m.hot.drop(r.name, tag)
	r.m.store.DeleteTag(r.full, tag)
}
