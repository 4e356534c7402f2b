package tier

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/tiertest"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/tier/lease"
)

const app = "library/app"

// TestAStampedeOverNodesIsOneDownload: all nodes want a blob at the same time, while it is half there.
func TestAStampedeOverNodesIsOneDownload(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	blob := random(9<<20, 1)
	d := l.upstream.add(app, blob)
	gate := make(chan struct{})
	l.upstream.gate = gate
	var nodes []*node
	var wg sync.WaitGroup
	for range 4 {
		n := l.node(nil)
		nodes = append(nodes, n)
		wg.Go(func() { n.wants(app, d) })
	}
	l.eventually("all have some of it", func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool {
			return !slices.ContainsFunc(n.pool.Stats().Inflight, func(f fetch.Inflight) bool { return f.Received > 0 })
		})
	})
	close(gate)
	wg.Wait()
	if got := l.upstream.sentBytes(); got != int64(len(blob)) {
		t.Errorf("the upstream has sent %d bytes of %d", got, len(blob))
	}
	var hits int64
	for _, n := range nodes {
		hits += n.tier.Stats().Bytes
	}
	if hits != 3*int64(len(blob)) {
		t.Errorf("%d bytes came from another node", hits)
	}
	l.eventually("it is in the bucket", func() bool { return l.s3.Object(blobName(d)) != nil })
	l.eventually("its link too", func() bool { return l.s3.Object(linkName("docker.io/"+app, d)) != nil })
	l.eventually("the lease is given back", func() bool {
		held, _ := l.leases.Extend(t.Context(), string(d), lease.Lease{}, 0)
		return held
	})
}

// TestANodeServesWhatAnotherHasFetched: an empty one, while the upstream is down.
func TestANodeServesWhatAnotherHasFetched(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	var blobs []digest.Digest
	for i, size := range []int{0, 1, 1000, 1 << 20, 1<<20 + 1, 3 << 20} {
		blobs = append(blobs, l.upstream.add(app, random(size, byte(i))))
	}
	body := []byte(`{"schemaVersion":2}`)
	manifest := l.upstream.add(app, body)
	l.upstream.tags[app+":1"] = manifest

	first := l.node(nil)
	if r, err := first.source.Resolve(ctx, app, fetch.Manifests, "1"); err != nil || r.Digest != manifest || !r.Checked.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
	m, err := first.source.Manifest(ctx, app, string(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.store.PutManifest(storage.Origin{Repository: "docker.io/" + app}, manifest, m.MediaType, m.Body); err != nil {
		t.Fatal(err)
	}
	for _, d := range blobs {
		first.wants(app, d)
	}
	first.uploaded()
	l.eventually("the tag is in the bucket", func() bool {
		return l.s3.Object(tagName("docker.io/"+app, "1")) != nil && l.s3.Object(verdictName("docker.io/"+app, true)) != nil
	})
	first.stop()
	before := time.Now()

	l.upstream.setDown(true)
	l.upstream.requests()
	second := l.node(nil)
	r, err := second.source.Resolve(ctx, app, fetch.Manifests, "1")
	if err != nil || r.Digest != manifest || r.Size != int64(len(body)) || r.MediaType != m.MediaType || r.Checked.IsZero() || r.Checked.After(before) {
		t.Errorf("the tag: %+v, %v", r, err)
	}
	if got, err := second.source.Manifest(ctx, app, string(manifest)); err != nil || string(got.Body) != string(body) || got.MediaType != m.MediaType {
		t.Errorf("the manifest: %+v, %v", got, err)
	}
	for _, d := range blobs {
		second.wants(app, d)
	}
	if got := l.upstream.requests(); !slices.Equal(got, []string{"resolve " + app}) {
		t.Errorf("the upstream was asked %v", got)
	}
	for k, d := range map[fetch.Kind]digest.Digest{fetch.Manifests: manifest, fetch.Blobs: blobs[2]} {
		if r, err := second.source.Resolve(ctx, app, k, string(d)); err != nil || r.Digest != d {
			t.Errorf("%s by digest: %+v, %v", k, r, err)
		}
		if err := second.source.Confirm(ctx, app, k, d); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	// Another repository has none of it.
	if _, err := second.source.Manifest(ctx, "library/other", string(manifest)); err == nil {
		t.Error("a manifest of another repository was served")
	}
	third := l.node(nil)
	if got, err := third.get("library/other", blobs[2]); err == nil {
		t.Errorf("a blob of another repository was served: %d bytes", len(got))
	}
	if _, err := second.source.Resolve(ctx, app, fetch.Manifests, "2"); !isDown(err) {
		t.Errorf("a tag that nobody has asked for: %v", err)
	}
}

// TestWrongBytesOfTheBucketAreNeverServed: they are dropped, and fetched again.
func TestWrongBytesOfTheBucketAreNeverServed(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small": 1000, "large": 3 << 20} {
		for how, spoil := range map[string]func([]byte) []byte{
			"a wrong byte": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"truncated":    func(b []byte) []byte { return b[:len(b)-1] },
			"empty":        func([]byte) []byte { return nil },
			"longer":       func(b []byte) []byte { return append(b, 0) },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				blob := random(size, 7)
				d := l.upstream.add(app, blob)
				l.s3.Set(blobName(d), &tiertest.Object{Body: spoil(slices.Clone(blob))})
				n := l.node(nil)
				n.source.Confirm(t.Context(), app, fetch.Blobs, d)
				got, err := n.get(app, d)
				if err == nil && digest.FromBytes(got) != d {
					t.Fatal("wrong bytes were served as a success")
				}
				if err != nil && size <= storage.VerifyFirst {
					t.Errorf("the client of a small blob has noticed: %v", err)
				}
				n.wants(app, d)
				n.uploaded()
				if o := l.s3.Object(blobName(d)); o == nil || digest.FromBytes(o.Body) != d {
					t.Error("the bucket still has the wrong bytes, or none")
				}
				if n.tier.Stats().Mismatches == 0 {
					t.Error("nobody is told")
				}
			})
		}
	}
}

