package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

const mib = 1 << 20

func blobPath(repository string, d digest.Digest) string {
	return "/v2/" + repository + "/blobs/" + string(d)
}

// oneLayer adds an image with one layer of size bytes and makes its manifest known.
func oneLayer(l *lab, size int64) (img *hubtest.Image, layer digest.Digest) {
	img = l.hub.AddImage("library/one", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, size)})
	if r := l.get(manifestPath(img)); r.status != 200 {
		l.t.Fatal(r.status)
	}
	l.hub.ResetLedger()
	return img, img.Manifests[0].Layers[0].Digest
}

// quiet waits until nothing is in flight and checks books against disk.
func (l *lab) quiet() {
	l.t.Helper()
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(time.Second)
	}
	if st := l.store.Stats(); st.ReservedBytes != 0 || st.Bytes > st.BudgetBytes {
		l.t.Errorf("%+v", st)
	}
}

// The first client leaves at 10 %, others join at the start and half way, one reads
// slowly: everybody gets all, and upstream sends each byte once.
func TestStampede(t *testing.T) {
	for _, ranges := range []int{1, 6} {
		t.Run(fmt.Sprint(ranges, " ranges"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6, Latency: 30 * time.Millisecond},
					policy: func(p *registry.Policy) { p.Limits.Ranges = ranges }})
				const size = 24 * mib
				_, d := oneLayer(l, size)
				path := blobPath("library/one", d)
				var wg sync.WaitGroup
				ctx, leave := context.WithCancel(context.Background())
				wg.Go(func() {
					resp, err := l.ask(ctx, "GET", path)
					if err != nil {
						t.Error(err)
						return
					}
					io.CopyN(io.Discard, resp.Body, size/10)
					leave()
					resp.Body.Close()
				})
				pull := func() {
					start := time.Now()
					resp, err := l.ask(context.Background(), "GET", path)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					var first [1]byte
					io.ReadFull(resp.Body, first[:])
					if took := time.Since(start); took > time.Second {
						t.Errorf("the first byte came after %s", took)
					}
					h := digest.SHA256.Hash()
					h.Write(first[:])
					if n, err := io.Copy(h, resp.Body); err != nil || digest.NewDigest(digest.SHA256, h) != d {
						t.Errorf("%d bytes, %v", n, err)
					}
				}
				for range 8 {
					wg.Go(pull)
				}
				time.Sleep(300 * time.Millisecond)
				for range 2 {
					wg.Go(pull)
				}
				wg.Wait()
				leave()
				l.quiet()
				ledger := l.hub.Ledger()
				if ledger.BlobBytes() != size {
					t.Errorf("upstream sent %d bytes\n%s", ledger.BlobBytes(), ledger)
				}
				if n := ledger.BlobGETs(); ranges == 1 && n != 1 {
					t.Errorf("%d GETs", n)
				}
				if got := l.reg.Stats().Fetched; got < size || got > size+10_000 {
					t.Errorf("fetched %d", got)
				}
			})
		})
	}
}

func TestOnlyClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6}})
		const size = 32 * mib
		_, d := oneLayer(l, size)
		ctx, cancel := context.WithCancel(context.Background())
		resp, err := l.ask(ctx, "GET", blobPath("library/one", d))
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, size/10)
		cancel()
		resp.Body.Close()
		l.quiet()
		l.blob("library/one", string(d))
		if n := l.hub.Ledger().BlobBytes(); n != size {
			t.Errorf("upstream sent %d bytes", n)
		}
	})
}

