package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// lab is a fake Hub and a registry in front of it. Requests travel through pipes in memory;
// only the store is on disk. No part of it reaches anything but loopback addresses.
type lab struct {
	t     testing.TB
	hub   *hubtest.Hub
	store *storage.Store
	reg   *registry.Registry
	log   *logBuffer
	opts  labOptions
	dir   string
	cred  *auth.File // nil: anonymous

	transport http.RoundTripper   // carries requests to the Hub; nil: the Hub's own
	upstreams []registry.Upstream // of reg
}

// labOptions are the options of newLab.
type labOptions struct {
	hub       hubtest.Options // without Accounts, the account of the registry is added
	upstream  string          // URL of a server on loopback to use in place of the Hub
	anonymous bool            // the registry has no credential
	budget    int64           // 0: 1 GiB
	policy    func(*registry.Policy)
	logger    *slog.Logger            // nil: everything is logged to lab.log
	intercept interceptor             // nil: requests go to the Hub unchanged
	options   func(*registry.Options) // changes the options, for other sources and more upstreams
	index     func(*bbolt.DB)         // is given the database of the index
}

// The account with which the registry of a lab logs in.
const (
	username = "ci-bot"
	pat      = "dckr_pat_fakefakefakefakefakefake"
)

// newLab makes a lab and stops it when the test ends. Inside a synctest bubble the Hub's
// delays cost no real time.
func newLab(t testing.TB, o labOptions) *lab {
	t.Helper()
	if o.hub.Accounts == nil {
		o.hub.Accounts = []hubtest.Account{{Username: username, PAT: pat, Private: []string{"*"}, Limit: hubtest.Unlimited}}
	}
	if o.budget == 0 {
		o.budget = 1 << 30
	}
	l := &lab{t: t, hub: hubtest.New(o.hub), opts: o, dir: t.TempDir(), log: &logBuffer{}}
	if !o.anonymous {
		path := filepath.Join(l.dir, "pat")
		if err := os.WriteFile(path, []byte(pat+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.cred = auth.NewFile(username, path)
	}
	l.putBetween(o.intercept)
	l.start()
	t.Cleanup(func() {
		l.stop()
		l.hub.Close()
	})
	return l
}

// start opens the store and makes the registry.
func (l *lab) start() {
	l.t.Helper()
	log := l.opts.logger
	if log == nil {
		log = slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if l.store, err = storage.Open(storage.Options{Dir: filepath.Join(l.dir, "data"), Budget: l.opts.budget, Log: log, IndexOpened: l.opts.index}); err != nil {
		l.t.Fatal(err)
	}
	o := l.options(log)
	l.upstreams = o.Upstreams
	if l.reg, err = registry.New(o); err != nil {
		l.t.Fatal(err)
	}
}

// options are the options of the lab's registry.
func (l *lab) options(log *slog.Logger) registry.Options {
	l.t.Helper()
	up := upstream.Options{Credential: l.cred, Transport: l.transport}
	if l.opts.upstream != "" { // with the registry's own transport
		up.URL, _ = url.Parse(l.opts.upstream)
		if !onLoopback(up.URL.Host) {
			l.t.Fatalf("a test wants to reach %s", l.opts.upstream)
		}
	} else {
		up.URL, _ = url.Parse(l.hub.RegistryURL())
		if up.Transport == nil {
			up.Transport = l.hub.Transport()
		}
	}
	o := registryOptions(l.store, log, up, l.policy(l.opts.policy))
	if l.opts.options != nil {
		l.opts.options(&o)
	}
	return o
}

// registryOptions are the options of a registry of one upstream. All tests of this package
// take them from here.
func registryOptions(store *storage.Store, log *slog.Logger, up upstream.Options, p registry.Policy) registry.Options {
	return registry.Options{Store: store, Upstreams: []registry.Upstream{{Options: &up}}, Policy: p, Log: log}
}

// policy is the policy of a lab, changed by the test.
func (l *lab) policy(change func(*registry.Policy)) registry.Policy {
	p := registry.Policy{MaxStale: 168 * time.Hour, NegativeTTL: 10 * time.Second}
	if change != nil {
		change(&p)
	}
	return p
}

// setPolicy replaces the policy, as a reload of the settings does.
func (l *lab) setPolicy(change func(*registry.Policy)) {
	l.t.Helper()
	if err := l.reg.Configure(l.upstreams, l.policy(change)); err != nil {
		l.t.Fatal(err)
	}
}

// stop closes the registry and its store. The Hub goes on.
func (l *lab) stop() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.reg.Close(ctx); err != nil {
		l.t.Error(err)
	}
	if err := l.store.Close(); err != nil {
		l.t.Error(err)
	}
}

// logBuffer takes the log of a lab. A lab that is stopped and started again has two slog
// handlers, each with its own lock, so the buffer needs one too.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// errNameServer is what looking up a name in DNS returns.
var errNameServer = errors.New("tests may not ask a name server")

// TestMain cuts the tests of this package off from the network: neither net/http's default
// transport nor a name server can be reached, only loopback addresses.
//
// The garbage collector runs less often than it does by default. The live heap of these tests
// is a few megabytes and they move gigabytes, so it would run all the time, empty the pools of
// buffers, and make the race detector forget and relearn their memory.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport))
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errNameServer
	}}
	os.Exit(m.Run())
}

