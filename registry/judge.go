package registry

import (
	"context"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// judge is a source that knows which repositories other nodes have found public or private.
type judge interface {
	// Visibility returns what any of them was last told, and when. ok is false when nobody knows, or it
	// can't be found out now.
	Visibility(ctx context.Context, repository string) (public bool, checked time.Time, ok bool)

	// SetVisibility tells them what this node was told, in the background.
	SetVisibility(repository string, public bool, checked time.Time)
}

const (
	// lookAge is how often a node looks whether others have found a repository private, and lookPause
	// the same when there was no answer.
	lookAge   = 10 * time.Minute
	lookPause = 30 * time.Second
)

// askOthers asks the other nodes whether they have found the repository private, and tells them what this one
// knows better.
func (m *mirror) askOthers(ctx context.Context, r *repo) {
	share(ctx, m.tasks, &m.calls, "look "+r.name, func(ctx context.Context) (struct{}, error) {
		public, checked, ok := m.judge.Visibility(ctx, r.name)
		if ctx.Err() != nil {
			return struct{}{}, context.Cause(ctx)
		}
		again := lookPause
		if ok {
			again = lookAge
		}
		m.looked.Add(r.name, again, nil)
		old, err := m.store.Visibility(r.full)
		known := err == nil
		switch {
		case ok && !public && (!known || checked.After(old.At)):
			m.hide(r, checked)
		case known && !(old.Public && isOverdue(old)) && (!ok || old.At.After(checked)):
			m.judge.SetVisibility(r.name, old.Public, old.At)
		}
		return struct{}{}, nil
	})
}

// hide keeps that another node has found the repository private.
func (m *mirror) hide(r *repo, checked time.Time) {
	m.overdue.forget(r.name)
	m.store.SetVisibility(r.full, storage.Visibility{At: checked})
	m.hot.clear() // these answers were given under the old visibility
}

// told returns what another node has found out of a repository since this one did, when the upstream
// can't tell. Its yes is kept as one that is overdue: so what is in the bucket is served, and the
// credential isn't used before the upstream itself has said that the repository is public.
func (m *mirror) told(ctx context.Context, r *repo) (v storage.Visibility, ok bool) {
	if m.judge == nil {
		return v, false
	}
	public, checked, ok := m.judge.Visibility(context.WithoutCancel(ctx), r.name) // which has a deadline of its own
	old, err := m.store.Visibility(r.full)
	newer := ok && (err != nil || checked.After(old.At))
	if !newer || public && err == nil && old.Public {
		return v, false
	}
	if !public {
		m.hide(r, checked)
		return storage.Visibility{At: checked}, true
	}
	if overdue := time.Now().Add(-visibilityAge - time.Second); checked.After(overdue) {
		checked = overdue
	}
	v = storage.Visibility{Public: true, At: checked}
	m.store.SetVisibility(r.full, v)
	m.hot.clear()
	return v, true
}
