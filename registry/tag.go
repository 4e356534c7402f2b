package registry

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// checkPatience is how long a request waits for the check of a cached tag before it gets the
// stale one: many times what a working upstream takes, and little of the 5 s after which a
// client should have its answer.
const checkPatience = 1500 * time.Millisecond

// ErrReserve: it would cost pulls, and less than the quota reserve is left.
var ErrReserve = errors.New("less than quota.reserve is left of the pulls")

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
	fresh := age >= 0 && age < s.ttl && !q.policy.denies(t.Digest) // less than 0: the clock was set back
	if m != nil && fresh {
		return q.freshTag(ctx, m, t, s)
	}
	if m == nil {
		switch {
		case t.Digest != "" && fresh && q.head: // of what a GET would fetch
			byDigest := *q
			byDigest.ref, byDigest.digest = string(t.Digest), t.Digest
			return byDigest.resolve(ctx)
		case t.Digest != "" && fresh:
			return q.fetch(ctx, t.Digest)
		}
		if err := q.stillWaits(s); err != nil {
			return nil, err
		}
		return q.check(ctx)
	}
	return q.revalidate(ctx, m, s.maxStale > 0 && age <= s.maxStale)
}

// freshTag answers with a cached manifest whose tag is inside its TTL.
func (q *manifestRequest) freshTag(ctx context.Context, m *storage.Manifest, t storage.Tag, s tagSettings) (*found, error) {
	age := time.Since(t.Checked)
	f, err := q.stored(ctx, m)
	if err == nil {
		f.expires = t.Checked.Add(s.ttl)
		if age < s.askAt() {
			f.expires = t.Checked.Add(s.askAt())
		}
		if s.quarantine > 0 && q.m.quarantine.Moved(q.full+":"+q.ref, f.digest) {
			f.outcome, f.expires = OutcomeQuarantine, time.Time{} // an answer from memory would be a hit
		}
	}
	return f, err
}

