package registry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// requester returns ctx for a request to the upstream about a repository: as it is, which means
// with the credential, or without it while nobody knows any more whether the repository is
// public. So what has become private never comes by our credential. A visibility that is overdue
// is renewed first, unless that has just failed.
//
// Before the visibility is known for the first time, the credential is used: nothing is kept or
// given away then.
func (m *mirror) requester(ctx context.Context, name string) context.Context {
	if !m.client.HasCredential() || m.policy.Load().private.match(name) {
		return ctx
	}
	r := &repo{m: m, name: name, full: m.name + "/" + name}
	v, err := m.store.Visibility(r.full)
	if err != nil || v.Public && !isOverdue(v) {
		return ctx
	}
	if v.Public && !m.overdue.failed(name) {
		if v, err = m.visibility(ctx, r); err == nil && v.Public && !isOverdue(v) {
			return ctx
		}
	}
	return upstream.Anonymous(ctx)
}

// isOverdue reports whether a visibility is too old to count for more than what is cached. One
// that lies ahead of the clock is of no known age.
func isOverdue(v storage.Visibility) bool {
	return age(v) > visibilityAge
}

// untold makes a refusal of a request without the credential one that says nothing: with it,
// the answer may be another.
func untold(ctx context.Context, err error) error {
	u, ok := errors.AsType[*upstream.Error](err)
	if !ok || u.Cause != upstream.Denied || !upstream.IsAnonymous(ctx) {
		return err
	}
	return &upstream.Error{Cause: upstream.NoVisibility, Host: u.Host, Status: u.Status, Err: err}
}

// unrenewed takes note that the visibility couldn't be asked for.
func (m *mirror) unrenewed(r *repo, last storage.Visibility, err error) {
	if last.At.IsZero() || last.Public && !isOverdue(last) {
		return
	}
	if last.Public {
		m.overdue.add(r.name, last.At)
	}
	m.log.Warn("the visibility of a repository can't be renewed: what is cached of it is served, and the rest is asked for without the credential",
		"repository", r.full, "public", last.Public, "age", time.Since(last.At).Round(time.Second), "error", err)
}

// knownPublic returns some repositories that anonymous clients could read, the ones that were
// checked last first.
func (m *mirror) knownPublic() []string {
	all, err := m.store.Repositories(m.name)
	if err != nil || !m.client.HasCredential() {
		return withoutPrefix(all, m.name)
	}
	checked := map[string]time.Time{}
	all = slices.DeleteFunc(all, func(full string) bool {
		v, err := m.store.Visibility(full)
		checked[full] = v.At
		return err != nil || !v.Public
	})
	slices.SortStableFunc(all, func(a, b string) int { return checked[b].Compare(checked[a]) })
	return withoutPrefix(all, m.name)
}

func withoutPrefix(full []string, registry string) []string {
	for i, name := range full {
		full[i] = strings.TrimPrefix(name, registry+"/")
	}
	return full
}

const (
	// maxOverdue bounds what is remembered of overdue visibilities. Only repositories that were
	// found public are in it, and beyond it one that is asked for again is added later.
	maxOverdue = 1000

	// overdueSeen is how long a repository that nobody asks for is still reported.
	overdueSeen = time.Hour
)

// overdue knows the public repositories whose visibility can't be renewed. The zero value is
// ready. All methods are safe for concurrent use.
type overdue struct {
	mu  sync.Mutex // guards all
	all map[string]overdueVisibility
}

type overdueVisibility struct {
	since  time.Time // when the visibility was found out
	failed time.Time // when it couldn't be renewed
}

func (o *overdue) add(name string, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if _, known := o.all[name]; !known && len(o.all) >= maxOverdue {
		o.sweep(now)
		if len(o.all) >= maxOverdue {
			return
		}
	}
	if o.all == nil {
		o.all = map[string]overdueVisibility{}
	}
	o.all[name] = overdueVisibility{since, now}
}

func (o *overdue) forget(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, name)
}

// failed reports whether the visibility has just been asked for in vain.
func (o *overdue) failed(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.all[name]
	return ok && time.Since(v.failed) < renewPause
}

// sweep drops what nobody has asked for lately. The caller holds mu.
func (o *overdue) sweep(now time.Time) {
	for name, v := range o.all {
		if now.Sub(v.failed) > overdueSeen {
			delete(o.all, name)
		}
	}
}

// stats returns how many there are, and the age of the oldest visibility.
func (o *overdue) stats(now time.Time) (n int, oldest time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sweep(now)
	for _, v := range o.all {
		oldest = max(oldest, now.Sub(v.since))
	}
	return len(o.all), oldest
}
