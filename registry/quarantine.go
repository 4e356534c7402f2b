package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// denies reports whether no client gets what has that digest.
func (p *policy) denies(d digest.Digest) bool { return p.denied[d] }

// waited returns what a client of the tag gets, of which the upstream says that it names f. Without a
// quarantine that is f. Otherwise the tag of the store is never anything but what has waited.
// Errors: *failure, when nothing has waited.
func (q *manifestRequest) waited(f *found) (*found, error) {
	s := q.policy.tag(q.name, q.ref)
	if s.quarantine <= 0 {
		return f, nil
	}
	tag := q.full + ":" + q.ref
	served := quarantine.Sighting{}
	if t, err := q.m.store.Tag(q.full, q.ref); err == nil {
		served = quarantine.Sighting{Digest: t.Digest, MediaType: t.MediaType, Size: t.Size}
	}
	q.m.quarantine.Named(tag, quarantine.Sighting{Digest: f.digest, MediaType: f.mediaType, Size: f.size}, served)
	w, left, ok := q.m.quarantine.Pick(tag, s.quarantine, q.policy.denies)
	switch {
	case !ok:
		return nil, q.waits(f.digest, s.quarantine, left)
	case w.Digest == f.digest:
		return f, nil
	}
	return &found{digest: w.Digest, mediaType: w.MediaType, size: w.Size, checked: f.checked, outcome: OutcomeQuarantine, held: true}, nil
}

// stillWaits returns why a client of a tag gets nothing, if the upstream was asked a moment ago and
// nothing had waited then. So clients that try again and again cost the upstream nothing.
func (q *manifestRequest) stillWaits(s tagSettings) error {
	if s.quarantine <= 0 {
		return nil
	}
	tag := q.full + ":" + q.ref
	if age := time.Since(q.m.quarantine.Refreshed(tag)); age < 0 || age >= max(s.ttl, listLife) {
		return nil
	}
	if _, left, ok := q.m.quarantine.Pick(tag, s.quarantine, q.policy.denies); !ok {
		return q.waits("", s.quarantine, left)
	}
	return nil
}

// waits says that nothing of a tag has waited. d is what it names, or "".
func (q *manifestRequest) waits(d digest.Digest, quarantine, left time.Duration) *failure {
	if d != "" && q.policy.denies(d) {
		return deniedDigest
	}
	return &failure{status: http.StatusForbidden, code: errcode.ErrorCodeDenied, policy: true,
		detail: fmt.Sprintf("quarantine: this cache must have known what a tag names for %v, and nothing of %s:%s has waited so long: %v left. By its digest it can be pulled",
			quarantine, q.full, q.ref, max(left, time.Second).Round(time.Second))}
}

// heldBack is the error of fetching what a tag in quarantine is answered with, when the upstream hasn't
// got that any more.
func (q *manifestRequest) heldBack(f *found, err error) error {
	if u, ok := errors.AsType[*upstream.Error](err); !ok || !f.held || u.Cause != upstream.NotFound {
		return err
	}
	return &failure{status: http.StatusForbidden, code: errcode.ErrorCodeDenied, policy: true,
		detail: fmt.Sprintf("quarantine: the newest image of %s:%s that has waited, %s, is neither cached nor at the registry any more, and what the tag names now has to wait", q.full, q.ref, f.digest)}
}

// Released is what Release lets through.
type Released struct {
	Reference name.Reference
	Digest    digest.Digest
}

// Release lets clients have what a tag names now, although it has not waited. It asks nothing of the
// upstream.
// Errors: ErrUnserved; quarantine.ErrUnknown.
func (r *Registry) Release(_ context.Context, ref name.Reference) (Released, error) {
	m, repository, err := r.mirrorOf(ref)
	if err != nil {
		return Released{}, err
	}
	full := m.name + "/" + repository
	s, err := m.quarantine.Release(full + ":" + ref.Tag)
	if err != nil {
		return Released{}, err
	}
	m.store.SetTag(full, ref.Tag, storage.Tag{Digest: s.Digest, MediaType: s.MediaType, Size: s.Size, Checked: s.Named})
	m.hot.drop(repository, ref.Tag)
	return Released{ref, s.Digest}, nil
}

// EachWaiting calls f for all tags that name what clients don't get yet, in order. repository is as in
// the store.
func (r *Registry) EachWaiting(f func(repository, tag string, w quarantine.Waiting)) {
	r.shared.quarantine.Each(func(reference string) {
		i := strings.LastIndexByte(reference, ':')
		if w := r.Waiting(reference[:max(i, 0)], reference[i+1:]); w != nil {
			f(reference[:i], reference[i+1:], *w)
		}
	})
}

// Waiting returns what a tag of a cached repository names and clients don't get yet, or nil. registry
// and tag are as in the store.
func (r *Registry) Waiting(repository, tag string) *quarantine.Waiting {
	registry, short, _ := strings.Cut(repository, "/")
	m := r.routes.Load().byName[registry]
	if m == nil {
		return nil
	}
	wait := m.policy.Load().tag(short, tag).quarantine
	if wait <= 0 {
		return nil
	}
	return m.quarantine.Waiting(repository+":"+tag, wait)
}
