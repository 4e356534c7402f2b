package registry_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// spells is the CDN's part of the ledger of one blob, in order of the bytes.
func (l *lab) spells(d digest.Digest) hubtest.Ledger {
	all := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN && e.Reference == string(d) })
	slices.SortFunc(all, func(a, b hubtest.Entry) int { return int(firstByteOf(a) - firstByteOf(b)) })
	return all
}

func firstByteOf(e hubtest.Entry) (n int64) {
	fmt.Sscanf(e.Range, "bytes=%d-", &n)
	return n
}

// sum is how many body bytes they are.
func sum(all hubtest.Ledger) (n int64) {
	for _, e := range all {
		n += e.BodyBytes
	}
	return n
}

// most is how many of them went on at the same time.
func most(all hubtest.Ledger) (n int) {
	for _, e := range all {
		at := all.Count(func(o hubtest.Entry) bool { return !o.Started.After(e.Started) && o.Ended.After(e.Started) })
		n = max(n, at)
	}
	return n
}

// pullAll reads blobs at the same time and returns how long each took.
func (l *lab) pullAll(repository string, ds ...digest.Digest) []time.Duration {
	took := make([]time.Duration, len(ds))
	var wg sync.WaitGroup
	start := time.Now()
	for i, d := range ds {
		wg.Go(func() {
			resp, err := l.ask(l.t.Context(), "GET", blobPath(repository, d))
			if err != nil {
				l.t.Error(err)
				return
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != l.hub.Blob(d).Size() {
				l.t.Errorf("%d bytes of %d, %v", n, l.hub.Blob(d).Size(), err)
			}
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took
}

// Blobs that begin when all lanes are taken get more of them as soon as there are any: they
// used to stay with the one they had, to the end.
func TestLanesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes, rate, size = 8, 20e6, 24 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = lanes }})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, size)})
		l.get(manifestPath(img))
		var ds []digest.Digest
		for _, layer := range img.Manifests[0].Layers {
			ds = append(ds, layer.Digest)
		}
		took := slices.Max(l.pullAll("library/app", ds...))
		// Each chunk, 4 MiB at least, costs a round trip; two at the beginning; and at the
		// end not all lanes have something to do.
		ideal := time.Duration(3 * size / float64(lanes*rate) * float64(time.Second))
		if limit := ideal*5/4 + 300*time.Millisecond; took > limit {
			t.Errorf("%s for what %d lanes bring in %s", took, lanes, ideal)
		}
		l.quiet()
		for _, d := range ds {
			if got := sum(l.spells(d)); got != size {
				t.Errorf("%d bytes came of %d", got, size)
			}
		}
		if n := most(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN })); n > lanes {
			t.Errorf("%d connections at once", n)
		}
	})
}

// Where one connection brings all that the machine can take in, there is one, and the bytes
// come in order; no time passes between one chunk and the next.
func TestOneFastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 800e6, 256 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: rate, Latency: 30 * time.Millisecond}})
		d := l.zeros("library/app", size)
		took := l.pullAll("library/app", d)[0]
		// Two round trips before the first byte, and some time until the pace is known.
		if limit := time.Duration(size/rate*float64(time.Second)) + 80*time.Millisecond; took > limit {
			t.Errorf("it took %s, more than %s", took, limit)
		}
		l.quiet()
		all := l.spells(d)
		if n := most(all); n > 2 { // one ends while the next begins
			t.Errorf("%d connections at once:\n%s", n, all)
		}
		if got := sum(all); got != size {
			t.Errorf("%d bytes came of %d:\n%s", got, size, all)
		}
	})
}

// A connection that was fast and is slow now is helped.
func TestFastConnectionSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 512 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 800e6, Latency: 30 * time.Millisecond}})
		d := l.zeros("library/app", size)
		go func() {
			time.Sleep(150 * time.Millisecond)
			l.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 40e6 })
		}()
		took := l.pullAll("library/app", d)[0]
		l.quiet()
		if n := most(l.spells(d)); n != 6 {
			t.Errorf("%d connections at once", n)
		}
		if limit := 4 * time.Second; took > limit { // it takes 13 s without help
			t.Errorf("it took %s", took)
		}
	})
}

// No round trip is spent on a scrap that a division left over.
func TestNoScraps(t *testing.T) {
	for _, size := range []int64{8 * mib, 8*mib + 1, 24*mib - 1, 24*mib + 5, 64 * mib, 64*mib + 4} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 20e6, Latency: 30 * time.Millisecond}})
				d := l.zeros("library/app", size)
				l.pullAll("library/app", d)
				l.quiet()
				all := l.spells(d)
				for _, e := range all {
					if e.BodyBytes < 2*mib {
						t.Errorf("a request for %d bytes:\n%s", e.BodyBytes, all)
					}
				}
				if got := sum(all); got != size {
					t.Errorf("%d bytes came of %d", got, size)
				}
			})
		})
	}
}

// zeros adds an image with one layer of nothing but zeros, which cost no time to make, and
// makes its manifest known.
func (l *lab) zeros(repository string, size int64) digest.Digest {
	l.t.Helper()
	d, err := digest.FromReader(io.LimitReader(zeroReader{}, size))
	if err != nil {
		l.t.Fatal(err)
	}
	layer := l.hub.AddBlobAt(repository, "application/vnd.oci.image.layer.v1.tar", d, zeroReader{}, size)
	m := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, layer.MediaType, d, size)
	l.hub.AddManifest(repository, "1", "application/vnd.oci.image.manifest.v1+json", []byte(m))
	if r := l.get("/v2/" + repository + "/manifests/1"); r.status != 200 || !strings.Contains(string(r.body), string(d)) {
		l.t.Fatal(r.status)
	}
	l.hub.ResetLedger()
	return d
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error)            { clear(p); return len(p), nil }
func (zeroReader) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
