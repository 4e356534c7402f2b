package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestRangesAreAlikeOnMissSharedHitAndBypass: a Range is answered in the same way however
// the blob comes, and costs no byte twice.
func TestRangesAreAlikeOnMissSharedHitAndBypass(t *testing.T) {
	t.Parallel()
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
		"bytes=0-5,5-6":        {200, 0, size, ""},
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
					d := l.oneLayerImage(size)
					path := blobPath("library/one", d)
					switch when {
					case "shared":
						go l.get(path)
						time.Sleep(500 * time.Millisecond)
					case "hit":
						l.get(path)
						l.drain()
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
					l.drain()
					if when == "bypass" {
						return
					}
					l.blob("library/one", string(d))
					most := int64(size)
					if when == "shared" { // the body that brings the whole may be cut where the range begins
						most += size / 50
					}
					if n := l.hub.Ledger().BlobBytes(); n < size || n > most {
						t.Errorf("upstream sent %d bytes of %d", n, size)
					}
				})
			})
		}
	}
}

// TestOpenRangesClosedEarlyShareOneDownload: containerd fetches a blob in parallel by
// open-ended ranges, each of which it closes early. Upstream sends each byte once, and no
// request counts as an error.
func TestOpenRangesClosedEarlyShareOneDownload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6}})
		const size, part = 16 * mib, 2 * mib
		d := l.oneLayerImage(size)
		var wg sync.WaitGroup
		for i := range int64(size / part) {
			wg.Go(func() {
				resp, err := l.ask(context.Background(), "GET", blobPath("library/one", d), "Range", fmt.Sprintf("bytes=%d-", i*part))
				if err != nil || resp.StatusCode != 206 {
					t.Error(resp, err)
					return
				}
				b, err := readAll(io.LimitReader(resp.Body, part), part)
				if err != nil || len(b) != part {
					t.Error(len(b), err)
				}
				resp.Body.Close()
				l.same(string(d), i*part, b)
			})
		}
		wg.Wait()
		l.drain()
		if n := l.hub.Ledger().BlobBytes(); n != size {
			t.Errorf("upstream sent %d bytes", n)
		}
		if st := l.reg.Stats(); st.Blob.Error != 0 {
			t.Errorf("counted as errors: %+v", st.Blob)
		}
	})
}

// TestRangeOfABlobOfUnknownLengthIsAnswered: neither a manifest nor the CDN says how long
// the blob is. The range is sent once the whole blob has come.
func TestRangeOfABlobOfUnknownLengthIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		b := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
		d := l.hub.AddBlob("library/app", "application/octet-stream", b).Digest
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
		r := l.get(blobPath("library/app", d), "Range", "bytes=1000-1999")
		if r.status != 206 || !equal(r.body, b[1000:2000]) {
			t.Errorf("%d, %d bytes", r.status, len(r.body))
		}
	})
}

// TestUncachedManifestStillGivesLayerSizes: a manifest that does not fit in the cache still
// tells the sizes of its layers, so that a range of a layer that comes without a length is
// answered as a range.
func TestUncachedManifestStillGivesLayerSizes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, budget: 100})
		d := l.addImage("library/app", "1", 5<<18)[0]
		if r := l.get("/v2/library/app/manifests/1"); r.header.Get("X-Hubcache") != "bypass" {
			t.Fatalf("%d %v", r.status, r.header)
		}
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
		resp, err := l.ask(t.Context(), "GET", blobPath("library/app", d), "Range", "bytes=1000-")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := readAll(resp.Body, -1)
		if resp.StatusCode != 206 || err != nil || len(b) != 5<<18-1000 {
			t.Errorf("%s, %d bytes, %v", resp.Status, len(b), err)
		}
	})
}
