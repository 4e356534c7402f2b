package tier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/tiertest"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// upstreamError is what an upstream says.
type upstreamError struct{ down bool }

func (e upstreamError) Error() string {
	if e.down {
		return "the upstream is down"
	}
	return "the upstream hasn't got it"
}

func (e upstreamError) Down() bool { return e.down }

// memoryUpstream is a registry in memory. What a repository has is listed as "repository@digest".
type memoryUpstream struct {
	mu       sync.Mutex // guards what follows
	contents map[digest.Digest][]byte
	has      map[string]bool
	tags     map[string]digest.Digest // by "repository:tag"
	down     bool
	gate     chan struct{} // blobs bring their second half when it is closed; nil: at once
	asked    []string
	sent     int64 // bytes of blobs
}

func newUpstream() *memoryUpstream {
	return &memoryUpstream{contents: map[digest.Digest][]byte{}, has: map[string]bool{}, tags: map[string]digest.Digest{}}
}

// random returns n bytes that are the same for the same n and seed.
func random(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed, byte(n), byte(n >> 8)}).Read(b)
	return b
}

func (u *memoryUpstream) add(repository string, content []byte) digest.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := digest.FromBytes(content)
	u.contents[d], u.has[repository+"@"+string(d)] = content, true
	return d
}

func (u *memoryUpstream) setDown(down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down = down
}

// requests returns what was asked since the last call, sorted.
func (u *memoryUpstream) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	asked := u.asked
	u.asked = nil
	slices.Sort(asked)
	return asked
}

// sentBytes returns how many bytes of blobs were sent.
func (u *memoryUpstream) sentBytes() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent
}

// look notes a question, and returns the content of what is asked for.
func (u *memoryUpstream) look(what, repository, reference string) (digest.Digest, []byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, what+" "+repository)
	d := digest.Digest(reference)
	if tagged, ok := u.tags[repository+":"+reference]; ok {
		d = tagged
	}
	if u.down || !u.has[repository+"@"+string(d)] {
		return "", nil, upstreamError{u.down}
	}
	return d, u.contents[d], nil
}

func (u *memoryUpstream) Resolve(_ context.Context, repository string, _ fetch.Kind, reference string) (fetch.Descriptor, error) {
	d, b, err := u.look("resolve", repository, reference)
	return fetch.Descriptor{Digest: d, MediaType: "application/x-manifest", Size: int64(len(b))}, err
}

func (u *memoryUpstream) Manifest(_ context.Context, repository, reference string) (fetch.Manifest, error) {
	_, b, err := u.look("manifest", repository, reference)
	return fetch.Manifest{MediaType: "application/x-manifest", Body: b, Host: "memory"}, err
}

func (u *memoryUpstream) Confirm(_ context.Context, repository string, _ fetch.Kind, d digest.Digest) error {
	_, _, err := u.look("confirm", repository, string(d))
	return err
}

func (u *memoryUpstream) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return memoryBlob{u, repository, d}
}

type memoryBlob struct {
	u          *memoryUpstream
	repository string
	digest     digest.Digest
}

func (b memoryBlob) Open(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	_, all, err := b.u.look("blob", b.repository, string(b.digest))
	if err != nil {
		return nil, err
	}
	if p.To < 0 || p.To > int64(len(all)) {
		p.To = int64(len(all))
	}
	b.u.mu.Lock()
	gate := b.u.gate
	b.u.mu.Unlock()
	body := &gated{ctx: ctx, u: b.u, r: bytes.NewReader(all[p.From:p.To]), free: len(all)/2 - int(p.From), gate: gate}
	return &fetch.Body{ReadCloser: io.NopCloser(body), From: p.From, To: p.To, Size: int64(len(all)), Ranged: true}, nil
}

// gated sends free bytes, and the others when the gate is open. Until then a few come twice a second: a
// source that says nothing for seconds is given up.
type gated struct {
	ctx  context.Context
	u    *memoryUpstream
	r    *bytes.Reader
	free int
	gate chan struct{}
}

