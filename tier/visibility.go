package tier

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/hubcache/hubcache/tier/bucket"
)

// verdict says when a node has last found a repository public, or private. They are two records, so that
// nodes that write at the same time lose neither.
type verdict struct {
	Schema  int       `json:"schema"`
	Checked time.Time `json:"checked"`
}

func verdictName(repository string, public bool) string {
	if public {
		return version + "repos/" + repository + "/_public"
	}
	return version + "repos/" + repository + "/_private"
}

// clocksDiffer is how far the clocks of two nodes may be apart: a repository that was found private is
// public only when it was found so that much later.
const clocksDiffer = time.Minute

// publicAge is how long a node without an account believes that a repository is public.
const publicAge = time.Minute

// Visibility returns what any node was last told: whether anybody may read the repository, and when
// that was. ok is false when no node knows, or the bucket is unwell.
func (s *source) Visibility(ctx context.Context, repository string) (public bool, checked time.Time, ok bool) {
	return s.t.visibility(ctx, s.full(repository))
}

// SetVisibility tells the other nodes, in the background.
func (s *source) SetVisibility(repository string, public bool, checked time.Time) {
	s.t.setVisibility(s.full(repository), public, checked)
}

func (t *Tier) visibility(ctx context.Context, repository string) (public bool, checked time.Time, ok bool) {
	var yes, no verdict
	noErr := t.read(ctx, verdictName(repository, false), &no)
	if noErr != nil && !errors.Is(noErr, bucket.ErrAbsent) {
		return false, time.Time{}, false
	}
	yesErr := t.read(ctx, verdictName(repository, true), &yes)
	public = yesErr == nil && (noErr != nil || yes.Checked.After(no.Checked.Add(clocksDiffer)))
	checked = no.Checked
	if public {
		checked = yes.Checked
	}
	if now := time.Now(); checked.After(now) {
		checked = now
	}
	return public, checked, public || noErr == nil
}

func (t *Tier) setVisibility(repository string, public bool, checked time.Time) {
	t.noted.Forget(verdictName(repository, !public))
	if t.bucket == nil || t.noted.Has(verdictName(repository, public)) {
		return
	}
	if !public {
		t.hidden.add(repository, checked)
		return
	}
	t.soon(func(ctx context.Context) { t.writeVerdict(ctx, repository, true, checked) })
}

// writeVerdict writes what a node was told, unless a newer record of the same is there.
func (t *Tier) writeVerdict(ctx context.Context, repository string, public bool, checked time.Time) error {
	name := verdictName(repository, public)
	var old verdict
	err := t.read(ctx, name, &old)
	if errors.Is(err, errUnasked) {
		return err
	}
	if err != nil || checked.Sub(old.Checked) > tagAge || !public && checked.After(old.Checked) {
		if err = t.write(ctx, name, verdict{Schema: schema, Checked: checked.UTC()}); err != nil {
			return err
		}
	}
	t.noted.Add(name, tagAge, nil)
	return nil
}

// mayBeRead reports whether a node with this account may serve from the bucket what lies there of a
// repository. With an account, package registry has found out before. Without one, a node
// that has one may have brought it, so that somebody must have found the repository public.
func (s *source) mayBeRead(ctx context.Context, repository string) bool {
	full := s.full(repository)
	key := "read " + full
	if !s.account.anonymous || s.t.noted.Has(key) {
		return true
	}
	public, _, ok := s.t.visibility(ctx, full)
	if public && ok {
		s.t.noted.Add(key, publicAge, nil)
	}
	return public && ok
}

// served notes that the upstream has served something of the repository. If it did so to
// anybody, the repository is public.
func (s *source) served(repository string) {
	if s.account.anonymous {
		s.SetVisibility(repository, true, time.Now())
	}
}

// maxHidden bounds what is remembered of repositories that became private while the bucket was unwell.
const maxHidden = 10_000

// hidden are repositories that were found private and of which the bucket doesn't know yet. A crash
// forgets them; the node tells again when it is next asked for one. All methods are safe for concurrent use.
type hidden struct {
	wake chan struct{} // has one element when there are new ones

	mu  sync.Mutex // guards all
	all map[string]time.Time
}

func (h *hidden) add(repository string, checked time.Time) {
	h.mu.Lock()
	if _, known := h.all[repository]; known || len(h.all) < maxHidden {
		h.all[repository] = checked
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hidden) list() map[string]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.all)
}

// told removes one, unless it was found private again meanwhile.
func (h *hidden) told(repository string, checked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[repository].Equal(checked) {
		delete(h.all, repository)
	}
}

// tellHidden tells the bucket of them until the end.
func (t *Tier) tellHidden(ctx context.Context) {
	for again := time.NewTimer(time.Hour); ; {
		select {
		case <-ctx.Done():
			return
		case <-t.hidden.wake:
		case <-again.C:
		}
		for repository, checked := range t.hidden.list() {
			if t.writeVerdict(ctx, repository, false, checked) != nil {
				again.Reset(t.pace.again)
				break
			}
			t.hidden.told(repository, checked)
		}
	}
}
