package registry_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// ask sends a request to the registry through net/http's server, over a pipe. The header
// is pairs of name and value. The caller closes the body.
func (l *lab) ask(ctx context.Context, method, path string, header ...string) (*http.Response, error) {
	near, far := hubtest.Pipe()
	srv := &http.Server{Handler: l.reg, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ln := &oneConn{conn: far, done: make(chan struct{})}
	go srv.Serve(ln)
	t := &http.Transport{DisableCompression: true, DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
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

// closing is a body that ends its server when it is closed.
type closing struct {
	io.ReadCloser
	then func()
}

func (c *closing) Close() error { err := c.ReadCloser.Close(); c.then(); return err }

// oneConn is a listener that accepts one connection.
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

// do sends a request and reads the whole answer.
func (l *lab) do(method, path string, header ...string) reply {
	l.t.Helper()
	resp, err := l.ask(context.Background(), method, path, header...)
	if err != nil {
		return reply{err: err} // status 0: no answer came
	}
	defer resp.Body.Close()
	size := resp.ContentLength
	if method == "HEAD" {
		size = 0
	}
	b, err := readAll(resp.Body, size)
	return reply{resp.StatusCode, resp.Header, b, err}
}

// readAll is io.ReadAll for some size bytes; -1: any number. What it copies is hidden from the race
// detector, as in equal.
func readAll(r io.Reader, size int64) ([]byte, error) {
	b := make([]byte, 0, max(min(size, 64*mib), 16<<10)+1)
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if len(b) == cap(b) {
			more := make([]byte, len(b), 4*cap(b))
			hubtest.Copy(more, b)
			b = more
		}
	}
}

// get is do with GET.
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

// pullDigest is pull without the request for the tag.
func (l *lab) pullDigest(img *hubtest.Image) {
	l.t.Helper()
	r := l.get("/v2/" + img.Repository + "/manifests/" + string(img.Digest))
	if r.status != 200 || !equal(r.body, img.Bytes) || r.header.Get("Content-Type") != img.MediaType {
		l.t.Fatalf("manifest: %d %v %v\n%s", r.status, r.header, r.err, l.log)
	}
	m := img.Manifests[0]
	if img.IsIndex {
		if r := l.get("/v2/" + img.Repository + "/manifests/" + string(m.Digest)); r.status != 200 || !equal(r.body, m.Bytes) {
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

// same checks bytes from an offset of a blob.
func (l *lab) same(d string, off int64, body []byte) {
	l.t.Helper()
	blob, piece := l.hub.Blob(digest.Digest(d)), make([]byte, 64<<10)
	for len(body) > 0 {
		want := piece[:min(len(piece), len(body))]
		if n, err := blob.ReadAt(want, off); n < len(want) {
			l.t.Fatalf("blob %s has no more than %d bytes: %v", d, off+int64(n), err)
		}
		if !equal(want, body[:len(want)]) {
			l.t.Fatalf("blob %s has wrong bytes near %d", d, off)
		}
		body, off = body[len(want):], off+int64(len(want))
	}
}

// client is one client that asks for a blob.
type client struct {
	name  string
	from  int64 // offset of the first byte asked for
	leave bool  // disconnects after the first bytes

	// What get found.
	took   time.Duration // until the headers, or until it was clear that none come
	status int           // 0: there were no headers
	header http.Header
	n      int64  // bytes received of the blob
	wrong  bool   // some of them were wrong
	body   []byte // of an error
	err    error
}

// mixedClients lets different clients ask for a blob, 20 ms apart, and returns them when all
// have ended: one for all of it, one for a range, one for a range near the end, another one
// for all of it, and one that disconnects early.
func (l *lab) mixedClients(repository string, d digest.Digest) []*client {
	cs := []*client{
		{name: "first"},
		{name: "range", from: 100},
		{name: "tail", from: l.hub.Blob(d).Size() - 1000},
		{name: "late"},
		{name: "leaving", leave: true},
	}
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			c.get(l, repository, d)
		})
	}
	wg.Wait()
	l.waitIdle()
	return cs
}

// get asks for the blob and keeps what came.
func (c *client) get(l *lab, repository string, d digest.Digest) {
	path := "/v2/" + repository + "/blobs/" + string(d)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var header []string
	if c.from > 0 {
		header = []string{"Range", fmt.Sprintf("bytes=%d-", c.from)}
	}
	start := time.Now()
	resp, err := l.ask(ctx, "GET", path, header...)
	c.took = time.Since(start)
	if err != nil {
		c.err = err
		return
	}
	defer resp.Body.Close()
	c.status, c.header = resp.StatusCode, resp.Header
	switch {
	case c.leave:
		io.CopyN(io.Discard, resp.Body, 1000)
	case c.status >= 400:
		c.body, c.err = readAll(resp.Body, -1)
	default:
		c.err = c.compare(resp.Body, l.hub.Blob(d))
	}
}

// compare reads a body and compares it with the blob.
func (c *client) compare(body io.Reader, b io.ReaderAt) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := body.Read(got)
		b.ReadAt(want[:n], c.from+c.n)
		if !equal(got[:n], want[:n]) {
			c.wrong = true
		}
		c.n += int64(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// equal is bytes.Equal for bytes of the caller's own, which the race detector needn't watch:
// most of what the tests do is to compare bytes.
//
//go:norace
func equal(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for ; len(a) >= 8; a, b = a[8:], b[8:] {
		if binary.NativeEndian.Uint64(a) != binary.NativeEndian.Uint64(b) {
			return false
		}
	}
	return string(a) == string(b)
}

// is is equal for a string.
func is(b []byte, s string) bool { return equal(b, unsafe.Slice(unsafe.StringData(s), len(s))) }

// result is what a client gets.
type result uint8

const (
	whole           result = iota // all bytes
	refused                       // an error in place of the headers
	broken                        // a connection that breaks after the headers
	refusedOrBroken               // either; it depends on when the client comes
	wholeOrRefused                // the same
)

func (r result) String() string {
	return [...]string{"whole", "refused", "broken", "refused or broken", "whole or refused"}[r]
}

// check compares what the client got with what is wanted. Headers come within 10 s, and a
// body that ends without an error is whole and right.
func (c *client) check(t testing.TB, l *lab, d digest.Digest, want result) {
	t.Helper()
	if c.took > 10*time.Second {
		t.Errorf("%s: waited %s for headers", c.name, c.took)
	}
	if c.leave {
		return
	}
	got := broken
	switch rest := l.hub.Blob(d).Size() - c.from; {
	case c.status == 0 && c.err != nil:
	case c.status >= 400:
		got = refused
		c.checkRefusal(t)
	case c.status != 200 && c.status != 206:
		t.Errorf("%s: status %d", c.name, c.status)
	case (c.status == 206) != (c.from > 0):
		t.Errorf("%s: status %d from %d", c.name, c.status, c.from)
	case c.wrong:
		t.Errorf("%s: wrong bytes", c.name)
	case c.err == nil && c.n != rest:
		t.Errorf("%s: the body ended without an error after %d bytes instead of %d", c.name, c.n, rest)
	case c.err != nil && c.n >= rest:
		t.Errorf("%s: all bytes came, and the error %v", c.name, c.err)
	case c.err == nil:
		got = whole
	}
	if got != want && !(want == refusedOrBroken && got != whole) && !(want == wholeOrRefused && got != broken) {
		t.Errorf("%s: status %d, %d bytes, %v: %s instead of %s\n%s", c.name, c.status, c.n, c.err, got, want, l.log)
	}
}

// checkRefusal: a blob that is not to be had is answered with 404, or 429 with Retry-After,
// never with 401 or 5xx.
func (c *client) checkRefusal(t testing.TB) {
	t.Helper()
	if c.status != 404 && (c.status != 429 || c.header.Get("Retry-After") == "") || c.header.Get("Www-Authenticate") != "" {
		t.Errorf("%s: refused with %d %v", c.name, c.status, c.header)
	}
	if !bytes.HasPrefix(c.body, []byte(`{"errors":[`)) {
		t.Errorf("%s: error body %q", c.name, c.body)
	}
}

// fetch asks for a blob and checks every byte.
func (l *lab) fetch(repository string, d digest.Digest) {
	l.t.Helper()
	c := &client{name: "fetch"}
	c.get(l, repository, d)
	c.check(l.t, l, d, whole)
}

// checkAPIError: the answer has the error JSON of the API, no challenge, and Retry-After if
// its status is 429.
func checkAPIError(t testing.TB, r reply) {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message, Detail string }
	}
	if err := json.Unmarshal(r.body, &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code == "" || body.Errors[0].Detail == "" {
		t.Errorf("error body %q, %v", r.body, err)
	}
	if r.header.Get("Www-Authenticate") != "" || r.status == 429 && r.header.Get("Retry-After") == "" {
		t.Errorf("%d with headers %v", r.status, r.header)
	}
}

// fetchMode is a way in which the registry downloads a blob.
type fetchMode struct {
	name   string
	size   int64 // of the faulty layer
	skip   int   // requests for it that succeed before the first faulty one
	offset int64 // of the fault within a faulty body
	ahead  bool  // the layer is read ahead, before a client asks for it
}

var fetchModes = []fetchMode{
	{name: "single stream", size: 5 << 18, offset: 5 << 17},
	{name: "one of several ranges", size: 17 << 19, skip: 1, offset: 1 << 18},
	{name: "read ahead", size: 5 << 18, offset: 5 << 17, ahead: true},
}

// newRealTimeLab is an anonymous lab on the real clock, for requests over sockets and for
// counting allocations. Tags are not rechecked within an hour, and read-ahead is on.
func newRealTimeLab(t testing.TB, logger *slog.Logger) *lab {
	t.Helper()
	ttl := time.Hour
	return newLab(t, labOptions{
		hub: hubtest.Options{AnonymousLimit: -1}, anonymous: true, logger: logger,
		policy: func(p *registry.Policy) { p.TagTTL, p.ReadAhead = &ttl, true },
	})
}

// servePull asks for all manifests and blobs of an image without a connection.
func (l *lab) servePull(img *hubtest.Image) error {
	paths := []string{"manifests/" + img.Tag, "manifests/" + img.Digest.String()}
	for _, m := range img.Manifests {
		paths = append(paths, "manifests/"+m.Digest.String())
	}
	for _, b := range img.Blobs() {
		paths = append(paths, "blobs/"+b.Digest.String())
	}
	for _, p := range paths {
		w := &hashingResponse{header: http.Header{}, hash: img.Digest.Algorithm().Hash()}
		l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/"+img.Repository+"/"+p, nil))
		if w.status != http.StatusOK {
			return fmt.Errorf("%s: status %d", p, w.status)
		}
		if _, d, ok := strings.Cut(p, "/sha256:"); ok && fmt.Sprintf("%x", w.hash.Sum(nil)) != d {
			return fmt.Errorf("%s: wrong bytes", p)
		}
	}
	return nil
}

// hashingResponse is a response of which only the status and the hash of the body are kept.
type hashingResponse struct {
	header http.Header
	status int
	hash   hash.Hash
}

func (w *hashingResponse) Header() http.Header { return w.header }

func (w *hashingResponse) WriteHeader(status int) { w.status = status }

func (w *hashingResponse) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.hash.Write(p)
}