func (g *gated) Read(p []byte) (int, error) {
	if g.gate != nil && g.free <= 0 {
		select {
		case <-g.gate:
			g.gate = nil
		case <-time.After(500 * time.Millisecond):
			g.free = 16
		case <-g.ctx.Done():
			return 0, context.Cause(g.ctx)
		}
	}
	if g.gate != nil {
		p = p[:min(len(p), g.free)]
	}
	n, err := g.r.Read(p)
	g.free -= n
	g.u.mu.Lock()
	g.u.sent += int64(n)
	g.u.mu.Unlock()
	return n, err
}

// memoryLeases are leases without a server. With fail set they fail.
type memoryLeases struct {
	mu   sync.Mutex // guards what follows
	held map[string]lease.Lease
	fail error
}

func (m *memoryLeases) change(f func() (lease.Lease, error)) (lease.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return lease.Lease{}, m.fail
	}
	return f()
}

func (m *memoryLeases) Take(_ context.Context, key string, mine lease.Lease, _ time.Duration) (lease.Lease, error) {
	return m.change(func() (lease.Lease, error) {
		if _, ok := m.held[key]; !ok {
			m.held[key] = mine
		}
		return m.held[key], nil
	})
}

func (m *memoryLeases) Replace(_ context.Context, key string, dead, mine lease.Lease, _ time.Duration) (lease.Lease, error) {
	return m.change(func() (lease.Lease, error) {
		if l, ok := m.held[key]; !ok || l == dead {
			m.held[key] = mine
		}
		return m.held[key], nil
	})
}

func (m *memoryLeases) Extend(_ context.Context, key string, mine lease.Lease, _ time.Duration) (bool, error) {
	l, err := m.change(func() (lease.Lease, error) { return m.held[key], nil })
	return l == mine, err
}

func (m *memoryLeases) Release(_ context.Context, key string, mine lease.Lease) error {
	_, err := m.change(func() (lease.Lease, error) {
		if m.held[key] == mine {
			delete(m.held, key)
		}
		return lease.Lease{}, nil
	})
	return err
}

// quick are the times of a tier whose engines are well again in a moment.
var quick = pace{restFirst: 50 * time.Millisecond, restMost: 200 * time.Millisecond, probe: 100 * time.Millisecond, again: 50 * time.Millisecond, arrive: time.Minute, byOthers: 100 * time.Millisecond, noteUses: time.Hour, evict: 10 * time.Hour}

// lab is several nodes with one upstream, one bucket and one set of leases.
type lab struct {
	t        *testing.T
	upstream *memoryUpstream
	s3       *tiertest.S3
	leases   *memoryLeases
	notes    *memoryNotes
	log      *lockedBuffer
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, upstream: newUpstream(), s3: tiertest.NewS3(t), leases: &memoryLeases{held: map[string]lease.Lease{}}, notes: &memoryNotes{all: map[string]memoryNote{}}, log: &lockedBuffer{}}
}

// lockedBuffer is a log that tests read.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// node is one node: a store, a pool of downloads, and what other nodes ask.
type node struct {
	l      *lab
	store  *storage.Store
	pool   *fetch.Pool
	tier   *Tier
	source fetch.Source
	server *httptest.Server
	peers  atomic.Int32 // requests of other nodes
	dir    string
	opened bool
}

