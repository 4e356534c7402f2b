package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// The fault matrix of blobs: what happens × where × how often × how the blob is fetched.
// Each cell ends with the checks of settled.

// fetching is how a blob comes in.
type fetching struct {
	name   string
	size   int64 // of the faulty layer
	skip   int   // healthy requests for it before the first faulty one
	offset int64 // within a body, of faults in the body
	ahead  bool  // the layer is read ahead of its clients
}

var fetchings = []fetching{
	{name: "single stream", size: 5 << 18, offset: 5 << 17},
	{name: "one of several ranges", size: 17 << 19, skip: 1, offset: 1 << 18},
	{name: "read ahead", size: 5 << 18, offset: 5 << 17, ahead: true},
}

// ending is how clients fare.
type ending uint8

const (
	whole   ending = iota // all have all bytes
	refused               // an error before the headers
	broken                // the connection breaks after them
	either                // refused or broken: it depends on when one comes
)

type blobFault struct {
	name     string
	face     hubtest.Face
	faults   func(f fetching) []hubtest.Fault
	once     ending
	always   ending
	rest     time.Duration // how long upstream isn't asked afterwards, if longer than a failure is remembered
	harmless bool          // nothing breaks
	narrow   bool          // one cell is enough: how and how often make no difference
}

func fixed(fault hubtest.Fault) func(fetching) []hubtest.Fault {
	return func(fetching) []hubtest.Fault { return []hubtest.Fault{fault} }
}

func redirectTo(edit func(*url.URL)) func(fetching) []hubtest.Fault {
	return fixed(hubtest.EditRedirect(edit))
}

// requests is how often the faulty host may be asked for a single stream: until a resume
// goes through, or three times, or, where asking again can't help, once.
func (row *blobFault) requests(fared ending) int {
	switch {
	case row.harmless, row.once != whole:
		return 1
	case fared == whole, row.name == "silence at the cdn": // 4 s each: there is no time for a third
		return 2
	case strings.HasSuffix(row.name, "loop"), row.name == "redirect to itself":
		return 3 * 6
	}
	return 3
}

// internalHosts are where a redirect must not lead while the upstream is public.
var internalHosts = []string{"127.0.0.1", "[::1]", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "0.0.0.0"}

