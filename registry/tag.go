package registry

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// staleAfter is how long a cached tag waits for an upstream that is merely slow.
const staleAfter = 1500 * time.Millisecond

// byTag answers with what the tag names: unasked inside its TTL, else after one HEAD,
// which costs no quota. While upstream fails or is slow, what is cached is served stale.
func (q *manifestRequest) byTag(ctx context.Context) (*found, error) {
	s := q.policy.tag(q.name, q.ref)
	t, err := q.m.store.Tag(q.full, q.ref)
	var m *storage.Manifest
	if err == nil {
		if m, err = q.m.store.Manifest(t.Digest); err != nil {
			m = nil
		}
	}
	age := time.Since(t.Checked)
	fresh := age >= 0 && age < s.ttl
	if m != nil && fresh {
		return q.freshTag(ctx, m, t, s)
	}
	if q.m.missing.Has(q.name + ":" + q.ref) {
		return nil, &upstream.Error{Cause: upstream.NotFound, Host: q.m.client.Host(), Status: http.StatusNotFound, Err: errors.New("remembered")}
	}
	if m == nil {
		if t.Digest != "" && fresh && !q.head {
			return q.fetch(ctx, t.Digest)
		}
		return q.check(ctx)
	}
	return q.revalidate(ctx, m, age <= s.maxStale)
}

// freshTag answers with a cached manifest whose tag is inside its TTL.
func (q *manifestRequest) freshTag(ctx context.Context, m *storage.Manifest, t storage.Tag, s tagSettings) (*found, error) {
	age := time.Since(t.Checked)
	if s.refresh && age >= s.refreshAt() && !q.m.client.Scarce(q.policy.QuotaReserve) {
		refresh := *q
		refresh.head = false
		q.m.tasks.background(func(ctx context.Context) { refresh.check(ctx) })
	}
	f, err := q.stored(ctx, m)
	if err == nil {
		f.expires = t.Checked.Add(s.ttl)
		if s.refresh && age < s.refreshAt() {
			f.expires = t.Checked.Add(s.refreshAt())
		}
	}
	return f, err
}

// revalidate asks upstream about a tag whose manifest m is cached, and falls back to it.
func (q *manifestRequest) revalidate(ctx context.Context, m *storage.Manifest, mayBeStale bool) (*found, error) {
	f, err := q.checkPatiently(ctx, mayBeStale)
	if err == nil {
		return f, nil
	}
	u, failed := errors.AsType[*upstream.Error](err)
	switch {
	case ctx.Err() != nil: // no time is left to answer with anything else
		return nil, err
	case errors.Is(err, errSlow):
	case failed && u.Cause == upstream.NotFound && q.policy.KeepGone:
	case failed && u.Down() && mayBeStale:
	default:
		return nil, err
	}
	f, serr := q.stored(ctx, m)
	if serr != nil {
		return nil, serr
	}
	f.outcome = OutcomeStale
	q.m.log.Warn("serving a stale tag", "reference", q.full+":"+q.ref, "error", err)
	return f, nil
}

// errSlow says that a cached tag need not wait for upstream any longer.
var errSlow = errors.New("upstream is slow")

// checkPatiently is check. If the tag may be stale it waits no longer than staleAfter for
// it, and not at all while another check has just waited in vain; the check goes on.
// Errors: errSlow, those of check, ctx's cause.
func (q *manifestRequest) checkPatiently(ctx context.Context, mayBeStale bool) (*found, error) {
	type checked struct {
		f   *found
		err error
	}
	done := make(chan checked, 1)
	leave, ok := q.m.tasks.enter()
	if !ok {
		return nil, errStopping
	}
	go func() {
		defer leave()
		ctx, cancel := q.m.tasks.detached(ctx)
		defer cancel()
		f, err := q.check(ctx)
		q.m.slow.Store(false)
		done <- checked{f, err}
	}()
	var slow <-chan time.Time // never, if the tag must not be stale
	if mayBeStale {
		patience := staleAfter
		if q.m.slow.Load() {
			patience = 0
		}
		wait := time.NewTimer(patience)
		defer wait.Stop()
		slow = wait.C
	}
	select {
	case c := <-done:
		return c.f, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-slow:
		q.m.slow.Store(true)
		return nil, errSlow
	}
}

// check asks upstream what the tag names now, and gets that if it isn't here and more
// than its headers is wanted.
func (q *manifestRequest) check(ctx context.Context) (*found, error) {
	f, err := q.resolve(ctx)
	if err != nil {
		if u, ok := errors.AsType[*upstream.Error](err); ok && u.Cause == upstream.NotFound {
			q.forgetTag(q.ref)
		}
		return nil, err
	}
	if err := q.admission.wait(ctx); err != nil { // as in get
		return nil, err
	}
	m, err := q.m.store.Manifest(f.digest)
	switch {
	case err == nil:
		q.setTag(q.ref, f)
		// Upstream has just named it under this repository.
		q.m.store.Confirm(q.full, f.digest, f.size)
		if f, err = q.stored(ctx, m); err != nil {
			return nil, err
		}
		f.outcome = OutcomeRevalidated
		return q.justChecked(f), nil
	case q.head || f.body != nil:
		q.setTag(q.ref, f)
		return q.justChecked(f), nil
	}
	if f, err = q.fetch(ctx, f.digest); err != nil {
		return nil, err
	}
	q.setTag(q.ref, f)
	return q.justChecked(f), nil
}

// justChecked returns a copy of f with the time until when the tag need not be asked for
// again. It is a copy because other requests may share f.
func (q *manifestRequest) justChecked(f *found) *found {
	g := *f
	g.expires = time.Now().Add(q.policy.tag(q.name, q.ref).ttl)
	return &g
}