// TestAManifestOfWrongBytesIsFetchedAgain, and one that isn't even one.
func TestAManifestOfWrongBytesIsFetchedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	body := []byte(`{"schemaVersion":2}`)
	d := l.upstream.add(app, body)
	n := l.node(nil)
	l.s3.Set(linkName("docker.io/"+app, d), &tiertest.Object{Body: []byte(`{"schema":1}`)})
	for _, wrong := range [][]byte{[]byte(`{"schemaVersion":3}`), nil, make([]byte, maxManifest+1)} {
		l.s3.Set(manifestName(d), &tiertest.Object{Body: wrong})
		if m, err := n.source.Manifest(t.Context(), app, string(d)); err != nil || string(m.Body) != string(body) || m.Host != "memory" {
			t.Errorf("%d wrong bytes: %+v, %v", len(wrong), m, err)
		}
	}
}

// TestWhenTheHolderDies: who reads from it goes on where it was, by one of them.
func TestWhenTheHolderDies(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	blob := random(6<<20, 3)
	d := l.upstream.add(app, blob)
	gate := make(chan struct{})
	l.upstream.gate = gate
	holder := l.node(nil)
	go holder.get(app, d)
	l.eventually("the first has some of it", func() bool { return l.upstream.sentBytes() >= int64(len(blob)/2) })
	var wg sync.WaitGroup
	var others []*node
	for range 2 {
		n := l.node(nil)
		others = append(others, n)
		wg.Go(func() { n.wants(app, d) })
	}
	l.eventually("the others read from it", func() bool {
		return !slices.ContainsFunc(others, func(n *node) bool { return n.tier.Stats().Bytes < 1<<20 })
	})
	holder.die()
	close(gate)
	wg.Wait()
	// The one that takes over asks for what it lacks; the other one has it from there.
	if got := l.upstream.sentBytes(); got > 2*int64(len(blob)) {
		t.Errorf("the upstream has sent %d bytes of %d", got, len(blob))
	}
}