func blobFaults() []blobFault {
	at := func(fault func(int64) hubtest.Fault, more ...hubtest.Fault) func(fetching) []hubtest.Fault {
		return func(f fetching) []hubtest.Fault { return append(more, fault(f.offset)) }
	}
	rows := []blobFault{
		// In the body.
		{name: "cut", face: hubtest.CDN, faults: at(hubtest.CutAfter), once: whole, always: whole},
		{name: "cut at the first byte", face: hubtest.CDN, faults: fixed(hubtest.CutAfter(0)), once: whole, always: either},
		{name: "reset in the body", face: hubtest.CDN, faults: at(hubtest.ResetAfter), once: whole, always: whole},
		{name: "stall in the body", face: hubtest.CDN, faults: at(hubtest.StallAfter), once: whole, always: whole},
		{name: "stall at the first byte", face: hubtest.CDN, faults: fixed(hubtest.StallAfter(0)), once: whole, always: either},
		{name: "cut, and a resume gets 200", face: hubtest.CDN, faults: at(hubtest.CutAfter, hubtest.IgnoreRange()), once: whole, always: either},
		{name: "cut without length", face: hubtest.CDN, faults: at(hubtest.CutAfter, hubtest.Chunked()), once: whole, always: whole},
		{name: "shorter without length", face: hubtest.CDN, faults: func(f fetching) []hubtest.Fault {
			return []hubtest.Fault{hubtest.Chunked(), hubtest.Shorter(1000)}
		}, once: whole, always: either},

		// In the headers.
		{name: "shorter", face: hubtest.CDN, faults: fixed(hubtest.Shorter(1000)), once: whole, always: either},
		{name: "longer", face: hubtest.CDN, faults: fixed(hubtest.Longer(1000)), once: whole, always: either},
		{name: "no Content-Length", face: hubtest.CDN, faults: fixed(hubtest.Chunked()), once: whole, always: whole, harmless: true},
		{name: "200 to every range", face: hubtest.CDN, faults: fixed(hubtest.IgnoreRange()), once: whole, always: whole, harmless: true},
		{name: "HTML", face: hubtest.CDN, faults: fixed(hubtest.HTML()), once: whole, always: either},
		{name: "HTML from the registry", face: hubtest.Registry, faults: fixed(hubtest.HTML()), once: whole, always: either},
		{name: "redirect loop", face: hubtest.Registry, faults: fixed(hubtest.RedirectLoop()), once: whole, always: either},
		{name: "redirect to http", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Scheme = "http" }), once: whole, always: either},
		{name: "redirect to a file", face: hubtest.Registry, faults: fixed(hubtest.RedirectTo("file:///etc/passwd")), once: whole, always: either},
		{name: "redirect to itself", face: hubtest.Registry, faults: fixed(hubtest.RedirectTo("")), once: whole, always: either},
		{name: "redirect with credentials", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.User = url.UserPassword("a", "b") }), once: whole, always: either},

		// Before the headers.
		{name: "expired URL", face: hubtest.Registry, faults: fixed(hubtest.ExpiredURL()), once: whole, always: either},
		{name: "host without an address", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Host = "gone.hub.test" }), once: whole, always: either},
	}
	for _, host := range internalHosts {
		rows = append(rows, blobFault{narrow: true, name: "redirect to " + host, face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Host = host }), once: whole, always: either})
	}
	for _, face := range []hubtest.Face{hubtest.Registry, hubtest.CDN} {
		for _, f := range []struct {
			name  string
			fault hubtest.Fault
		}{
			{"connection closed", hubtest.Drop()}, {"connection reset", hubtest.Reset()}, {"silence", hubtest.Hang()},
			{"500", hubtest.Status(500, "oops")}, {"503", hubtest.Status(503, "<html>")},
			{"half a status line", hubtest.Raw(0, "HTTP/1.1 20")}, {"half a header", hubtest.Raw(0, "HTTP/1.1 200 OK\r\nContent-Le")},
		} {
			row := blobFault{name: f.name + " at the " + string(face), face: face, faults: fixed(f.fault), once: whole, always: either}
			if row.name == "silence at the registry" {
				row.once = either // it opens the breaker: the registry has answered nobody for as long
			}
			rows = append(rows, row)
		}
		for _, f := range []struct {
			name  string
			fault hubtest.Fault
			rest  time.Duration
		}{
			{"429", hubtest.TooManyRequests(), time.Minute},
			{"429 with Retry-After", hubtest.TooManyRequests("Retry-After: 200"), 200 * time.Second},
			{"HAP429", hubtest.HAP429(), time.Minute},
		} {
			rows = append(rows, blobFault{name: f.name + " at the " + string(face), face: face, faults: fixed(f.fault), once: either, always: either, rest: f.rest})
		}
	}
	return append(rows,
		blobFault{name: "403 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(403, "<Error/>")), once: whole, always: either},
		blobFault{name: "404 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(404, "<Error/>")), once: whole, always: either},
		blobFault{name: "401 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(401, "<Error/>")), once: whole, always: either},
		blobFault{name: "403 at the registry", face: hubtest.Registry, faults: fixed(hubtest.Status(403, "{}")), once: either, always: either},
		blobFault{name: "404 at the registry", face: hubtest.Registry, faults: fixed(hubtest.Status(404, "{}")), once: either, always: either},
	)
}

// TestBlobFaults is the matrix.
func TestBlobFaults(t *testing.T) {
	for _, row := range blobFaults() {
		for _, how := range fetchings {
			for _, often := range []string{"once", "always"} {
				if row.narrow && (how.skip > 0 || how.ahead || often == "once") ||
					row.face == hubtest.Registry && how.skip > 0 { // it is asked once, for all ranges
					continue
				}
				t.Run(row.name+"/"+how.name+"/"+often, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { blobFaultCell(t, row, how, often == "once") })
				})
			}
		}
	}
}