// Range, HEAD and If-None-Match are alike on hit, shared and miss.
func TestRangeAndConditions(t *testing.T) {
	const size = 3 * mib / 2
	type want struct {
		status       int
		off, n       int64
		contentRange string
	}
	cases := map[string]want{
		"":                     {200, 0, size, ""},
		"bytes=100-":           {206, 100, size - 100, fmt.Sprintf("bytes 100-%d/%d", size-1, size)},
		"bytes=0-":             {206, 0, size, fmt.Sprintf("bytes 0-%d/%d", size-1, size)},
		"bytes=0-99":           {206, 0, 100, fmt.Sprintf("bytes 0-99/%d", size)},
		"bytes=-1":             {206, size - 1, 1, fmt.Sprintf("bytes %d-%d/%d", size-1, size-1, size)},
		"bytes=0-999999999999": {206, 0, size, fmt.Sprintf("bytes 0-%d/%d", size-1, size)},
		"bytes=0--1":           {200, 0, size, ""},
		"bytes=5-1,9-10":       {200, 0, size, ""},
		"bytes=0-1,5-6":        {200, 0, size, ""},
		"chunks=0-1":           {200, 0, size, ""},
		"bytes=99999999-":      {416, 0, -1, fmt.Sprintf("bytes */%d", size)},
		"bytes=524288-1048575": {206, mib / 2, mib / 2, fmt.Sprintf("bytes 524288-1048575/%d", size)},
	}
	for field, w := range cases {
		for _, when := range []string{"miss", "shared", "hit", "bypass"} {
			t.Run(when+" "+field, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := labOptions{hub: hubtest.Options{Bandwidth: 1e6}}
					if when == "bypass" {
						o.budget = mib
					}
					l := newLab(t, o)
					_, d := oneLayer(l, size)
					path := blobPath("library/one", d)
					switch when {
					case "shared":
						go l.get(path)
						time.Sleep(500 * time.Millisecond)
					case "hit":
						l.get(path)
						l.quiet()
					}
					var header []string
					if field != "" {
						header = []string{"Range", field}
					}
					r := l.get(path, header...)
					if r.status != w.status || r.header.Get("Content-Range") != w.contentRange || r.err != nil {
						t.Fatalf("%d %v %v", r.status, r.header, r.err)
					}
					if w.n >= 0 {
						if int64(len(r.body)) != w.n {
							t.Fatalf("%d bytes", len(r.body))
						}
						l.same(string(d), w.off, r.body)
						if got := r.header.Get("X-Hubcache"); got != when {
							t.Errorf("X-Hubcache: %s", got)
						}
					}
					l.quiet()
					if when == "bypass" {
						return
					}
					l.blob("library/one", string(d))
					if n := l.hub.Ledger().BlobBytes(); n != size {
						t.Errorf("upstream sent %d bytes", n)
					}
				})
			})
		}
	}
}

func TestHeadDownloadsNothing(t *testing.T) {
	for _, headOK := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{hub: hubtest.Options{HeadBlobOK: headOK}})
			_, d := oneLayer(l, 3*mib)
			unnamed := l.hub.AddBlobAt("library/one", "", digest.FromBytes([]byte("blob")), bytes.NewReader([]byte("blob")), 4)
			for blob, size := range map[digest.Digest]string{d: fmt.Sprint(3 * mib), unnamed.Digest: "4"} {
				r := l.do("HEAD", blobPath("library/one", blob))
				if r.status != 200 || r.header.Get("Content-Length") != size || r.header.Get("Docker-Content-Digest") != string(blob) {
					t.Errorf("%d %v", r.status, r.header)
				}
			}
			if n := l.hub.Ledger().BlobBytes(); n != 0 {
				t.Errorf("a HEAD fetched %d bytes", n)
			}
			if r := l.do("HEAD", blobPath("library/one", digest.FromString("none"))); r.status != 404 {
				t.Errorf("HEAD of nothing: %d", r.status)
			}
			l.blob("library/one", string(d))
			l.quiet()
			l.hub.ResetLedger()
			r := l.do("HEAD", blobPath("library/one", d))
			if r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(3*mib) || r.header.Get("X-Hubcache") != "hit" {
				t.Errorf("of a hit: %d %v", r.status, r.header)
			}
			r = l.get(blobPath("library/one", d), "If-None-Match", `"`+string(d)+`"`)
			if r.status != 304 || len(r.body) != 0 {
				t.Errorf("If-None-Match: %d", r.status)
			}
			if r := l.get(blobPath("library/one", d), "If-None-Match", `"other"`); r.status != 200 {
				t.Errorf("another ETag: %d", r.status)
			}
			if len(l.hub.Ledger()) > 0 {
				t.Errorf("upstream saw\n%s", l.hub.Ledger())
			}
		})
	}
}