func (l *lab) bucket() *bucket.Bucket {
	l.t.Helper()
	key := filepath.Join(l.t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("key"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	b, err := bucket.New(bucket.Config{Endpoint: l.s3.URL, Name: tiertest.BucketName, PathStyle: true, Region: "x", Part: 1 << 20, Answer: time.Minute, AccessKeyFile: key, SecretKeyFile: key})
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// node starts a node. change may change its options.
func (l *lab) node(change func(*Options)) *node {
	l.t.Helper()
	n := &node{l: l, dir: l.t.TempDir()}
	log := slog.New(slog.NewTextHandler(l.log, nil))
	var err error
	if n.store, err = storage.Open(storage.Options{Dir: n.dir, Budget: 1 << 30, Log: log}); err != nil {
		l.t.Fatal(err)
	}
	n.pool = fetch.New(fetch.Options{Store: n.store, Log: log})
	n.server = httptest.NewServer(http.HandlerFunc(n.servePeer))
	o := Options{Store: n.store, Dir: filepath.Join(n.dir, "uploads"), Bucket: l.bucket(), Leases: l.leases, Notes: l.notes, Advertise: n.server.URL, Log: log, pace: quick}
	if change != nil {
		change(&o)
	}
	if n.tier, err = New(o); err != nil {
		l.t.Fatal(err)
	}
	n.source = n.tier.Source("docker.io", AccountOf("memory", ""), l.upstream)
	n.opened = true
	l.t.Cleanup(n.stop)
	return n
}

// stop ends a node. One that has ended stays so.
func (n *node) stop() {
	if !n.opened {
		return
	}
	n.opened = false
	n.die()
	n.pool.Close(context.Background())
	n.tier.Close()
	n.store.Close()
}

// die makes a node one that nobody can reach.
func (n *node) die() {
	n.server.CloseClientConnections()
	n.server.Listener.Close()
}

// servePeer answers other nodes as package registry does.
func (n *node) servePeer(w http.ResponseWriter, r *http.Request) {
	n.peers.Add(1)
	parts := strings.Split(r.URL.Path, "/")
	d := digest.Digest(parts[len(parts)-1])
	if !n.tier.Peer(r.Header.Get(fetch.PeerHeader), d) || r.URL.Query().Get("ns") != "docker.io" {
		http.NotFound(w, r)
		return
	}
	if b, err := n.store.Open(d); err == nil {
		defer b.Close()
		http.ServeContent(w, r, "", time.Time{}, b.File)
		return
	}
	f, err := n.pool.Join(r.Context(), d)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Leave()
	rd, err := f.Reader(r.Context(), nil)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer rd.Close()
	(&content.Object{Digest: string(d), Size: f.Size()}).Send(w, r, content.Growing(r, rd))
}

// get returns a blob as a client of the node gets it. A download that has ended before it could be
// read along is no failure.
func (n *node) get(repository string, d digest.Digest) (b []byte, err error) {
	for range 5 {
		if b, err = n.try(repository, d); !errors.Is(err, fetch.ErrEnded) {
			break
		}
	}
	return b, err
}

func (n *node) try(repository string, d digest.Digest) ([]byte, error) {
	if b, err := n.store.Open(d); err == nil {
		defer b.Close()
		return io.ReadAll(b.File)
	}
	ctx := n.l.t.Context()
	b := fetch.Blob{Digest: d, Size: -1, Origin: storage.Origin{Repository: "docker.io/" + repository}, Source: n.source.Blob(repository, d)}
	f, _, err := n.pool.Start(ctx, b)
	if err != nil {
		return nil, err
	}
	defer f.Leave()
	rd, err := f.Reader(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	var all []byte
	for buf := make([]byte, 64<<10); ; {
		m, err := rd.ReadAt(ctx, buf, int64(len(all)))
		all = append(all, buf[:m]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// wants fails unless the node serves the blob with the right bytes.
func (n *node) wants(repository string, d digest.Digest) {
	n.l.t.Helper()
	got, err := n.get(repository, d)
	if err != nil || digest.FromBytes(got) != d {
		n.l.t.Errorf("%s: %d bytes, %v", d, len(got), err)
	}
}

// eventually waits until ok reports true.
func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: it never happened", what)
		}
	}
}

// uploaded waits until the node has nothing more to upload.
func (n *node) uploaded() {
	n.l.t.Helper()
	n.l.eventually("all uploads", func() bool { return len(n.pool.Stats().Inflight) == 0 && n.tier.Stats().Uploads == 0 })
}

var errRefused = errors.New("refused by the test")

// refuse is an S3 that refuses all.
func refuse(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	tiertest.Refuse(w, http.StatusServiceUnavailable, "SlowDown")
}
