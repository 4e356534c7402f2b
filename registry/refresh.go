package registry

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// refreshUsed is for how long after its last use a tag is checked in the background, and
	// maxRefreshed how many tags are, those that were used last.
	refreshUsed  = 24 * time.Hour
	maxRefreshed = 256

	// refreshPause is the shortest time between two checks of a tag in the background, and refreshing
	// how many tags are checked at one time.
	refreshPause = 20 * time.Second
	refreshing   = 4
)

// refresher checks tags whose rule says refresh before their TTL ends, so that no client has to wait
// for it. It checks tags that clients have asked for lately, and none below the quota reserve. It
// knows nothing of the tags that were used before the start. All methods are safe for concurrent
// use.
type refresher struct {
	m     *mirror
	slots *semaphore.Weighted

	mu      sync.Mutex // guards what follows, and what is in tags
	tags    map[hotKey]*refreshedTag
	stopped bool
}

type refreshedTag struct {
	hotKey
	used  time.Time
	timer *time.Timer
}

func newRefresher(m *mirror) *refresher {
	return &refresher{m: m, slots: semaphore.NewWeighted(refreshing), tags: map[hotKey]*refreshedTag{}}
}

// used says that a client has got what q asked for.
func (r *refresher) used(q *manifestRequest) {
	if q.digest != "" {
		return
	}
	s := q.policy.tag(q.name, q.ref)
	if !s.refresh || s.ttl == 0 || r.known(q) {
		return
	}
	kept, err := q.m.store.Tag(q.full, q.ref)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	if len(r.tags) >= maxRefreshed {
		r.dropOldest()
	}
	t := &refreshedTag{hotKey: hotKey{q.name, q.ref}, used: time.Now()}
	t.timer = time.AfterFunc(max(s.refreshAt()-time.Since(kept.Checked), 0), func() {
		r.m.tasks.background(func(ctx context.Context) { r.refresh(ctx, t) })
	})
	if other := r.tags[t.hotKey]; other != nil { // another request was faster
		other.timer.Stop()
	}
	r.tags[t.hotKey] = t
}

// known notes a use of a tag that is being refreshed, and reports whether it is.
func (r *refresher) known(q *manifestRequest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tags[hotKey{q.name, q.ref}]
	if t != nil {
		t.used = time.Now()
	}
	return t != nil
}

// stop ends the checks. One that is under way ends by itself.
func (r *refresher) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	for _, t := range r.tags {
		t.timer.Stop()
	}
	clear(r.tags)
}

// dropOldest forgets the tag that was used the longest ago. mu is held.
func (r *refresher) dropOldest() {
	var oldest *refreshedTag
	for _, t := range r.tags {
		if oldest == nil || t.used.Before(oldest.used) {
			oldest = t
		}
	}
	oldest.timer.Stop()
	delete(r.tags, oldest.hotKey)
}

// refresh checks a tag if it is due, and sets when to look at it again; or forgets it, if it need
// not be checked any more.
func (r *refresher) refresh(ctx context.Context, t *refreshedTag) {
	if r.slots.Acquire(ctx, 1) != nil {
		return
	}
	defer r.slots.Release(1)
	repo := r.m.internal(ctx, t.name)
	s := repo.policy.tag(t.name, t.ref)
	kept, err := r.m.store.Tag(repo.full, t.ref)
	if err != nil || !s.refresh || s.ttl == 0 || !r.inUse(t) {
		r.forget(t)
		return
	}
	next := s.refreshAt() - time.Since(kept.Checked)
	if next <= 0 {
		next = s.refreshAt()
		if !r.m.client.Scarce(repo.policy.QuotaReserve) {
			q := &manifestRequest{repo: repo, ref: t.ref, sparing: true}
			_, _ = q.check(ctx) // what it has found is kept; a failure is the next client's
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tags[t.hotKey] == t {
		t.timer.Reset(max(next, refreshPause))
	}
}

// inUse reports whether a client has asked for the tag lately.
func (r *refresher) inUse(t *refreshedTag) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(t.used) < refreshUsed
}

func (r *refresher) forget(t *refreshedTag) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tags[t.hotKey] == t {
		delete(r.tags, t.hotKey)
	}
}