// containerd's parallel fetch: open-ended ranges, each dropped early.
func TestOpenRangesDroppedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6}})
		const size, part = 16 * mib, 2 * mib
		_, d := oneLayer(l, size)
		var wg sync.WaitGroup
		for i := range int64(size / part) {
			wg.Go(func() {
				resp, err := l.ask(context.Background(), "GET", blobPath("library/one", d), "Range", fmt.Sprintf("bytes=%d-", i*part))
				if err != nil || resp.StatusCode != 206 {
					t.Error(resp, err)
					return
				}
				b, err := io.ReadAll(io.LimitReader(resp.Body, part))
				if err != nil || len(b) != part {
					t.Error(len(b), err)
				}
				resp.Body.Close()
				l.same(string(d), i*part, b)
			})
		}
		wg.Wait()
		l.quiet()
		if n := l.hub.Ledger().BlobBytes(); n != size {
			t.Errorf("upstream sent %d bytes", n)
		}
		if st := l.reg.Stats(); st.Blob.Error != 0 {
			t.Errorf("counted as errors: %+v", st.Blob)
		}
	})
}

func TestLargerThanTheBudgetIsDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 4 * mib})
		_, kept := oneLayer(l, 2*mib)
		l.blob("library/one", string(kept))
		big := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 20*mib)})
		r := l.blob("library/big", string(big.Manifests[0].Layers[0].Digest))
		if r.header.Get("X-Hubcache") != "bypass" {
			t.Errorf("X-Hubcache: %s", r.header.Get("X-Hubcache"))
		}
		l.quiet()
		if _, ok := l.store.Has(kept); !ok {
			t.Error("what was cached had to go in vain")
		}
		if n := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Repository == "library/big" }).BlobBytes(); n > 20*mib+64<<10 {
			t.Errorf("upstream sent %d bytes", n)
		}
		if st := l.reg.Stats(); st.Blob.Bypass != 1 {
			t.Errorf("%+v", st.Blob)
		}
	})
}

// Wrong bytes past the cache are as impossible as through it.
func TestBypassHoldsTheLastByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: mib})
		_, d := oneLayer(l, 3*mib)
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, hubtest.FlipByte(1000))
		if r := l.get(blobPath("library/one", d)); r.err == nil || len(r.body) >= 3*mib {
			t.Errorf("%d wrong bytes, ended with %v", len(r.body), r.err)
		}
		l.blob("library/one", string(d))
	})
}

// 16 clients pull ten times the budget; who leaves was used the longest ago.
func TestBudgetHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const budget = 4 * mib
		l := newLab(t, labOptions{budget: budget})
		var blobs []digest.Digest
		for i := range 20 {
			img := l.hub.AddImage("library/many", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(4, mib/2)})
			for _, d := range img.Manifests[0].Layers {
				blobs = append(blobs, d.Digest)
			}
		}
		next := make(chan digest.Digest)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for d := range next {
					l.blob("library/many", string(d))
					if st := l.store.Stats(); st.Bytes+st.ReservedBytes > budget {
						t.Errorf("%d bytes", st.Bytes+st.ReservedBytes)
					}
				}
			})
		}
		for _, d := range blobs {
			next <- d
		}
		close(next)
		wg.Wait()
		l.quiet()
		// With nobody else around, order of use is order of leaving.
		for i := range 12 {
			time.Sleep(2 * time.Second)
			l.blob("library/many", string(blobs[i]))
		}
		l.quiet()
		for i, there := range map[int]bool{2: false, 3: false, 10: true, 11: true} {
			if _, ok := l.store.Has(blobs[i]); ok != there {
				t.Errorf("blob %d: there = %v", i, ok)
			}
		}
	})
}

// A client that has the image and only asks HEAD for its tag keeps the layers young.
func TestHeadOfTheTagKeepsLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 2 * mib})
		base := l.hub.AddImage("library/base", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10), Index: true})
		l.pull(base)
		for i := range 30 {
			time.Sleep(10 * time.Minute)
			if r := l.do("HEAD", manifestPath(base)); r.status != 200 {
				t.Fatal(r.status)
			}
			other := l.hub.AddImage("library/other", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10)})
			l.pull(other)
		}
		l.quiet()
		l.hub.ResetLedger()
		l.pullDigest(base)
		if n := l.hub.Ledger().BlobGETs(); n != 0 {
			t.Errorf("%d layers had aged out", n)
		}
	})
}

