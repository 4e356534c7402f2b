package tier

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/tiertest"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// memoryUses are uses without a server. With fail set they fail.
type memoryUses struct {
	mu   sync.Mutex // guards what follows
	all  map[string]time.Time
	fail error
}

func (m *memoryUses) Use(_ context.Context, onlyNew bool, all ...lease.Use) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range all {
		if old, known := m.all[u.Name]; m.fail == nil && (!known || !onlyNew && u.At.After(old)) {
			m.all[u.Name] = u.At
		}
	}
	return m.fail
}

func (m *memoryUses) Oldest(_ context.Context, n int) (all []lease.Use, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, at := range m.all {
		all = append(all, lease.Use{Name: name, At: at})
	}
	slices.SortFunc(all, func(a, b lease.Use) int { return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Name, b.Name)) })
	return all[:min(n, len(all))], m.fail
}

func (m *memoryUses) Forget(_ context.Context, names ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if m.fail == nil {
			delete(m.all, name)
		}
	}
	return m.fail
}

// evicting returns nodes that share uses and a budget, and evict when the test says so.
func (l *lab) evicting(budget int64, n int) (nodes []*node, uses *memoryUses) {
	uses = &memoryUses{all: map[string]time.Time{}}
	for range n {
		nodes = append(nodes, l.node(func(o *Options) { o.Uses, o.Budget = uses, budget }))
	}
	return nodes, uses
}

// bucketBytes returns the size of all blobs in the bucket.
func (l *lab) bucketBytes() (n int64) {
	for _, name := range l.s3.Names() {
		if digestOf(name) != "" {
			n += int64(len(l.s3.Object(name).Body))
		}
	}
	return n
}

// TestTheBucketKeepsItsBudget: one node deletes what no node has used the longest, and what is deleted is fetched
// again.
func TestTheBucketKeepsItsBudget(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nodes, uses := l.evicting(500_000, 2)
	a, b := nodes[0], nodes[1]
	var all []digest.Digest
	for i := range 20 {
		d := l.upstream.add(app, random(50_000, byte(i)))
		all = append(all, d)
		a.wants(app, d)
	}
	a.uploaded()
	a.tier.evictor.tell(t.Context())
	uses.mu.Lock()
	if len(uses.all) != 20 {
		t.Errorf("%d uses were told", len(uses.all))
	}
	for i, d := range all { // as if long ago, the first one the longest
		uses.all[blobName(d)] = time.Unix(int64(1000+i), 0)
	}
	uses.mu.Unlock()
	b.wants(app, all[0]) // from the bucket: a use
	b.tier.evictor.tell(t.Context())
	b.tier.evictor.turn(t.Context())
	if n := l.bucketBytes(); n > 500_000 || n < 400_000 {
		t.Errorf("the bucket has %d bytes", n)
	}
	for i, want := range map[int]bool{0: true, 1: false, 5: false, 19: true} {
		if got := l.s3.Object(blobName(all[i])) != nil; got != want {
			t.Errorf("blob %d: in the bucket %v, want %v", i, got, want)
		}
	}
	s := b.tier.Stats()
	if s.Eviction != ByThis || s.Evicted == 0 || s.EvictedBytes != s.Evicted*50_000 || s.Size != l.bucketBytes() || s.Budget != 500_000 {
		t.Errorf("%+v", s)
	}
	b.wants(app, all[1])
}

// TestOneNodeEvicts, and not without Redis.
func TestOneNodeEvicts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nodes, uses := l.evicting(100, 3)
	d := l.upstream.add(app, random(1000, 1))
	nodes[0].wants(app, d)
	nodes[0].uploaded()
	states := map[string]int{}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { n.tier.evictor.turn(t.Context()) })
	}
	wg.Wait()
	for _, n := range nodes {
		states[n.tier.Stats().Eviction]++
	}
	if states[ByThis] != 1 || states[ByOther] != 2 {
		t.Errorf("%v", states)
	}
	if l.bucketBytes() > 0 {
		t.Error("nothing was deleted")
	}
	alone := l.node(func(o *Options) { o.Leases, o.Notes, o.Budget = nil, nil, 100 })
	if s := alone.tier.Stats().Eviction; s != NeedsLease {
		t.Error(s)
	}
	uses.mu.Lock()
	uses.fail = errRefused
	uses.mu.Unlock()
	l.s3.Set(blobName(d), &tiertest.Object{Body: random(1000, 1)})
	for _, n := range nodes {
		n.tier.evictor.turn(t.Context())
	}
	if l.bucketBytes() == 0 {
		t.Error("something was deleted without Redis")
	}
}

// TestWhatANodeUsesOnItsDiskIsKept in the bucket: other nodes may need it.
func TestWhatANodeUsesOnItsDiskIsKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nodes, uses := l.evicting(1500, 2)
	hot, cold := l.upstream.add(app, random(1000, 1)), l.upstream.add(app, random(1001, 2))
	nodes[0].wants(app, hot)
	nodes[1].wants(app, cold)
	nodes[0].uploaded()
	nodes[1].uploaded()
	for _, n := range nodes {
		n.tier.evictor.tell(t.Context())
	}
	nodes[1].store.Remove(cold)
	uses.mu.Lock()
	for _, d := range []digest.Digest{hot, cold} {
		uses.all[blobName(d)] = time.Unix(1000, 0)
	}
	uses.all[blobName(cold)] = time.Unix(2000, 0)
	uses.mu.Unlock()
	nodes[0].tier.evictor.tell(t.Context())
	nodes[1].tier.evictor.turn(t.Context())
	if l.s3.Object(blobName(hot)) == nil || l.s3.Object(blobName(cold)) != nil {
		t.Errorf("the bucket has %v", l.s3.Names())
	}
}

// TestWhatIsEvictedUnderReadersCostsAFetch, and never an error.
func TestWhatIsEvictedUnderReadersCostsAFetch(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var all []digest.Digest
	for i := range 8 {
		all = append(all, l.upstream.add(app, random(600_000+i, byte(i))))
	}
	nodes, _ := l.evicting(1, 4)
	evicting, stop := context.WithCancel(t.Context())
	var wg, round sync.WaitGroup
	round.Go(func() {
		for evicting.Err() == nil {
			nodes[0].tier.evictor.turn(evicting)
		}
	})
	for _, n := range nodes[1:] {
		wg.Go(func() {
			for range 6 {
				for _, d := range all {
					n.wants(app, d)
					n.store.Remove(d)
				}
			}
		})
	}
	wg.Wait()
	stop()
	round.Wait()
	if s := nodes[0].tier.Stats(); s.Evicted == 0 {
		t.Errorf("nothing was evicted meanwhile: %+v", s)
	}
}

// TestUploadsThatNobodyGoesOnWithAreForgotten, and no others.
func TestUploadsThatNobodyGoesOnWithAreForgotten(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.node(nil)
	b := l.bucket()
	begin := func() {
		b.Upload(t.Context(), version+"blobs/x", bucket.Object{Size: 3 << 20}, strings.NewReader("too short"), "", func(string) error { return nil })
	}
	begin()
	for before, want := range map[time.Duration]int{-2 * time.Hour: 1, 0: 0} {
		if l.s3.Uploads() == 0 {
			begin()
		}
		if _, err := n.tier.bucket.AbortOld(t.Context(), version+"blobs", time.Now().Add(before)); err != nil || l.s3.Uploads() != want {
			t.Errorf("before %v: %d uploads are left, %v", before, l.s3.Uploads(), err)
		}
	}
}
