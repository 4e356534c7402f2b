package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/storage"
)

// full is a repository's name in the store.
func (r *Registry) full(name string) string { return r.up.name + "/" + name }

// admit decides whether the repository may be served at all: the operator lets it, and it
// is public, or named in upstream.private. Without a credential everything that upstream
// serves is public.
//
// With one, the first request for a repository waits for the verdict. Later ones never
// do: an old verdict is renewed in the background, and the last one stays in force while
// none can be had.
func (r *Registry) admit(ctx context.Context, name string) error {
	p := r.policy.Load()
	if !p.allowed(name) {
		return &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: "not allowed by this cache's settings"}
	}
	if r.up.cred == nil || p.private.match(name) {
		return nil
	}
	v, err := r.store.Visibility(r.full(name))
	if err != nil {
		if v, err = r.judge(ctx, name); err != nil {
			return err
		}
	} else if age := time.Since(v.At); (age < 0 || age > verdictAge || !v.Public && age > refusalAge) && !r.renewed.has(name) {
		r.renewed.add(name, refusalAge) // whatever comes of it
		r.background(func(ctx context.Context) { r.judge(ctx, name) })
	}
	if !v.Public {
		return privateRepository
	}
	return nil
}

// unjudged reports whether admit will have to wait for a verdict.
func (r *Registry) unjudged(name string) bool {
	p := r.policy.Load()
	if r.up.cred == nil || !p.allowed(name) || p.private.match(name) {
		return false
	}
	_, err := r.store.Visibility(r.full(name))
	return err != nil
}

var privateRepository = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown,
	detail: "unknown, or private and not named in upstream.private"}

// judge asks upstream whether the repository is public, once for all who wait.
func (r *Registry) judge(ctx context.Context, name string) (storage.Visibility, error) {
	return share(ctx, r, "verdict "+name, func(ctx context.Context) (storage.Visibility, error) {
		ctx, cancel := context.WithTimeout(ctx, manifestDeadline)
		defer cancel()
		access, err := r.up.auth.Access(ctx, name)
		if err != nil {
			e := classify(r.up.base.Host, err)
			return storage.Visibility{}, &upstreamError{cause: noVerdict, host: e.host, status: e.status, retryAfter: e.retryAfter, err: err}
		}
		v := storage.Visibility{Public: access == auth.Public, At: time.Now()}
		old, err := r.store.Visibility(r.full(name))
		r.store.SetVisibility(r.full(name), v)
		if err == nil && old.Public != v.Public {
			r.hot.clear()
		}
		return v, nil
	})
}

// origin says under which repository something comes in. What is in upstream.private
// counts as private, whatever it is, and so does what comes in before its verdict.
func (r *Registry) origin(name string) storage.Origin {
	o := storage.Origin{Repository: r.full(name)}
	if r.up.cred != nil {
		v, err := r.store.Visibility(o.Repository)
		o.Private = err != nil || !v.Public || r.policy.Load().private.match(name)
	}
	return o
}

// linked reports whether the repository has the blob, which came through a private
// repository or not. That one of its manifests names a private blob proves nothing: who
// knows a digest can write it into a manifest.
func (r *Registry) linked(name string, d digest.Digest, private bool) (bool, error) {
	l, err := r.store.Link(r.full(name), d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && (l.Confirmed || !private), err
}

// confirm asks upstream whether the repository has the blob or manifest d, and links it.
// A redirect of the registry's is a yes and isn't followed.
func (r *Registry) confirm(ctx context.Context, q request, size int64) error {
	_, err := share(ctx, r, "confirm "+q.name+"@"+q.ref, func(ctx context.Context) (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, manifestDeadline)
		defer cancel()
		path, m := "/blobs/", plain
		header := http.Header{}
		if q.kind == manifest {
			path, m = "/manifests/", pulls
			header.Set("Accept", acceptManifest)
		}
		resp, err := r.up.get(ctx, http.MethodHead, r.up.url(q.name+path+q.ref), header, m)
		if err != nil {
			return struct{}{}, err
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 && resp.StatusCode != http.StatusTemporaryRedirect {
			return struct{}{}, &upstreamError{cause: broken, host: r.up.base.Host, status: resp.StatusCode}
		}
		r.store.Confirm(r.full(q.name), q.digest, size)
		return struct{}{}, nil
	})
	return err
}
