package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// through puts f between the registry and the Hub.
func (l *lab) through(f func(req *http.Request, next http.RoundTripper) (*http.Response, error)) {
	l.stop()
	next := l.hub.Transport()
	l.transport = tripper(func(r *http.Request) (*http.Response, error) { return f(r, next) })
	l.start()
}

// One hiccup, and who pulls by digest gets 503 for ever.
func TestBreakerLocksOutDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "library/half", "1")
		path := "/v2/library/half/manifests/" + string(img.Digest)
		if r := l.get(path); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Hang())
		l.get(blobPath("library/half", img.Manifests[0].Layers[0].Digest))
		l.hub.ClearFaults() // a hiccup of some seconds
		time.Sleep(time.Hour)
		l.hub.ResetLedger()
		for range 5 {
			if r := l.get(path); r.status != 200 {
				t.Errorf("an hour after the hiccup: %d %s; upstream saw %d requests", r.status, r.body, len(l.hub.Ledger()))
			}
			time.Sleep(time.Minute)
		}
	})
}

// The same after a refused credential that was replaced since.
func TestRefusedLocksOutDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "library/half", "1")
		path := "/v2/library/half/manifests/" + string(img.Digest)
		if r := l.get(path); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Hour)
		if err := os.WriteFile(l.cred.Path(), []byte("dckr_pat_wrong\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.cred.Reload()
		l.get("/v2/library/half/manifests/other")
		os.WriteFile(l.cred.Path(), []byte(pat+"\n"), 0o600)
		l.cred.Reload()
		time.Sleep(time.Hour)
		l.hub.ResetLedger()
		if r := l.get(path); r.status != 200 {
			t.Errorf("an hour after the credential was mended: %d %s; upstream saw %d requests", r.status, r.body, len(l.hub.Ledger()))
		}
	})
}

// A Location that Go can't parse goes into log and answer, signature and all.
func TestUnparsableLocationLeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.through(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.StatusCode == 307 {
				resp.Header.Set("Location", "https://cdn.test/%zz?X-Amz-Signature=SECRETSIGNATURE")
			}
			return resp, err
		})
		img := small(l, "library/redis", "7")
		r := l.get(blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
		if strings.Contains(string(r.body), "SECRETSIGNATURE") {
			t.Errorf("client: %d %s", r.status, r.body)
		}
		if strings.Contains(l.log.String(), "SECRETSIGNATURE") {
			t.Errorf("log: %s", l.log)
		}
	})
}

// A client that has sent all it has to say and half-closes gets an empty 200.
func TestHalfClosedClientGetsEmpty200(t *testing.T) {
	l := &lab{t: t, hub: hubtest.New(hubtest.Options{}), opts: labOptions{anonymous: true, budget: 1 << 30}, dir: t.TempDir(), log: &logBuffer{}}
	l.start()
	defer l.hub.Close()
	defer l.stop()
	img := small(l, "library/redis", "7")
	l.hub.Inject(hubtest.Match{Kind: "blobs"}, hubtest.Delay(time.Second))
	srv := httptest.NewServer(l.reg)
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cache\r\n\r\n", blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
	c.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return // cut: right
	}
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode == 200 && err == nil && len(b) == 0 {
		t.Errorf("%d with %d bytes, cleanly ended: %v", resp.StatusCode, len(b), resp.Header)
	}
}

