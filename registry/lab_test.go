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
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// lab is a fake Hub with a registry before it, all in memory but for the files.
type lab struct {
	t     *testing.T
	hub   *hubtest.Hub
	store *storage.Store
	reg   *registry.Registry
	log   *logBuffer
	opts  labOptions
	dir   string
	cred  *auth.File

	transport http.RoundTripper // upstream's; nil: the Hub's own
}

type labOptions struct {
	hub       hubtest.Options
	anonymous bool
	budget    int64 // 0: 1 GiB
	policy    func(*registry.Policy)
}

const (
	username = "ci-bot"
	pat      = "dckr_pat_fakefakefakefakefakefake"
)

// logBuffer takes the log of a lab that is stopped and started again: two handlers, each
// with a lock of its own.
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

// newLab makes a lab. Call it inside a synctest bubble.
func newLab(t *testing.T, o labOptions) *lab {
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
	l.start()
	t.Cleanup(func() {
		l.stop()
		l.hub.Close()
	})
	return l
}

func (l *lab) start() {
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if l.store, err = storage.Open(storage.Options{Dir: filepath.Join(l.dir, "data"), Budget: l.opts.budget, Log: log}); err != nil {
		l.t.Fatal(err)
	}
	up, _ := url.Parse(l.hub.RegistryURL())
	transport := l.transport
	if transport == nil {
		transport = l.hub.Transport()
	}
	p := registry.Policy{MaxStale: 168 * time.Hour, NegativeTTL: 10 * time.Second}
	if l.opts.policy != nil {
		l.opts.policy(&p)
	}
	l.reg, err = registry.New(registry.Options{
		Store: l.store, Policy: p, Log: log,
		Upstreams: []registry.Upstream{{Options: upstream.Options{URL: up, Credential: l.cred, Transport: transport}}},
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

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

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// through puts f between the registry and the Hub.
func (l *lab) intercept(f func(req *http.Request, next http.RoundTripper) (*http.Response, error)) {
	l.stop()
	next := l.hub.Transport()
	l.transport = roundTripFunc(func(r *http.Request) (*http.Response, error) { return f(r, next) })
	l.start()
}

// bodies lets f do what it wants with the bodies of one blob.
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

// ask sends a request through net/http's own server, over a pipe.
func (l *lab) ask(ctx context.Context, method, path string, header ...string) (*http.Response, error) {
	client, server := net.Pipe()
	srv := &http.Server{Handler: l.reg, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ln := &oneConn{conn: server, done: make(chan struct{})}
	go srv.Serve(ln)
	t := &http.Transport{DisableCompression: true, DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil }}
	req, err := http.NewRequestWithContext(ctx, method, "http://cache.test"+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		srv.Close()
		ln.Close()
		return nil, err
	}
	resp.Body = &closing{resp.Body, func() { srv.Close(); ln.Close() }}
	return resp, nil
}

type closing struct {
	io.ReadCloser
	then func()
}

func (c *closing) Close() error { err := c.ReadCloser.Close(); c.then(); return err }

type oneConn struct {
	conn net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// reply is a response with its body read.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // of the body
}

func (l *lab) do(method, path string, header ...string) reply {
	l.t.Helper()
	resp, err := l.ask(context.Background(), method, path, header...)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, b, err}
}

func (l *lab) get(path string, header ...string) reply {
	l.t.Helper()
	return l.do("GET", path, header...)
}

// pull pulls an image as dockerd does, and checks every byte.
func (l *lab) pull(img *hubtest.Image) {
	l.t.Helper()
	if r := l.do("HEAD", "/v2/"+img.Repository+"/manifests/"+img.Tag); r.status != 200 || r.header.Get("Docker-Content-Digest") != string(img.Digest) {
		l.t.Fatalf("HEAD of the tag: %d %v\n%s", r.status, r.header, l.log)
	}
	l.pullDigest(img)
}

func (l *lab) pullDigest(img *hubtest.Image) {
	l.t.Helper()
	r := l.get("/v2/" + img.Repository + "/manifests/" + string(img.Digest))
	if r.status != 200 || !bytes.Equal(r.body, img.Bytes) || r.header.Get("Content-Type") != img.MediaType {
		l.t.Fatalf("manifest: %d %v %v\n%s", r.status, r.header, r.err, l.log)
	}
	m := img.Manifests[0]
	if img.IsIndex {
		if r := l.get("/v2/" + img.Repository + "/manifests/" + string(m.Digest)); r.status != 200 || !bytes.Equal(r.body, m.Bytes) {
			l.t.Fatalf("platform manifest: %d", r.status)
		}
	}
	for _, d := range append(m.Layers, m.Config) {
		l.blob(img.Repository, string(d.Digest))
	}
}

// blob gets a blob and checks every byte.
func (l *lab) blob(repository, d string) reply {
	l.t.Helper()
	r := l.get("/v2/" + repository + "/blobs/" + d)
	if r.status != 200 || r.err != nil {
		l.t.Fatalf("blob %s: %d, %d bytes, %v\n%s", d, r.status, len(r.body), r.err, l.log)
	}
	l.same(d, 0, r.body)
	return r
}

func (l *lab) same(d string, off int64, body []byte) {
	l.t.Helper()
	want := make([]byte, len(body))
	if _, err := l.hub.Blob(digest.Digest(d)).ReadAt(want, off); err != nil && err != io.EOF {
		l.t.Fatal(err)
	}
	if !bytes.Equal(want, body) {
		l.t.Fatalf("blob %s has wrong bytes", d)
	}
}

// idle waits until nothing is fetched: clients have their last byte before the disk has.
func (l *lab) waitIdle() {
	synctest.Wait()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
}

// quiet waits until nothing is in flight and checks books against disk.
func (l *lab) drain() {
	l.t.Helper()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(time.Second)
	}
	if st := l.store.Stats(); st.ReservedBytes != 0 || st.Bytes > st.BudgetBytes {
		l.t.Errorf("%+v", st)
	}
}

// settled: nothing in ingest/ that can't be gone on with, books equal to the disk, nothing
// reserved, and what is committed has its digest.
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
				l.t.Errorf("ingest/%s can't be gone on with: %d bytes, gaps %v", name, size, gaps)
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
		l.t.Errorf("on disk %d, booked %d, reserved %d", onDisk, st.Bytes, st.ReservedBytes)
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
			l.t.Errorf("%s was committed with other bytes", d)
		}
		b.Close()
	}
}