// revalidate asks upstream about a tag whose manifest m is cached, and falls back to m. To ask
// costs no pull. What has changed does, so below the quota reserve m has to do while it may.
func (q *manifestRequest) revalidate(ctx context.Context, m *storage.Manifest, mayBeStale bool) (*found, error) {
	asking := *q
	asking.sparing = q.sparing || mayBeStale
	f, err := asking.checkBriefly(ctx, mayBeStale)
	if err == nil {
		return f, nil
	}
	u, isUpstream := errors.AsType[*upstream.Error](err)
	switch {
	case ctx.Err() != nil: // no time is left to answer with anything else
		return nil, err
	case errors.Is(err, errSlow):
	case isUpstream && u.Cause == upstream.NotFound && q.policy.KeepGone: // however old it is
	case isUpstream && u.Down() && mayBeStale:
	case errors.Is(err, ErrReserve) && mayBeStale:
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

// tagChecks are the checks of cached tags and lists that are under way. All methods are safe for
// concurrent use.
type tagChecks struct {
	mu      sync.Mutex           // guards what follows
	running map[string]*tagCheck // by "repository:tag"
}

type tagCheck struct {
	requests int  // that are checking the tag; they share what they ask upstream
	slow     bool // one of them has waited in vain
}

// begin counts a request that checks the tag.
func (t *tagChecks) begin(tag string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[tag] == nil {
		t.running[tag] = &tagCheck{}
	}
	t.running[tag].requests++
}

// end takes back begin. The upstream has answered for the tag, or has failed.
func (t *tagChecks) end(tag string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.running[tag]
	c.slow = false
	if c.requests--; c.requests == 0 {
		delete(t.running, tag)
	}
}

// isSlow reports whether a request has waited in vain for the check that is under way. It is
// kept for each tag, because it says nothing of others: a packet may have been lost.
func (t *tagChecks) isSlow(tag string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[tag] != nil && t.running[tag].slow
}

// waitedInVain marks the check as slow, unless it has just ended.
func (t *tagChecks) waitedInVain(tag string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.running[tag]; c != nil {
		c.slow = true
	}
}

// checkBriefly is check, briefly.
func (q *manifestRequest) checkBriefly(ctx context.Context, mayBeStale bool) (*found, error) {
	return briefly(ctx, q.m, q.name+":"+q.ref, mayBeStale, q.check)
}

// briefly returns what check does, which asks the upstream about key. If what is cached may be
// stale it waits at most checkPatience, and not at all from when one request has waited in vain
// until a check of this key ends. The check itself goes on, unless the client leaves before.
// Errors: errSlow, errStopping, those of check, ctx's cause.
func briefly[T any](ctx context.Context, m *mirror, key string, mayBeStale bool, check func(context.Context) (T, error)) (none T, err error) {
	type checked struct {
		found T
		err   error
	}
	done := make(chan checked, 1)
	leave, ok := m.tasks.enter()
	if !ok {
		return none, errStopping
	}
	patience := checkPatience
	if m.checks.isSlow(key) {
		patience = 0
	}
	m.checks.begin(key)
	checking, cancel := m.tasks.detached(ctx)
	go func() {
		defer leave()
		defer cancel()
		found, err := check(checking)
		m.checks.end(key)
		done <- checked{found, err}
	}()
	var enough <-chan time.Time // never, if what is cached must not be stale
	if mayBeStale {
		wait := time.NewTimer(patience)
		defer wait.Stop()
		enough = wait.C
	}
	select {
	case c := <-done:
		return c.found, c.err
	case <-ctx.Done():
		cancel() // nobody waits for it
		return none, context.Cause(ctx)
	case <-enough:
		m.checks.waitedInVain(key)
		return none, errSlow
	}
}

// check asks upstream what the tag names now, and gets that if it isn't here and more
// than its headers is wanted.
// Errors: ErrReserve, and nothing of the tag is kept then; *upstream.Error; *failure; ctx's cause.
func (q *manifestRequest) check(ctx context.Context) (*found, error) {
	f, err := q.resolve(ctx)
	if err != nil {
		switch u, ok := errors.AsType[*upstream.Error](err); {
		case ok && u.Cause == upstream.NotFound:
			q.forgetTag(q.ref)
		case ok && u.Cause == upstream.Unsupported: // it is there, and names something new
			q.dropTag(q.ref)
		}
		return nil, err
	}
	if err := q.m.admit(ctx, q.repo).wait(ctx); err != nil { // nothing is kept before the visibility is known
		return nil, err
	}
	if f, err = q.waited(f); err != nil {
		return nil, err
	}
	named := f
	if !named.checked.IsZero() && (q.now || time.Since(named.checked) >= q.policy.tag(q.name, q.ref).ttl) {
		return q.remembered(ctx, f)
	}
	m, err := q.m.store.Manifest(f.digest)
	switch {
	case err == nil:
		if named.checked.IsZero() { // upstream has just named it under this repository
			q.setTag(q.ref, named)
			q.m.store.Confirm(q.full, f.digest, f.size)
		}
		if f, err = q.stored(ctx, m); err != nil {
			return nil, err
		}
		if !named.checked.IsZero() {
			q.setTag(q.ref, named)
		}
		f.outcome = OutcomeRevalidated
		return q.justChecked(f, named), nil
	case f.body == nil && q.sparing && q.m.client.Scarce(q.policy.QuotaReserve):
		return nil, ErrReserve
	case q.head || f.body != nil:
		q.setTag(q.ref, f)
		return q.justChecked(f, named), nil
	}
	if f, err = q.fetch(ctx, f.digest); err != nil {
		return nil, q.heldBack(named, err)
	}
	q.setTag(q.ref, &found{digest: f.digest, mediaType: f.mediaType, size: f.size, checked: named.checked})
	return q.justChecked(f, named), nil
}

// remembered answers with what the upstream has last said of the tag to another node, while it is down
// for this one: as stale, and only as long as the settings let a tag be stale.
// Errors: *upstream.Error, those of fetch and stored.
func (q *manifestRequest) remembered(ctx context.Context, f *found) (*found, error) {
	down := cmp.Or(q.m.client.Down(), error(&upstream.Error{Cause: upstream.Unreachable, Host: q.m.client.Host(), Err: errNoneNewer}))
	s, age := q.policy.tag(q.name, q.ref), time.Since(f.checked)
	if own, err := q.m.store.Tag(q.full, q.ref); err == nil && own.Checked.After(f.checked) || s.maxStale <= 0 || age > s.maxStale {
		return nil, down
	}
	tag := storage.Tag{Digest: f.digest, MediaType: f.mediaType, Size: f.size, Checked: f.checked}
	if !q.head {
		g, err := q.fetch(ctx, f.digest)
		if err != nil {
			return nil, err
		}
		f = g
	}
	q.m.store.SetTag(q.full, q.ref, tag)
	g := *f
	g.outcome, g.expires = OutcomeStale, time.Time{}
	return &g, nil
}

var errNoneNewer = errors.New("no node has heard of the tag lately")

// justChecked returns a copy of f with the time until when the tag need not be looked at
// again, and named says when the upstream has named it. It is a copy because other requests may share f.
func (q *manifestRequest) justChecked(f, named *found) *found {
	g := *f
	g.checked = time.Time{}
	g.expires = named.checkedAt().Add(q.policy.tag(q.name, q.ref).askAt())
	if named.held {
		g.outcome, g.expires = OutcomeQuarantine, time.Time{}
	}
	return &g
}

// checkedAt is when the upstream has said so of a tag.
func (f *found) checkedAt() time.Time {
	if f.checked.IsZero() {
		return time.Now()
	}
	return f.checked
}

// recaller is a source that knows what the upstream has just told others.
type recaller interface {
	// Recall returns what the upstream has said of a tag at most maxAge ago. If it knows nothing, the
	// caller is to ask; others may wait for that a little.
	Recall(ctx context.Context, repository, tag string, maxAge time.Duration) (fetch.Descriptor, bool)
}

// recalled returns what the upstream has said of a tag to another node so lately that it need not be
// asked, or nil.
func (q *manifestRequest) recalled(ctx context.Context) *found {
	if q.m.recall == nil || q.digest != "" || q.now {
		return nil
	}
	d, ok := q.m.recall.Recall(ctx, q.name, q.ref, q.policy.tag(q.name, q.ref).askAt())
	if !ok || !name.ValidDigest(string(d.Digest)) || d.Size < 0 {
		return nil
	}
	return &found{digest: d.Digest, mediaType: d.MediaType, size: d.Size, checked: d.Checked, outcome: OutcomeMiss}
}