// The disk can't open a blob: HEAD under any repository says 200 without asking anybody.
func TestHeadPastTheLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/*"} }})
		secret := small(l, "corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		small(l, "evil/public", "1")
		l.pull(secret)
		time.Sleep(time.Second) // until it is committed
		d := secret.Manifests[0].Layers[0].Digest
		file := filepath.Join(l.dir, "data", "blobs", "sha256", d.Encoded()[:2], d.Encoded())
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, file); err != nil {
			t.Fatal(err)
		}
		if _, err := l.store.Open(d); err == nil {
			t.Fatal("opened")
		} else {
			t.Log(err)
		}
		// any error of open(2) but ENOENT: EMFILE, EIO
		if r := l.do("HEAD", blobPath("evil/public", d)); r.status != 404 {
			t.Errorf("HEAD: %d %v", r.status, r.header)
		}
		if r := l.do("GET", blobPath("evil/public", d)); r.status != 404 {
			t.Errorf("GET: %d %v", r.status, r.header)
		}
	})
}

// An answer begun before SetPolicy is kept in memory after it.
func TestHotSurvivesPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := small(l, "library/redis", "7")
		l.pull(img)
		l.hub.AddManifest("other/copy", "1", img.MediaType, img.Bytes)
		l.hub.Inject(hubtest.Match{Repository: "other/copy"}, hubtest.Delay(time.Second))
		path := "/v2/other/copy/manifests/" + string(img.Digest)
		done := make(chan bool)
		go func() { l.get(path); close(done) }()
		time.Sleep(500 * time.Millisecond)
		if err := l.reg.SetPolicy(registry.Policy{Deny: []string{"other/*"}}); err != nil {
			t.Fatal(err)
		}
		<-done
		if r := l.get(path); r.status != 404 {
			t.Errorf("denied, and yet %d %s", r.status, r.header.Get("X-Hubcache"))
		}
	})
}

// Read-ahead of several images is not bounded by limits.orphans, and takes the slots.
func TestReadAheadIsUnbounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) { p.ReadAhead = true }, hub: hubtest.Options{Bandwidth: 40_000}})
		var first []digest.Digest
		var names []string
		for n := range 5 {
			name := fmt.Sprintf("library/image%d", n)
			var layers []hubtest.Layer
			for range 9 {
				layers = append(layers, hubtest.Layers(1, 2*mib)...)
			}
			img := l.hub.AddImage(name, "1", hubtest.ImageSpec{Layers: layers})
			if len(img.Manifests[0].Layers) != 9 {
				t.Fatal(len(img.Manifests[0].Layers))
			}
			l.get(manifestPath(img))
			first = append(first, img.Manifests[0].Layers[0].Digest)
			names = append(names, name)
		}
		status := make(chan string, 10)
		for n := range first {
			go func() {
				r, err := l.ask(context.Background(), "GET", blobPath(names[n], first[n]))
				if err != nil {
					status <- err.Error()
					return
				}
				io.Copy(io.Discard, r.Body)
				r.Body.Close()
				status <- fmt.Sprint(r.StatusCode)
			}()
			time.Sleep(time.Second)
		}
		idle := 0
		for _, i := range l.reg.Stats().Inflight {
			if i.Readers == 0 {
				idle++
			}
		}
		if idle > fetch.DefaultLimits().Orphans {
			t.Errorf("%d downloads that nobody reads, limits.orphans is %d", idle, fetch.DefaultLimits().Orphans)
		}
		for range first {
			if s := <-status; s != "200" {
				t.Errorf("a client's own layer: %s", s)
			}
		}
		l.quiet()
	})
}

// An image larger than the budget: read-ahead pushes out what was read ahead.
func TestReadAheadWithLittleRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, on := range []bool{false, true} {
			l := newLab(t, labOptions{anonymous: true, budget: 10 * mib, policy: func(p *registry.Policy) { p.ReadAhead = on }})
			img := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(8, 3*mib)})
			l.get(manifestPath(img))
			l.hub.ResetLedger()
			for _, layer := range img.Manifests[0].Layers {
				l.blob("library/big", string(layer.Digest))
				time.Sleep(time.Second)
			}
			l.quiet()
			if n := l.hub.Ledger().BlobGETs(); n > 8 {
				t.Errorf("read-ahead %v: 8 layers cost %d downloads", on, n)
			}
		}
	})
}

// A CDN that honours the first ranges and then sends the whole blob, with wrong bytes
// where others have been written and hashed.
func TestWholeBodyOverOthersChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		_, d := oneLayer(l, 24*mib)
		l.through(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			rng := req.Header.Get("Range")
			// the second chunk is late, and answered with the whole blob, whose end is wrong
			if strings.HasPrefix(rng, "bytes=4194304-") && strings.Contains(req.URL.Path, "data") || strings.HasPrefix(rng, "bytes=4194304-") && req.URL.Host != "" && !strings.Contains(req.URL.Path, "/v2/") {
				time.Sleep(3 * time.Second)
				req = req.Clone(req.Context())
				req.Header.Del("Range")
				resp, err := next.RoundTrip(req)
				if err == nil && resp.StatusCode == 200 {
					resp.Body = &flipper{ReadCloser: resp.Body, from: 10 * mib}
				}
				return resp, err
			}
			return next.RoundTrip(req)
		})
		l.get("/v2/library/one/manifests/1")
		r := l.get(blobPath("library/one", d))
		t.Logf("%d, %d bytes, %v\n%s", r.status, len(r.body), r.err, l.hub.Ledger())
		if r.err == nil && r.status == 200 && digest.FromBytes(r.body) != d {
			t.Error("wrong bytes with a clean end")
		}
		l.quiet()
		b, err := l.store.Open(d)
		if err != nil {
			return
		}
		defer b.Close()
		if l.store.Verify(t.Context(), d) != nil {
			t.Error("wrong bytes in the store")
		}
	})
}

type flipper struct {
	io.ReadCloser
	at, from int64
}

func (f *flipper) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond) // a real CDN is slower than the hasher
	n, err := f.ReadCloser.Read(p)
	for i := range n {
		if f.at+int64(i) >= f.from {
			p[i] ^= 0xff
		}
	}
	f.at += int64(n)
	return n, err
}

// A small blob whose body stalls: no headers for how long?
func TestSmallBlobThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := small(l, "library/redis", "7")
		l.get(manifestPath(img))
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(100))
		defer l.hub.ClearFaults()
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		resp, err := l.ask(ctx, "GET", blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
		took := time.Since(start)
		if err == nil {
			resp.Body.Close()
		}
		if took > 30*time.Second {
			t.Errorf("no headers for %s: %v", took, err)
		}
	})
}

// A cold tag at a Hub that is slow at each step.
func TestColdTagWithinFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := small(l, "library/redis", "7")
		l.pull(small(l, "library/redis", "6"))
		l.hub.Inject(hubtest.Match{Kind: "manifests", Method: "HEAD"}, hubtest.Delay(3*time.Second))
		l.hub.Inject(hubtest.Match{Kind: "manifests", Method: "GET"}, hubtest.Hang())
		defer l.hub.ClearFaults()
		start := time.Now()
		r := l.get(manifestPath(img))
		t.Log(r.status, time.Since(start), l.hub.Ledger())
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%d after %s", r.status, took)
		}
	})
}

// A verdict from a clock that was wrong.
func TestVerdictOfTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "corp/app", "1")
		l.store.SetVisibility("docker.io/corp/app", storage.Visibility{Public: false, At: time.Now().Add(10 * 365 * 24 * time.Hour)})
		for range 3 {
			l.get(manifestPath(img))
			time.Sleep(5 * time.Minute)
		}
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Errorf("a public repository after 15 minutes: %d", r.status)
		}
	})
}

// Who comes while an orphan is being cancelled.
func TestJoinDyingFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 50_000}, policy: func(p *registry.Policy) { p.Limits.Orphans = 1 }})
		img := l.hub.AddImage("library/two", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2*mib)})
		l.through(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.ContentLength > mib {
				resp.Body = lingering{resp.Body}
			}
			return resp, err
		})
		l.get(manifestPath(img))
		a, b := img.Manifests[0].Layers[0].Digest, img.Manifests[0].Layers[1].Digest
		for _, d := range []digest.Digest{a, b} {
			ctx, cancel := context.WithCancel(context.Background())
			resp, err := l.ask(ctx, "GET", blobPath("library/two", d))
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, resp.Body, 1000)
			cancel()
			resp.Body.Close()
			time.Sleep(200 * time.Millisecond)
		}
		r := l.get(blobPath("library/two", b))
		if r.status != 200 || r.err != nil || len(r.body) != 2*mib {
			t.Errorf("%d, %d bytes, %v %s\n%s", r.status, len(r.body), r.err, r.body[:min(len(r.body), 300)], l.log)
		}
	})
}

// lingering is a body that takes a second to notice that it is cancelled.
type lingering struct{ io.ReadCloser }

func (b lingering) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		time.Sleep(time.Second)
	}
	return n, err
}

// A bypass whose client pauses.
func TestSlowBypassClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, budget: 4 * mib})
		_, d := oneLayer(l, 8*mib)
		resp, err := l.ask(context.Background(), "GET", blobPath("library/one", d))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		total := int64(0)
		for {
			n, err := io.CopyN(io.Discard, resp.Body, mib)
			total += n
			if err != nil {
				break
			}
			time.Sleep(15 * time.Second) // a slow disk over there
		}
		if n := l.hub.Ledger().BlobGETs(); total != 8*mib || n > 1 {
			t.Errorf("%d bytes, %d downloads, resumes %d", total, n, l.reg.Stats().Resumes)
		}
	})
}

// The theft of access_test.go once more, after the index was rebuilt.
func TestStealAfterRebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/*"} }})
		secret := small(l, "corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		layer := secret.Manifests[0].Layers[0].Digest
		orphan := l.hub.AddBlob("corp/secret", "application/octet-stream", bytes.Repeat([]byte("s3cret"), 1000)).Digest
		forged := []byte(`{"schemaVersion":2,"config":{"digest":"` + string(secret.Manifests[0].Config.Digest) + `","size":1},"layers":[{"digest":"` + string(layer) + `","size":65536},{"digest":"` + string(orphan) + `","size":6000}]}`)
		l.hub.AddManifest("evil/forged", "1", "application/vnd.oci.image.manifest.v1+json", forged)
		l.hub.AddManifest("evil/public", "index", "application/vnd.oci.image.index.v1+json",
			[]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(secret.Digest)+`","size":1}]}`))
		l.pull(secret)
		l.blob("corp/secret", string(orphan))
		l.get("/v2/evil/public/manifests/index")
		l.get("/v2/evil/forged/manifests/1")
		paths := []string{blobPath("evil/forged", layer), blobPath("evil/forged", orphan), "/v2/evil/public/manifests/" + string(secret.Digest)}
		for _, p := range paths {
			if r := l.get(p); r.status != 404 {
				t.Errorf("before: %s %d", p, r.status)
			}
		}
		time.Sleep(5 * time.Second)
		l.stop()
		os.Remove(filepath.Join(l.dir, "data", "index.db"))
		l.start()
		for _, p := range paths {
			if r := l.get(p); r.status != 404 {
				t.Errorf("after a rebuild: %s %d %.60q", p, r.status, r.body)
			}
		}
	})
}

// A manifest whose record was lost with a crash costs a pull each time.
func TestAdoptedManifestCostsQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := small(l, "library/redis", "7")
		l.pull(img)
		l.stop() // and now as if killed between rename and index
		os.Remove(filepath.Join(l.dir, "data", "index.db"))
		os.RemoveAll(filepath.Join(l.dir, "data", "repos"))
		l.start()
		l.get(manifestPath(img))
		time.Sleep(10 * time.Minute)
		l.hub.ResetLedger()
		for range 3 {
			l.get("/v2/library/redis/manifests/" + string(img.Digest))
			time.Sleep(10 * time.Minute)
		}
		if n := l.hub.Ledger().ManifestGETs(); n != 0 {
			t.Errorf("%d GETs of a manifest that is on disk", n)
		}
	})
}

// Lists are bounded by number, not by bytes.
func TestListsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		body := []byte(`{"name":"library/x","tags":["` + strings.Repeat("a", 3*mib) + `"]}`)
		l.through(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range 60 {
			l.get(fmt.Sprintf("/v2/library/x/tags/list?n=1000&last=%d", n))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 64*mib {
			t.Errorf("60 requests (512 are kept) took %d MiB", grew/mib)
		}
	})
}

// HTTP/1.0, as nginx speaks to its upstreams by default, and a blob of unknown length.
func TestHTTP10UnknownLength(t *testing.T) {
	l := &lab{t: t, hub: hubtest.New(hubtest.Options{}), opts: labOptions{anonymous: true, budget: 1 << 30}, dir: t.TempDir(), log: &logBuffer{}}
	l.start()
	defer l.hub.Close()
	defer l.stop()
	d := l.hub.AddBlob("library/x", "application/octet-stream", bytes.Repeat([]byte("0123456789abcdef"), mib/2)).Digest
	l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked(), hubtest.FlipByte(5*mib))
	srv := httptest.NewServer(l.reg)
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\nHost: cache\r\n\r\n", blobPath("library/x", d))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return
	}
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode == 200 && err == nil && digest.FromBytes(b) != d {
		t.Errorf("%d bytes of %d, cleanly ended: %s %v", len(b), 8*mib, resp.Proto, resp.Header)
	}
}

// What is asked for when the server stops is written after the store is closed.
func TestWriteAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		l.pull(small(l, "library/redis", "7"))
		time.Sleep(2 * time.Minute)
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1000)})
		l.hub.Inject(hubtest.Match{Kind: "manifests"}, hubtest.Delay(2*time.Second))
		ctx, cancel := context.WithTimeout(context.Background(), 1600*time.Millisecond)
		defer cancel()
		if resp, err := l.ask(ctx, "GET", "/v2/library/redis/manifests/7"); err == nil {
			resp.Body.Close()
		}
		l.stop()
		l.hub.ResetLedger()
		time.Sleep(10 * time.Second)
		if len(l.hub.Ledger()) > 0 {
			t.Errorf("after Close:\n%s", l.hub.Ledger())
		}
		_, err := os.Stat(filepath.Join(l.dir, "data", "blobs", "sha256", img.Digest.Encoded()[:2], img.Digest.Encoded()))
		if err == nil {
			t.Error("a manifest was written after Close, past the closed index")
		}
		if i := strings.Index(l.log.String(), "level=ERROR"); i >= 0 {
			t.Error(l.log.String()[i:])
		}
		l.start()
	})
}

// A manifest for which there is no room still tells how large its layers are: a Range of one
// that comes without a length was answered with all of it.
func TestUnkeptManifestTellsSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, budget: 100})
		d := l.image("library/app", "1", 5<<18)[0]
		if r := l.get("/v2/library/app/manifests/1"); r.header.Get("X-Hubcache") != "bypass" {
			t.Fatalf("%d %v", r.status, r.header)
		}
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
		resp, err := l.ask(t.Context(), "GET", blobPath("library/app", d), "Range", "bytes=1000-")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 206 || err != nil || len(b) != 5<<18-1000 {
			t.Errorf("%s, %d bytes, %v", resp.Status, len(b), err)
		}
	})
}

// TestRangeOfUnknownLength: nothing says how long the blob is, neither a manifest nor the
// CDN: the range is sent when the blob has come.
func TestRangeOfUnknownLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		b := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
		d := l.hub.AddBlob("library/app", "application/octet-stream", b).Digest
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
		r := l.get(blobPath("library/app", d), "Range", "bytes=1000-1999")
		if r.status != 206 || !bytes.Equal(r.body, b[1000:2000]) {
			t.Errorf("%d, %d bytes", r.status, len(r.body))
		}
	})
}