// TestAHostileNode: whatever the holder of a lease sends, nobody gets wrong bytes as a success, and
// a second try succeeds.
func TestAHostileNode(t *testing.T) {
	t.Parallel()
	blob := random(3<<20, 4)
	d := digest.FromBytes(blob)
	wrong := slices.Clone(blob)
	wrong[len(wrong)-1] ^= 1
	for name, answer := range map[string]http.HandlerFunc{
		"wrong bytes": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(wrong)))
		},
		"too short": func(w http.ResponseWriter, r *http.Request) { w.Write(blob[:1<<20]) },
		"no end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.Write(blob[:1<<20])
		},
		"another range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(206)
			io.WriteString(w, "hello")
		},
		"401": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
		"cut": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.upstream.add(app, blob)
			hostile := httptest.NewServer(answer)
			defer hostile.Close()
			l.leases.held[string(d)] = lease.Of(hostile.URL)
			n := l.node(nil)
			if got, err := n.get(app, d); err == nil && digest.FromBytes(got) != d {
				t.Fatal("wrong bytes were served as a success")
			}
			n.wants(app, d)
		})
	}
	for _, url := range []string{"file:///etc/passwd", "http://", "nonsense", "http://127.0.0.1:1"} {
		l := newLab(t)
		l.upstream.add(app, blob)
		l.leases.held[string(d)] = lease.Of(url)
		l.node(nil).wants(app, d)
	}
}

// TestASickTierIsNone: the node goes on alone, says so once a minute, and takes it up again.
func TestASickTierIsNone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.s3.Fault(refuse)
	l.leases.fail = errRefused
	n := l.node(nil)
	var all []digest.Digest
	for i := range 20 {
		d := l.upstream.add(app, random(2000, byte(i)))
		all = append(all, d)
		n.wants(app, d)
		if _, err := n.source.Manifest(t.Context(), app, string(d)); err != nil {
			t.Error(err)
		}
	}
	l.eventually("all that is to be uploaded is known", func() bool { return n.tier.Stats().Uploads == 40 })
	if s := n.tier.Stats(); !strings.Contains(s.Bucket, "503") || !strings.Contains(s.Lease, "refused") || s.Hits != 0 || s.Uploads != 40 {
		t.Errorf("%+v", s)
	}
	for _, engine := range []string{"bucket", "lease"} {
		if c := l.log.count("unwell; this node goes on alone\" engine=" + engine); c != 1 {
			t.Errorf("%d log lines of the %s", c, engine)
		}
	}
	if got := len(l.s3.Requests()); got > 40 {
		t.Errorf("a bucket that refuses was asked %d times for 40 things", got)
	}
	l.s3.Fault(nil)
	l.leases.mu.Lock()
	l.leases.fail = nil
	l.leases.mu.Unlock()
	n.uploaded()
	for _, d := range all {
		if l.s3.Object(blobName(d)) == nil || l.s3.Object(manifestName(d)) == nil {
			t.Errorf("%s is not in the bucket", d)
		}
	}
	if s := n.tier.Stats(); s.Bucket != "well" {
		t.Errorf("%+v", s)
	}
}

// TestABodyOfTheBucketThatBreaksGoesOn from the upstream, where it was.
func TestABodyOfTheBucketThatBreaksGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	blob := random(3<<20, 5)
	d := l.upstream.add(app, blob)
	l.s3.Set(blobName(d), &tiertest.Object{Body: blob})
	l.s3.Set(linkName("docker.io/"+app, d), &tiertest.Object{Body: []byte(`{"schema":1}`)})
	l.s3.Fault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "blobs") && r.Method == http.MethodGet {
			w = &cutting{ResponseWriter: w, left: 1 << 20}
		}
		next.ServeHTTP(w, r)
	})
	l.node(nil).wants(app, d)
	if got := l.upstream.sentBytes(); got == 0 || got > 2<<20 {
		t.Errorf("the upstream has sent %d bytes", got)
	}
}