// onLoopback reports whether a host with its port is an address of this machine's own.
func onLoopback(addr string) bool {
	ip, err := netip.ParseAddrPort(addr)
	return err == nil && ip.Addr().Unmap().IsLoopback()
}

// TestNothingButLoopbackIsReached: a test that needs the network fails on every machine.
func TestNothingButLoopbackIsReached(t *testing.T) {
	for _, to := range []string{"http://192.0.2.1/", "http://[2001:db8::1]/", "http://registry-1.docker.io/"} {
		if resp, err := http.Get(to); !errors.Is(err, hubtest.ErrNotLoopback) {
			t.Errorf("%s: %v, %v", to, resp, err)
		}
	}
	if addrs, err := net.LookupHost("registry-1.docker.io"); err == nil || !strings.Contains(err.Error(), errNameServer.Error()) {
		t.Errorf("looking up a name: %v, %v", addrs, err)
	}
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// blobFile is where the store keeps a cached blob.
func (l *lab) blobFile(d digest.Digest) string {
	return filepath.Join(l.dir, "data", "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// removeIndex deletes the index of a stopped lab, so that start has to rebuild it.
func (l *lab) removeIndex() {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.dir, "data", "index*.db"))
	if err != nil || len(files) == 0 {
		l.t.Fatalf("no index to remove: %v", err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			l.t.Fatal(err)
		}
	}
}

// roundTripFunc is a function as an http.RoundTripper.
type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// interceptor answers a request of the registry in place of the Hub, which is next.
type interceptor func(req *http.Request, next http.RoundTripper) (*http.Response, error)

// intercept starts the registry again with f between it and the Hub.
func (l *lab) intercept(f interceptor) {
	l.stop()
	l.putBetween(f)
	l.start()
}

func (l *lab) putBetween(f interceptor) {
	if f != nil {
		next := l.hub.Transport()
		l.transport = roundTripFunc(func(r *http.Request) (*http.Response, error) { return f(r, next) })
	}
}

// wrapBodies starts the registry again and lets f change the bodies that the Hub sends of
// one blob.
func (l *lab) wrapBodies(d digest.Digest, f func(io.ReadCloser) io.ReadCloser) {
	l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err == nil && resp.StatusCode/100 == 2 && strings.Contains(req.URL.Path, d.Encoded()) {
			resp.Body = f(resp.Body)
		}
		return resp, err
	})
}

// newPAT changes the access token at the Hub and in its file.
func (l *lab) newPAT(secret string) {
	l.hub.Set(func(o *hubtest.Options) { o.Accounts[0].PAT = secret })
	if err := os.WriteFile(filepath.Join(l.dir, "pat"), []byte(secret), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.cred.Reload()
}

// waitIdle waits until no download is running. A download ends after its clients have
// their last byte, because the blob must still be committed.
func (l *lab) waitIdle() {
	synctest.Wait()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
}

// drain waits until no download is running, and checks that nothing stays reserved and that
// the budget holds.
func (l *lab) drain() {
	l.t.Helper()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(time.Second)
	}
	if st := l.store.Stats(); st.ReservedBytes != 0 || st.Bytes > st.BudgetBytes {
		l.t.Errorf("store after all downloads: %+v", st)
	}
}

// checkStore waits until no download is running and checks the store: every partial
// download can be resumed, the bytes counted are those on disk, nothing is reserved, and
// the blobs ds have their digests as far as they are cached.
func (l *lab) checkStore(ds ...digest.Digest) {
	l.t.Helper()
	l.waitIdle()
	st := l.store.Stats()
	onDisk := int64(0)
	err := filepath.WalkDir(l.store.Dir(), func(path string, f fs.DirEntry, err error) error {
		if err != nil || f.IsDir() {
			return err
		}
		dir, name := filepath.Base(filepath.Dir(path)), f.Name()
		if strings.HasPrefix(name, ".tmp-") {
			l.t.Errorf("left behind: %s", path)
		}
		switch fi, err := f.Info(); {
		case err != nil:
			return err
		case dir == "ingest" && !strings.HasSuffix(name, ".json"):
			onDisk += fi.Size()
			d := digest.Digest(strings.Replace(name, "-", ":", 1))
			if size, gaps := l.store.Partial(d); size != fi.Size() || len(gaps) == 0 {
				l.t.Errorf("ingest/%s can't be resumed: %d bytes, gaps %v", name, size, gaps)
			}
		case len(dir) == 2:
			onDisk += fi.Size()
		}
		return nil
	})
	if err != nil {
		l.t.Error(err)
	}
	if st.Bytes != onDisk || st.ReservedBytes != 0 {
		l.t.Errorf("%d bytes on disk, %d counted, %d reserved", onDisk, st.Bytes, st.ReservedBytes)
	}
	for _, d := range ds {
		b, err := l.store.Open(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			l.t.Error(err)
			continue
		}
		v := d.Verifier()
		io.Copy(v, b.File)
		if !v.Verified() {
			l.t.Errorf("%s was committed with wrong bytes", d)
		}
		b.Close()
	}
}