func blobFaultCell(t *testing.T, row blobFault, how fetching, once bool) {
	l := newLab(t, labOptions{
		hub:    hubtest.Options{TLS: true, Bandwidth: 20 << 20},
		policy: func(p *registry.Policy) { p.ReadAhead = how.ahead },
	})
	trespassed := l.trap()
	layers := l.image("library/app", "1", how.size, how.size)
	target := layers[1]
	if r := l.get("/v2/library/app/manifests/1"); r.status != 200 {
		t.Fatalf("manifest: %d", r.status)
	}
	match := hubtest.Match{Face: row.face, Kind: "blobs", Reference: string(target), Skip: how.skip}
	want := row.always
	if once {
		match.Times, want = 1, row.once
	}
	rule := l.hub.Inject(match, row.faults(how)...)
	if how.ahead {
		c := &visitor{name: "ahead"}
		c.visit(l, "library/app", layers[0])
		if row.rest == 0 { // else what was read ahead may have met the limit first
			c.check(t, l, layers[0], whole)
		}
	}
	start := time.Now()
	cs := l.crowd("library/app", target)
	if rule.Hits() == 0 {
		t.Error("the fault never happened")
	}
	for _, c := range cs {
		c.check(t, l, target, want)
	}
	// What broke after the headers is made up for within 45 s; what broke before them is
	// answered within 10 (check). Stalls without end that bring something each time are a
	// slow upstream, not a broken one.
	slow := row.name == "stall in the body" && !once
	if took := time.Since(start); took > 45*time.Second && !slow {
		t.Errorf("it took %s", took)
	}
	if n := len(*trespassed); n > 0 {
		t.Errorf("went where it must not: %v", *trespassed)
	}
	l.settled(target)
	if how.name == "single stream" {
		asked := l.hub.Ledger().Count(func(e hubtest.Entry) bool { return e.Face == row.face && e.Kind == "blobs" })
		if want := row.requests(want); asked != want {
			t.Errorf("%d requests to the %s instead of %d:\n%s", asked, row.face, want, l.hub.Ledger())
		}
	}
	rule.Remove()
	time.Sleep(max(row.rest, 20*time.Second) + time.Second) // a body that broke is remembered for 20 s
	l.fetch("library/app", target)
	l.settled(target)
	l.hub.ResetLedger()
	l.fetch("library/app", target)
	if got := l.hub.Ledger(); len(got) > 0 {
		t.Errorf("not kept after the fault was gone:\n%s", got)
	}
	if v := l.hub.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// noise is what layers are made of. The race detector makes synthetic ones slow.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
})

