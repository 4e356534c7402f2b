package registry

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// byTag answers with what the tag names: unasked inside its TTL, else after one HEAD,
// which costs no quota. Upstream failing or slow, what is cached is served stale.
func (r *Registry) byTag(ctx context.Context, q request, head bool) (*found, error) {
	s := r.policy.Load().tag(q.name, q.ref)
	t, err := r.store.Tag(r.full(q.name), q.ref)
	var m *storage.Manifest
	if err == nil {
		if m, err = r.store.Manifest(t.Digest); err != nil {
			m = nil
		}
	}
	age := time.Since(t.Checked)
	if m != nil && age >= 0 && age < s.ttl {
		if s.refresh && age >= s.refreshAt() && !r.up.scarce(r.policy.Load().QuotaReserve) {
			r.background(func(ctx context.Context) { r.check(ctx, q, false) })
		}
		f, err := r.stored(ctx, q, m)
		if err == nil {
			f.expires = t.Checked.Add(s.ttl)
			if s.refresh && age < s.refreshAt() {
				f.expires = t.Checked.Add(s.refreshAt())
			}
		}
		return f, err
	}
	if r.gone.has(q.name + ":" + q.ref) {
		return nil, &upstreamError{cause: gone, host: r.up.base.Host, status: http.StatusNotFound, err: errors.New("remembered")}
	}
	if m == nil {
		if t.Digest != "" && age >= 0 && age < s.ttl && !head {
			q.digest = t.Digest
			return r.fetchManifest(ctx, q, t.Digest)
		}
		return r.check(ctx, q, head)
	}
	return r.revalidate(ctx, q, head, m, age <= s.maxStale)
}

// revalidate asks upstream about a tag whose manifest m is cached, and falls back to it.
func (r *Registry) revalidate(ctx context.Context, q request, head bool, m *storage.Manifest, mayBeStale bool) (*found, error) {
	stale := func(err error) (*found, error) {
		if !mayBeStale {
			return nil, err
		}
		f, serr := r.stored(ctx, q, m)
		if serr != nil {
			return nil, serr
		}
		f.outcome = OutcomeStale
		r.log.Warn("serving a stale tag", "reference", r.full(q.name)+":"+q.ref, "error", err)
		return f, nil
	}
	type checked struct {
		f   *found
		err error
	}
	done := make(chan checked, 1)
	leave, ok := r.enter()
	if !ok {
		return nil, errStopping
	}
	go func() {
		defer leave()
		ctx, cancel := r.detached(ctx)
		defer cancel()
		f, err := r.check(ctx, q, head)
		r.slow.Store(false)
		done <- checked{f, err}
	}()
	// Who has waited in vain a moment ago need not wait again: the check goes on.
	patience := staleAfter
	if r.slow.Load() && mayBeStale {
		patience = 0
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	var c checked
	for waiting := true; waiting; {
		select {
		case c = <-done:
			waiting = false
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-wait.C:
			if mayBeStale {
				r.slow.Store(true)
				return stale(errors.New("upstream is slow"))
			}
		}
	}
	u, failed := errors.AsType[*upstreamError](c.err)
	switch {
	case c.err == nil:
		return c.f, nil
	case failed && u.cause == gone && r.policy.Load().KeepGone:
		mayBeStale = true
		return stale(c.err)
	case failed && u.down():
		return stale(c.err)
	}
	return nil, c.err
}

// check asks upstream what the tag names now, and gets that if it isn't here and more
// than its headers is wanted.
func (r *Registry) check(ctx context.Context, q request, head bool) (*found, error) {
	f, err := r.headManifest(ctx, q)
	if err != nil {
		if u, ok := errors.AsType[*upstreamError](err); ok && u.cause == gone {
			r.forget(q)
		}
		return nil, err
	}
	if err := r.admit(ctx, q.name); err != nil { // as in getManifest
		return nil, err
	}
	q.digest = f.digest
	m, err := r.store.Manifest(f.digest)
	switch {
	case err == nil:
		r.setTag(q, f)
		// Upstream has just named it under this repository.
		r.store.Confirm(r.full(q.name), f.digest, f.size)
		if f, err = r.stored(ctx, q, m); err == nil {
			f.outcome = OutcomeRevalidated
		}
		return r.fresh(q, f), err
	case head || f.body != nil:
		r.setTag(q, f)
		return r.fresh(q, f), nil
	}
	if f, err = r.fetchManifest(ctx, q, f.digest); err != nil {
		return nil, err
	}
	r.setTag(q, f)
	return r.fresh(q, f), nil
}

// fresh returns a copy of f with the time until when the tag need not be asked for again.
func (r *Registry) fresh(q request, f *found) *found {
	if f == nil {
		return nil
	}
	g := *f
	g.expires = time.Now().Add(r.policy.Load().tag(q.name, q.ref).ttl)
	return &g
}

func (r *Registry) setTag(q request, f *found) {
	r.gone.forget(q.name + ":" + q.ref)
	r.store.SetTag(r.full(q.name), q.ref, storage.Tag{Digest: f.digest, MediaType: f.mediaType, Size: f.size, Checked: time.Now()})
}

// forget drops a tag that upstream has no longer, or, with KeepGone, only remembers that
// for a moment.
func (r *Registry) forget(q request) {
	p := r.policy.Load()
	r.hot.drop(q.name, q.ref)
	if p.KeepGone {
		return
	}
	r.store.DeleteTag(r.full(q.name), q.ref)
	r.gone.add(q.name+":"+q.ref, p.NegativeTTL)
}