// cutting breaks an answer after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// TestAPrivateBlobNeedsTheUpstreamsWord: that a manifest of a repository names it proves nothing.
func TestAPrivateBlobNeedsTheUpstreamsWord(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.upstream.add("me/secret", random(1000, 6))
	first := l.node(nil)
	b := fetch.Blob{Digest: d, Size: -1, Origin: storage.Origin{Repository: "docker.io/me/secret", Private: true}, Source: first.source.Blob("me/secret", d)}
	f, _, err := first.pool.Start(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	f.Reader(t.Context(), nil)
	f.Leave()
	first.uploaded()
	if o := l.s3.Object(blobName(d)); o == nil || o.Header.Get("X-Amz-Meta-Hubcache-Private") == "" {
		t.Fatalf("the bucket doesn't know that it is private: %+v", o)
	}
	second := l.node(nil)
	named := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":"x","digest":%q,"size":1000},"layers":[]}`, d)
	if err := second.store.PutManifest(storage.Origin{Repository: "docker.io/" + app}, digest.FromBytes(named), "application/vnd.oci.image.manifest.v1+json", named); err != nil {
		t.Fatal(err)
	}
	if got, err := second.get(app, d); err == nil {
		t.Errorf("served %d bytes under a repository that hasn't got it", len(got))
	}
	second.wants("me/secret", d)
}

// TestUploadsOutliveTheProcess, and what has gone meanwhile is given up.
func TestUploadsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.s3.Fault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut && r.URL.Query().Get("partNumber") != "1" {
			tiertest.Refuse(w, http.StatusInsufficientStorage, "StorageFull")
			return
		}
		next.ServeHTTP(w, r)
	})
	n := l.node(nil)
	large, gone := l.upstream.add(app, random(2<<20, 1)), l.upstream.add(app, random(1000, 2))
	n.wants(app, large)
	n.wants(app, gone)
	l.eventually("the first part is sent", func() bool {
		return slices.ContainsFunc(l.s3.Requests(), func(r string) bool { return strings.HasSuffix(r, "?2") })
	})
	l.eventually("both are to be uploaded", func() bool { return n.tier.Stats().Uploads == 2 })
	n.tier.Close()
	n.store.Remove(gone)
	l.s3.Fault(nil)
	again, err := New(Options{Store: n.store, Dir: n.dir + "/uploads", Bucket: l.bucket(), pace: quick})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	l.eventually("all uploads", func() bool { return again.Stats().Uploads == 0 })
	if o := l.s3.Object(blobName(large)); o == nil || digest.FromBytes(o.Body) != large {
		t.Error("the blob is not in the bucket")
	}
	if slices.ContainsFunc(l.s3.Requests(), func(r string) bool { return strings.HasSuffix(r, "?1") }) {
		t.Error("the first part was sent again")
	}
	if l.s3.Object(blobName(gone)) != nil || l.s3.Uploads() != 0 {
		t.Error("what is gone is in the bucket")
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, url := range []string{"", "10.0.0.1:5000", "ftp://10.0.0.1", "http://10.0.0.1:5000/path", "http://me:secret@10.0.0.1"} {
		if _, err := New(Options{Dir: t.TempDir(), Leases: l.leases, Advertise: url}); err == nil {
			t.Errorf("%q was taken", url)
		}
	}
}

// TestOnlyNodesKnowTheToken: nobody else is taken for one.
func TestOnlyNodesKnowTheToken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.node(nil)
	d, other := digest.FromString("a"), digest.FromString("b")
	if _, mine, err := n.tier.holds.take(t.Context(), d, lease.Lease{}); !mine || err != nil {
		t.Fatal(err)
	}
	token := l.leases.held[string(d)].Token
	if !n.tier.Peer(token, d) || n.tier.Peer("", d) || n.tier.Peer(token+"x", d) || n.tier.Peer(token, other) {
		t.Error("a client is taken for a node, or a node for a client")
	}
	n.tier.holds.release(d)
	if n.tier.Peer(token, d) || errors.Is(l.leases.fail, errRefused) {
		t.Error("the lease is given back, and the token still counts")
	}
}