// image adds an image with layers of these sizes and returns their digests.
func (l *lab) image(repository, tag string, sizes ...int64) (layers []digest.Digest) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = l.hub.AddBlob(repository, ocispec.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`))
	for i, size := range sizes {
		b := noise()[i*1000:][:size]
		m.Layers = append(m.Layers, l.hub.AddBlobAt(repository, ocispec.MediaTypeImageLayer, layerDigest(i, size), bytes.NewReader(b), size))
		layers = append(layers, m.Layers[i].Digest)
	}
	b, err := json.Marshal(m)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hub.AddManifest(repository, tag, m.MediaType, b)
	return layers
}

var layerDigests sync.Map

func layerDigest(i int, size int64) digest.Digest {
	key := [2]int64{int64(i), size}
	if d, ok := layerDigests.Load(key); ok {
		return d.(digest.Digest)
	}
	d := digest.FromBytes(noise()[i*1000:][:size])
	layerDigests.Store(key, d)
	return d
}

// trap puts servers where hubcache must not go, and returns who called.
func (l *lab) trap() *[]string {
	var mu sync.Mutex
	var called []string
	for _, host := range append(internalHosts, "cdn.evil.test", "cdn.hub.test:80") {
		l.hub.AddHost(strings.Trim(host, "[]"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			called = append(called, r.Method+" "+r.Host)
		}))
	}
	return &called
}

// visitor is one client of a crowd.
type visitor struct {
	name  string
	from  int64 // offset of the first byte asked for
	leave bool  // goes away after the first bytes

	took   time.Duration // until the headers, or the lack of them
	status int
	header http.Header
	n      int64  // bytes of the blob
	wrong  bool   // some were others
	body   []byte // of an error
	err    error
}

// crowd sends different clients for a blob and returns how they fared: the first one, one
// with a range, one with a range in the back, one that comes later, one that leaves.
func (l *lab) crowd(repository string, d digest.Digest) []*visitor {
	cs := []*visitor{
		{name: "first"},
		{name: "range", from: 100},
		{name: "tail", from: l.hub.Blob(d).Size() - 1000},
		{name: "late"},
		{name: "fickle", leave: true},
	}
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			c.visit(l, repository, d)
		})
	}
	wg.Wait()
	l.idle()
	return cs
}

// idle waits until nothing is fetched: clients have their last byte before the disk has.
func (l *lab) idle() {
	synctest.Wait()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
}

func (c *visitor) visit(l *lab, repository string, d digest.Digest) {
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
		c.body, c.err = io.ReadAll(resp.Body)
	default:
		c.err = c.compare(resp.Body, l.hub.Blob(d))
	}
}

// compare reads a body and holds it against the blob.
func (c *visitor) compare(body io.Reader, b io.ReaderAt) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := body.Read(got)
		b.ReadAt(want[:n], c.from+c.n)
		if !bytes.Equal(got[:n], want[:n]) {
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

// check: right bytes or a broken connection, never a short or wrong success.
func (c *visitor) check(t *testing.T, l *lab, d digest.Digest, want ending) {
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
		c.refusal(t)
	case c.status != 200 && c.status != 206:
		t.Errorf("%s: status %d", c.name, c.status)
	case (c.status == 206) != (c.from > 0):
		t.Errorf("%s: status %d from %d", c.name, c.status, c.from)
	case c.wrong:
		t.Errorf("%s: wrong bytes", c.name)
	case c.err == nil && c.n != rest:
		t.Errorf("%s: a success of %d bytes instead of %d", c.name, c.n, rest)
	case c.err != nil && c.n >= rest:
		t.Errorf("%s: all bytes, and %v", c.name, c.err)
	case c.err == nil:
		got = whole
	}
	if got != want && !(want == either && got != whole) {
		t.Errorf("%s: %d, %d bytes, %v: ending %d instead of %d\n%s", c.name, c.status, c.n, c.err, got, want, l.log)
	}
}

// fetch gets a blob, whole and right.
func (l *lab) fetch(repository string, d digest.Digest) {
	l.t.Helper()
	c := &visitor{name: "fetch"}
	c.visit(l, repository, d)
	c.check(l.t, l, d, whole)
}

// refusal: a blob that can't be had is 429 with Retry-After or 404, never 5xx and never 401.
func (c *visitor) refusal(t *testing.T) {
	t.Helper()
	if c.status != 404 && (c.status != 429 || c.header.Get("Retry-After") == "") || c.header.Get("Www-Authenticate") != "" {
		t.Errorf("%s: refused with %d %v", c.name, c.status, c.header)
	}
	if !bytes.HasPrefix(c.body, []byte(`{"errors":[`)) {
		t.Errorf("%s: error body %q", c.name, c.body)
	}
}

// settled: nothing in ingest/ that can't be gone on with, books equal to the disk, nothing
// reserved, and what is committed has its digest.
func (l *lab) settled(ds ...digest.Digest) {
	l.t.Helper()
	l.idle()
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
