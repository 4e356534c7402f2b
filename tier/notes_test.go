package tier

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier/lease"
)

// memoryNotes are notes without a server. With fail set they fail.
type memoryNotes struct {
	mu   sync.Mutex // guards what follows
	all  map[string]memoryNote
	fail error
}

type memoryNote struct {
	value     string
	at, until time.Time
}

func (m *memoryNotes) Notes(_ context.Context, keys ...string) ([]lease.Noted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := make([]lease.Noted, len(keys))
	for i, key := range keys {
		if n := m.all[key]; time.Until(n.until) > 0 {
			found[i] = lease.Noted{Value: n.value, Age: time.Since(n.at), Left: time.Until(n.until)}
		}
	}
	return found, m.fail
}

func (m *memoryNotes) Note(_ context.Context, key, value string, age, ttl time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := time.Now().Add(-age); !m.all[key].at.After(at) && m.fail == nil {
		m.all[key] = memoryNote{value, at, time.Now().Add(ttl)}
	}
	return m.fail
}

func (m *memoryNotes) Lengthen(_ context.Context, key string, left time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.all[key]; time.Until(n.until) < left && m.fail == nil {
		m.all[key] = memoryNote{until: time.Now().Add(left)}
	}
	return m.fail
}

func (m *memoryNotes) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// lateLeases are leases that are a long way off: before and after are called around a Take.
type lateLeases struct {
	*memoryLeases
	before, after func()
}

func (l *lateLeases) Take(ctx context.Context, key string, mine lease.Lease, ttl time.Duration) (lease.Lease, error) {
	l.before()
	defer l.after()
	return l.memoryLeases.Take(ctx, key, mine, ttl)
}

// TestAHolderThatDoesNotKnowItYetIsAHolder: another node may hear of a lease before the one that has it.
func TestAHolderThatDoesNotKnowItYetIsAHolder(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	blob := random(2<<20, 1)
	d := l.upstream.add(app, blob)
	two := l.node(nil)
	var one *node
	var others sync.WaitGroup
	after := sync.OnceFunc(func() {
		others.Go(func() { two.wants(app, d) })
		l.eventually("the other node asks", func() bool { return one.peers.Load() > 0 })
		time.Sleep(50 * time.Millisecond) // and is answered, as far as it is
	})
	one = l.node(func(o *Options) { o.Leases = &lateLeases{l.leases, func() {}, after} })
	one.wants(app, d)
	others.Wait()
	if got := l.upstream.sentBytes(); got != int64(len(blob)) {
		t.Errorf("the upstream has sent %d bytes of %d", got, len(blob))
	}
}

// TestABlobThatHasJustBeenUploadedIsNotFetchedAgain by a node that had asked the bucket before.
func TestABlobThatHasJustBeenUploadedIsNotFetchedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	blob := random(100<<10, 1)
	d := l.upstream.add(app, blob)
	one := l.node(nil)
	two := l.node(func(o *Options) {
		o.Leases = &lateLeases{l.leases, sync.OnceFunc(func() { one.wants(app, d); one.uploaded() }), func() {}}
	})
	two.wants(app, d)
	if got := l.upstream.sentBytes(); got != int64(len(blob)) {
		t.Errorf("the upstream has sent %d bytes of %d", got, len(blob))
	}
	l.eventually("the lease is given back", func() bool { return one.tier.Stats().Holding == 0 })
}

// named asks a node for a tag as package registry does.
func (n *node) named(tag string, maxAge time.Duration) digest.Digest {
	n.l.t.Helper()
	ctx := n.l.t.Context()
	if d, ok := n.source.(*source).Recall(ctx, app, tag, maxAge); ok {
		return d.Digest
	}
	d, err := n.source.Resolve(ctx, app, fetch.Manifests, tag)
	if err != nil {
		n.l.t.Errorf("%s: %v", tag, err)
	}
	return d.Digest
}

// TestOneNodeChecksATagForAll: however many nodes ask for it within its TTL, and at the same time. While
// the notes fail, each asks by itself; after that they share again.
func TestOneNodeChecksATagForAll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.upstream.add(app, []byte("a manifest"))
	l.upstream.tags = map[string]digest.Digest{app + ":1": d, app + ":2": d, app + ":3": d}
	nodes := []*node{l.node(nil), l.node(nil), l.node(nil)}
	ask := func(tag string, maxAge time.Duration) (requests int) {
		t.Helper()
		var wg sync.WaitGroup
		for _, n := range nodes {
			wg.Go(func() {
				if got := n.named(tag, maxAge); got != d {
					t.Errorf("%s is %s", tag, got)
				}
			})
		}
		wg.Wait()
		return len(l.upstream.requests())
	}
	if n := ask("1", time.Hour); n != 1 {
		t.Errorf("%d requests for a tag that all ask for at the same time", n)
	}
	if n := ask("1", time.Hour); n != 0 {
		t.Errorf("%d requests within its TTL", n)
	}
	if n := ask("1", 0); n != 3 {
		t.Errorf("%d requests for a tag that each node is to ask for", n)
	}
	l.notes.setFail(errRefused)
	if n := ask("2", time.Hour); n != 3 {
		t.Errorf("%d requests while the notes fail", n)
	}
	l.notes.setFail(nil)
	l.eventually("they share again", func() bool {
		for _, n := range nodes {
			n.named("3", time.Hour)
		}
		return ask("3", time.Hour) == 0
	})
	if nodes[1].tier.Stats().Recalls == 0 && nodes[2].tier.Stats().Recalls == 0 {
		t.Error("nobody is told of it")
	}
}

// TestNodesOfAnAccountKnowItsLimits, and no others: the longest pause, and the newest quota.
func TestNodesOfAnAccountKnowItsLimits(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	one, two := l.node(nil).tier, l.node(nil).tier
	ctx, account := t.Context(), AccountOf("https://registry.example", "alice")
	one.SetLimits(ctx, account, "", Limits{Pulls: time.Hour})
	two.SetLimits(ctx, account, "", Limits{Pulls: time.Minute, All: time.Minute})
	if got := two.Limits(ctx, account, ""); got.Pulls < 30*time.Minute || got.All <= 0 || got.Limit != 0 {
		t.Errorf("limits are %+v", got)
	}
	newer := Limits{Limit: 100, Remaining: 7, WindowSeconds: 3600, Source: "an account"}
	older := newer
	older.Remaining, older.QuotaAge = 50, time.Minute
	one.SetLimits(ctx, account, "", newer)
	l.eventually("the quota is known", func() bool { return two.Limits(ctx, account, "").Limit == 100 })
	two.SetLimits(ctx, account, "", older)
	two.SetLimits(ctx, account, "192.0.2.1", older)
	l.eventually("another quota is known", func() bool { return one.Limits(ctx, account, "192.0.2.1").Limit == 100 })
	if got := two.Limits(ctx, account, ""); got.Remaining != 7 || got.Source != "an account" || got.WindowSeconds != 3600 {
		t.Errorf("the older quota has won: %+v", got)
	}
	for name, other := range map[string]Account{"account": AccountOf("https://registry.example", "bob"), "registry": AccountOf("https://other.example", "alice")} {
		if got := two.Limits(ctx, other, ""); got != (Limits{}) {
			t.Errorf("another %s has %+v", name, got)
		}
	}
	l.notes.setFail(errRefused)
	if got := two.Limits(ctx, account, ""); got != (Limits{}) {
		t.Errorf("while the notes fail: %+v", got)
	}
	one.SetLimits(ctx, account, "", newer)
	if two.Stats().Lease == Well {
		t.Error("nobody is told that Redis is unwell")
	}
}
