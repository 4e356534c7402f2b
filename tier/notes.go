package tier

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier/lease"
)

// Notes are what the nodes tell each other, as lease.Redis has them; see there.
type Notes interface {
	Notes(ctx context.Context, keys ...string) ([]lease.Noted, error)
	Note(ctx context.Context, key, value string, age, ttl time.Duration) error
	Lengthen(ctx context.Context, key string, left time.Duration) error
}

const (
	// tagNoted is how long the nodes remember what one of them was told of a tag.
	tagNoted = 24 * time.Hour

	// checkTime is how long the node that checks a tag keeps the others from it, and checkPoll how often
	// they look whether it has ended. After checkPatience they ask by themselves.
	checkTime     = 2 * time.Second
	checkPoll     = 50 * time.Millisecond
	checkPatience = 1500 * time.Millisecond
)

// Account is the account of a registry that the nodes use. Nodes tell each other of it: what a tag
// names, when to pause, and what is left of the pulls.
type Account struct {
	id        string
	anonymous bool
}

// AccountOf returns the account of that name at the registry with that URL; "": anonymous requests.
func AccountOf(url, username string) Account {
	sum := sha256.Sum256([]byte(url + " " + username))
	return Account{hex.EncodeToString(sum[:12]), username == ""}
}

func (a Account) tag(repository, tag string) string {
	return "tag:" + a.id + ":" + repository + ":" + tag
}

// limits are the keys of the limits for those whose they are.
func (a Account) limits(whose string) []string {
	at := "limit:" + a.id + ":" + whose + ":"
	return []string{at + "pulls", at + "all", at + "quota"}
}

// Limits is what the upstream has told any node of its limits. Zero fields aren't known.
type Limits struct {
	Pulls, All time.Duration // how much longer to send no pulls, or no request at all

	// The quota of pulls, how old this is, and whose it is, as the upstream says.
	Limit, Remaining, WindowSeconds int64
	QuotaAge                        time.Duration
	Source                          string
}

// quota is what is noted of a quota.
type quota struct {
	Limit, Remaining, Window int64
	Source                   string
}

// Limits returns the limits of an account that any node knows, or none while Redis is unwell. whose says
// whose they are where that isn't the account.
func (t *Tier) Limits(ctx context.Context, a Account, whose string) (l Limits) {
	found := t.notes(ctx, a.limits(whose)...)
	if found == nil {
		return l
	}
	l.Pulls, l.All = found[0].Left, found[1].Left
	var q quota
	if found[2].Left > 0 && json.Unmarshal([]byte(found[2].Value), &q) == nil {
		l.Limit, l.Remaining, l.WindowSeconds, l.Source, l.QuotaAge = q.Limit, q.Remaining, q.Window, q.Source, found[2].Age
	}
	return l
}

// SetLimits tells the other nodes. It returns when they can know of a pause.
func (t *Tier) SetLimits(ctx context.Context, a Account, whose string, l Limits) {
	keys := a.limits(whose)
	for i, left := range []time.Duration{l.Pulls, l.All} {
		if left > 0 {
			t.tell(context.WithoutCancel(ctx), func(ctx context.Context) error { return t.told.Lengthen(ctx, keys[i], left) })
		}
	}
	if l.Limit <= 0 || l.WindowSeconds <= 0 {
		return
	}
	value, _ := json.Marshal(quota{l.Limit, l.Remaining, l.WindowSeconds, l.Source})
	t.later(func(ctx context.Context) {
		t.tell(ctx, func(ctx context.Context) error {
			return t.told.Note(ctx, keys[2], string(value), l.QuotaAge, time.Duration(l.WindowSeconds)*time.Second)
		})
	})
}

// notes returns nil while Redis is unwell.
func (t *Tier) notes(ctx context.Context, keys ...string) (found []lease.Noted) {
	err := t.tell(ctx, func(ctx context.Context) (err error) { found, err = t.told.Notes(ctx, keys...); return err })
	if err != nil {
		return nil
	}
	return found
}

// tell calls f, which asks Redis for notes or writes them, unless Redis is unwell.
// Errors: errUnasked; those of f.
func (t *Tier) tell(ctx context.Context, f func(context.Context) error) error {
	if t.told == nil || !t.leaseHealth.ask() {
		return errUnasked
	}
	err := f(ctx)
	t.leaseHealth.note(ctx, err)
	return err
}

// Recall returns what the upstream has told any node of a tag at most maxAge ago. If nothing, the caller
// is to ask, by Resolve: other nodes that ask for the tag meanwhile wait for that, for checkPatience at most.
func (s *source) Recall(ctx context.Context, repository, name string, maxAge time.Duration) (fetch.Descriptor, bool) {
	if s.t.told == nil || maxAge <= 0 {
		return fetch.Descriptor{}, false
	}
	key := s.account.tag(repository, name)
	poll := time.NewTicker(checkPoll)
	defer poll.Stop()
	for end := time.Now().Add(checkPatience); ; {
		found := s.t.notes(ctx, key)
		if found == nil {
			return fetch.Descriptor{}, false
		}
		if d, ok := recalled(found[0], maxAge); ok {
			s.t.recalls.Add(1)
			return d, true
		}
		if s.t.holds.leases == nil || time.Now().After(end) || s.mayCheck(ctx, key) {
			return fetch.Descriptor{}, false
		}
		select {
		case <-ctx.Done():
			return fetch.Descriptor{}, false
		case <-poll.C:
		}
	}
}

// recalled reads the note of a tag.
func recalled(n lease.Noted, maxAge time.Duration) (fetch.Descriptor, bool) {
	var r tag
	if n.Left <= 0 || n.Age >= maxAge || json.Unmarshal([]byte(n.Value), &r) != nil || r.Schema != schema || r.Digest.Validate() != nil || r.Size < 0 {
		return fetch.Descriptor{}, false
	}
	return fetch.Descriptor{Digest: r.Digest, MediaType: r.MediaType, Size: r.Size, Checked: time.Now().Add(-n.Age)}, true
}

// mayCheck reports whether this node is the one that checks the tag, as far as can be known.
func (s *source) mayCheck(ctx context.Context, key string) bool {
	mine := s.t.holds.mine
	var got lease.Lease
	err := s.t.tell(ctx, func(ctx context.Context) (err error) {
		got, err = s.t.holds.leases.Take(ctx, key, mine, checkTime)
		return err
	})
	return err != nil || got == mine
}

// checked tells the other nodes that a check has ended, and what the upstream has named; without a digest,
// nothing.
func (s *source) checked(repository, name string, r tag) {
	if s.t.told == nil {
		return
	}
	key, at := s.account.tag(repository, name), time.Now()
	value, err := json.Marshal(r)
	s.t.later(func(ctx context.Context) {
		if r.Digest != "" && err == nil {
			s.t.tell(ctx, func(ctx context.Context) error {
				return s.t.told.Note(ctx, key, string(value), time.Since(at), tagNoted)
			})
		}
		if s.t.holds.leases == nil {
			return
		}
		if err := s.t.tell(ctx, func(ctx context.Context) error { return s.t.holds.leases.Release(ctx, key, s.t.holds.mine) }); err != nil && !errors.Is(err, errUnasked) {
			s.t.log.Debug("other nodes wait for a check of a tag that has ended", "error", err)
		}
	})
}