func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.ReadAhead = true }})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(6, 2*mib), Platforms: []string{"linux/amd64", "linux/arm64"}})
		m := img.Manifests[0]
		l.get(manifestPath(img))
		for _, m := range img.Manifests {
			l.get("/v2/library/redis/manifests/" + string(m.Digest))
		}
		l.blob("library/redis", string(m.Config.Digest))
		l.quiet()
		if n := l.hub.Ledger().BlobGETs(); n != 1 {
			t.Errorf("manifests and a config caused %d blob GETs", n)
		}
		l.blob("library/redis", string(m.Layers[0].Digest))
		for range 5 {
			time.Sleep(time.Second)
			l.quiet()
		}
		for _, layer := range m.Layers {
			if _, ok := l.store.Has(layer.Digest); !ok {
				t.Error("a layer was not read ahead")
			}
		}
		for _, layer := range img.Manifests[1].Layers {
			if _, ok := l.store.Has(layer.Digest); ok {
				t.Error("a layer of another platform was read ahead")
			}
		}
		l.blob("library/redis", string(m.Layers[1].Digest))
		if n := l.hub.Ledger().BlobGETs(); n != 7 {
			t.Errorf("%d blob GETs for 7 blobs", n)
		}
		time.Sleep(11 * time.Minute)
		if n := l.reg.Stats().ReadAheadUnused; n != 4*2*mib {
			t.Errorf("unused: %d", n)
		}
	})
}

func TestReadAheadOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(6, 2*mib)})
		l.get(manifestPath(img))
		l.blob("library/redis", string(img.Manifests[0].Layers[0].Digest))
		l.quiet()
		if n := l.hub.Ledger().BlobGETs(); n != 1 {
			t.Errorf("%d blob GETs", n)
		}
	})
}

// A blob that breaks off is continued, and nobody notices.
func TestBreakIsResumed(t *testing.T) {
	for name, fault := range map[string]hubtest.Fault{
		"cut": hubtest.CutAfter(mib), "reset": hubtest.ResetAfter(mib), "stall": hubtest.StallAfter(mib), "expired": hubtest.ExpiredURL(),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{})
				_, d := oneLayer(l, 3*mib)
				l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, fault)
				start := time.Now()
				l.blob("library/one", string(d))
				if took := time.Since(start); took > 12*time.Second {
					t.Errorf("it took %s", took)
				}
				l.quiet()
				l.hub.ClearFaults()
				if n := l.reg.Stats().Resumes; n != 1 && name != "expired" {
					t.Errorf("%d resumes", n)
				}
			})
		})
	}
}

// Resuming needs no server to have stayed: what has arrived is taken up after a restart.
func TestUnfinishedDownloadSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 1e6}})
		const size = 6 * mib
		_, d := oneLayer(l, size)
		ctx, cancel := context.WithCancel(context.Background())
		resp, err := l.ask(ctx, "GET", blobPath("library/one", d))
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, size/2)
		cancel()
		resp.Body.Close()
		l.stop()
		l.start()
		l.hub.ResetLedger()
		l.blob("library/one", string(d))
		if n := l.hub.Ledger().BlobBytes(); n > size*6/10 {
			t.Errorf("%d of %d bytes were fetched again", n, size)
		}
	})
}

func TestErrorsInCodeAndJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "library/redis", "7")
		none := strings.Repeat("0", 64)
		for _, c := range []struct {
			method, path string
			status       int
			code         string
		}{
			{"GET", "/v2/", 200, ""},
			{"GET", "/v2", 200, ""},
			{"GET", "/v2/redis/manifests/7", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=docker.io", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=index.docker.io", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=ghcr.io", 404, "NAME_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/nope", 404, "MANIFEST_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/sha256:" + none, 404, "MANIFEST_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/sha256:xyz", 400, "DIGEST_INVALID"},
			{"GET", "/v2/library/redis/blobs/sha256:" + none, 404, "BLOB_UNKNOWN"},
			{"GET", "/v2/library/redis/blobs/7", 400, "DIGEST_INVALID"},
			{"GET", "/v2/library/unknown/manifests/1", 404, "NAME_UNKNOWN"},
			{"GET", "/v2/Library/redis/manifests/7", 400, "NAME_INVALID"},
			{"GET", "/v2/../../etc/manifests/7", 400, "NAME_INVALID"},
			{"PUT", "/v2/library/redis/manifests/7", 405, "UNSUPPORTED"},
			{"POST", "/v2/library/redis/blobs/uploads/", 404, "UNSUPPORTED"},
			{"DELETE", "/v2/library/redis/manifests/sha256:" + none, 405, "UNSUPPORTED"},
			{"GET", "/v1/search", 404, "UNSUPPORTED"},
			{"GET", "/api/v1/stats", 404, "UNSUPPORTED"},
		} {
			r := l.do(c.method, c.path)
			if r.status != c.status || c.code != "" && !strings.Contains(string(r.body), `"code":"`+c.code+`"`) {
				t.Errorf("%s %s: %d %s", c.method, c.path, r.status, r.body)
			}
			if r.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" || r.header.Get("WWW-Authenticate") != "" {
				t.Errorf("%s: %v", c.path, r.header)
			}
			if strings.Contains(c.path, "ns=") && c.status == 200 && r.header.Get("OCI-Namespace") != "docker.io" {
				t.Errorf("%s: no OCI-Namespace", c.path)
			}
		}
		for _, auth := range []string{"Basic dXNlcjpwYXNz", "Bearer abc", "nonsense"} {
			if r := l.get(manifestPath(img), "Authorization", auth); r.status != 200 {
				t.Errorf("with %q: %d", auth, r.status)
			}
		}
		if s := l.log.String(); strings.Contains(s, "dXNlcjpwYXNz") {
			t.Error("a client's credentials were logged")
		}
		st := l.reg.Stats().Manifest
		if sum := st.Hit + st.Revalidated + st.Miss + st.Shared + st.Stale + st.Bypass + st.Error; sum != 13 {
			t.Errorf("%d manifest requests counted: %+v", sum, st)
		}
	})
}

func TestSHA512(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "512", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2*mib), Algorithm: digest.SHA512})
		l.pullDigest(img)
		l.hub.ResetLedger()
		l.pullDigest(img)
		if len(l.hub.Ledger()) > 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}

func TestListsPassThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		for _, tag := range []string{"1", "2", "3"} {
			small(l, "library/redis", tag)
		}
		r := l.get("/v2/library/redis/tags/list?n=2")
		if r.status != 200 || !strings.Contains(string(r.body), `"1"`) || !strings.HasPrefix(r.header.Get("Link"), "</v2/library/redis/tags/list?") {
			t.Errorf("%d %v %s", r.status, r.header, r.body)
		}
		if r := l.get("/v2/library/redis/tags/list?n=2&last=2"); !strings.Contains(string(r.body), `"3"`) || strings.Contains(string(r.body), `"1"`) {
			t.Errorf("%s", r.body)
		}
		n := len(l.hub.Ledger())
		l.get("/v2/library/redis/tags/list?n=2")
		if len(l.hub.Ledger()) != n {
			t.Error("asked again inside the TTL")
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		if r := l.get("/v2/library/redis/tags/list?n=2"); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("stale: %d %v", r.status, r.header)
		}
		if r := l.get("/v2/library/redis/tags/list"); r.status != 502 {
			t.Errorf("not cached: %d", r.status)
		}
		d := string(digest.FromString("x"))
		r = l.get("/v2/library/redis/referrers/" + d)
		if r.status != 200 || r.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" || !strings.Contains(string(r.body), `"manifests":[]`) || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("referrers: %d %v %s", r.status, r.header, r.body)
		}
		l.hub.ClearFaults()
		l.hub.Set(func(o *hubtest.Options) { o.NoReferrers = true })
		if r := l.get("/v2/library/redis/referrers/" + d); r.status != 200 || !strings.Contains(string(r.body), `"manifests":[]`) {
			t.Errorf("referrers that upstream has not: %d %s", r.status, r.body)
		}
		if r := l.get("/v2/library/redis/referrers/sha256:bad"); r.status != http.StatusBadRequest {
			t.Errorf("a bad digest: %d", r.status)
		}
		l.get("/v2/library/redis/manifests/1")
		if r := l.get("/v2/_catalog"); !strings.Contains(string(r.body), `["library/redis"]`) {
			t.Errorf("catalogue: %s", r.body)
		}
	})
}
