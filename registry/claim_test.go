package registry_test

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// claimedBlob adds a blob to a repository, and a manifest that claims this size of it; size is
// JSON, "" for none. The registry fetches the manifest.
func (l *lab) claimedBlob(repository string, b []byte, size string) digest.Digest {
	l.t.Helper()
	d := digest.FromBytes(b)
	l.hub.AddBlobAt(repository, ocispec.MediaTypeImageLayer, d, hubtest.Bytes(b), int64(len(b)))
	l.claim(repository, d, size)
	return d
}

// claim adds a manifest that names a blob and claims its size.
func (l *lab) claim(repository string, d digest.Digest, size string) {
	l.t.Helper()
	if size != "" {
		size = `,"size":` + size
	}
	m := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"mediaType":%q,"digest":%q%s}]}`, ocispec.MediaTypeImageLayer, d, size)
	l.hub.AddManifest(repository, "1", ocispec.MediaTypeImageManifest, []byte(m))
	if r := l.get("/v2/" + repository + "/manifests/1"); r.status != 200 {
		l.t.Fatal(r.status)
	}
}

// TestClaimedSizeIsAHint: whatever size a manifest claims of a blob, HEAD and GET, ranges
// included, answer as Docker Hub would: what isn't cached, what is, and what doesn't fit the
// budget. No wrong size is kept as confirmed.
func TestClaimedSizeIsAHint(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 100, 5 << 18, 9 * mib} {
		for _, claim := range []string{"", "0", "-1", fmt.Sprint(size), fmt.Sprint(size + 1), fmt.Sprint(max(size-1, 0)), fmt.Sprint(20 * mib), "1099511627776", fmt.Sprint(math.MaxInt64)} {
			for _, budget := range []int64{64 * mib, 90} {
				// What doesn't fit is read to the end for each range. That a large blob is asked for
				// in several ranges makes no difference then, so a smaller one stands for it.
				if size > mib && budget == 90 && claim != fmt.Sprint(size+1) && size != 5<<18 {
					continue
				}
				t.Run(fmt.Sprintf("%d claimed as %s budget %d", size, claim, budget), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { testClaim(t, noise()[:size], claim, budget) })
				})
			}
		}
	}
}

func testClaim(t *testing.T, b []byte, claim string, budget int64) {
	l := newLab(t, labOptions{budget: budget, hub: hubtest.Options{Bandwidth: 20 << 20, Latency: 10 * time.Millisecond}})
	size := int64(len(b))
	d := l.claimedBlob("library/app", b, claim)
	check := func(when string) {
		t.Helper()
		r := l.do("HEAD", blobPath("library/app", d))
		if r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("%s: HEAD: %d, length %q", when, r.status, r.header.Get("Content-Length"))
		}
		for _, field := range []string{"bytes=10-19", "bytes=50-", "bytes=-10", fmt.Sprintf("bytes=%d-", max(size-1, 0)), fmt.Sprintf("bytes=0-%d", size), fmt.Sprintf("bytes=%d-%d", size, size+5)} {
			var first, last int64
			var want []byte
			status := 206
			switch n, _ := fmt.Sscanf(field, "bytes=%d-%d", &first, &last); {
			case strings.HasPrefix(field, "bytes=-"):
				want = b[max(size-10, 0):]
			case first >= size:
				want, status = nil, 416
			case n == 2:
				want = b[first:min(last+1, size)]
			default:
				want = b[first:]
			}
			if size == 0 {
				status = 416
			}
			r := l.get(blobPath("library/app", d), "Range", field)
			if r.status != status || status == 206 && !equal(r.body, want) || r.err != nil {
				t.Errorf("%s: %s: %d %s, %d bytes of %d, %v", when, field, r.status, r.header.Get("Content-Range"), len(r.body), len(want), r.err)
			}
		}
		if r := l.get(blobPath("library/app", d)); r.status != 200 || !equal(r.body, b) || r.err != nil {
			t.Errorf("%s: GET: %d, %d bytes of %d, %v, %.200s", when, r.status, len(r.body), size, r.err, r.body)
		}
		if link, err := l.store.Link("docker.io/library/app", d); err == nil && link.Confirmed && link.Size >= 0 && link.Size != size {
			t.Errorf("%s: %d bytes are confirmed of a blob of %d", when, link.Size, size)
		}
	}
	check("first")
	l.waitIdle()
	check("then")
	l.waitIdle()
	if _, ok := l.store.Has(d); ok != (size <= budget) {
		t.Errorf("cached: %v", ok)
	}
	l.store.Remove(d)
	if r := l.get(blobPath("library/app", d)); r.status != 200 || !equal(r.body, b) {
		t.Errorf("whole blob at first: %d, %d bytes of %d, %v, %.200s", r.status, len(r.body), size, r.err, r.body)
	}
	check("after an eviction")
	l.checkStore(d)
	if v := l.hub.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestClaimedSizeIsAHintWithoutLength: the same when upstream states no length either.
func TestClaimedSizeIsAHintWithoutLength(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 100, 5 << 18, 9 * mib} {
		for _, claim := range []int64{0, size, size + 1, max(size-1, 0), 20 * mib, 1 << 40} {
			for _, more := range [][]hubtest.Fault{nil, {hubtest.IgnoreRange()}} {
				if size > 5<<18 && more != nil && claim != size+1 { // no ranges, so large is as small
					continue
				}
				t.Run(fmt.Sprintf("%d claimed as %d, ranges %v", size, claim, more == nil), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t, labOptions{})
						d := l.claimedBlob("library/app", noise()[:size], fmt.Sprint(claim))
						l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, append(more, hubtest.Chunked())...)
						for range 2 {
							if r := l.get(blobPath("library/app", d)); r.status != 200 || !equal(r.body, noise()[:size]) || r.err != nil {
								t.Errorf("%d, %d bytes, %v %.200s", r.status, len(r.body), r.err, r.body)
							}
							if r := l.get(blobPath("library/app", d), "Range", "bytes=10-19"); size > 0 && (r.status != 206 || !equal(r.body, noise()[10:20])) {
								t.Errorf("range: %d, %d bytes, %v %.200s", r.status, len(r.body), r.err, r.body)
							}
							l.waitIdle()
							l.store.Remove(d)
						}
						l.checkStore(d)
					})
				})
			}
		}
	}
}

// TestHeadOfABlobWhoseCDNRefusesIt: the registry has the blob, and nobody tells its length: the
// answer has none.
func TestHeadOfABlobWhoseCDNRefusesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, fault := range []hubtest.Fault{hubtest.Status(403, "<Error/>"), hubtest.Status(405, "")} {
			l := newLab(t, labOptions{})
			d := l.claimedBlob("library/app", []byte("blob"), "7")
			l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Method: "HEAD"}, fault)
			r := l.do("HEAD", blobPath("library/app", d))
			if length, ok := r.header["Content-Length"]; r.status != 200 || ok || r.header.Get("Docker-Content-Digest") != string(d) {
				t.Errorf("%d %v, length %v", r.status, r.header, length)
			}
			if r := l.do("HEAD", blobPath("library/app", digest.FromString("none"))); r.status != 404 {
				t.Errorf("HEAD of an unknown blob: %d", r.status)
			}
		}
	})
}

// TestClaimOfOneRepositoryHurtsNoOther: a flight begins under a repository whose manifest claims
// a wrong size, or which can't be asked. Clients of the repository that has the blob, who ask
// meanwhile, get it all.
func TestClaimOfOneRepositoryHurtsNoOther(t *testing.T) {
	t.Parallel()
	const size = 9 * mib
	for _, claim := range []string{"0", "5", fmt.Sprint(size - 1), fmt.Sprint(size + 1), "1099511627776"} {
		for _, fault := range []hubtest.Fault{nil, hubtest.Status(500, "oops"), hubtest.Status(404, "{}"), hubtest.Reset()} {
			t.Run(fmt.Sprintf("claim %s, fault %v", claim, fault != nil), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20, Latency: 20 * time.Millisecond}, budget: 64 * mib,
						policy: func(p *registry.Policy) { p.ReadAhead = true }})
					d := l.claimedBlob("evil/app", noise()[:size], claim)
					l.hub.AddBlobAt("library/app", ocispec.MediaTypeImageLayer, d, hubtest.Bytes(noise()[:size]), size)
					l.claim("library/app", d, fmt.Sprint(size))
					if fault != nil {
						l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "blobs", Repository: "evil/app"}, fault)
					}
					var clients sync.WaitGroup
					for i := range 8 {
						clients.Go(func() {
							if i == 0 {
								l.get(blobPath("evil/app", d))
								return
							}
							time.Sleep(time.Duration(i) * 120 * time.Millisecond)
							c := &client{name: fmt.Sprint("client ", i)}
							c.get(l, "library/app", d)
							c.check(t, l, d, whole)
							if x := c.header.Get("X-Hubcache"); x == "bypass" {
								t.Errorf("%s: %s", c.name, x)
							}
						})
					}
					clients.Wait()
					l.checkStore(d)
					if link, err := l.store.Link("docker.io/evil/app", d); err == nil && link.Confirmed && link.Size >= 0 && link.Size != size {
						t.Errorf("%d bytes are confirmed of %d", link.Size, size)
					}
				})
			})
		}
	}
}

// TestDownloadThatBreaksUnderAnotherRepositoryGoesOn: a download begins under a repository that
// loses the blob before all has come. Clients of another repository that read along get the rest
// from theirs, each by itself if a download from there breaks too.
func TestDownloadThatBreaksUnderAnotherRepositoryGoesOn(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{3 * mib, 20 * mib} {
		for _, breaks := range []int{0, 3} {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 2 << 20, Latency: 20 * time.Millisecond}})
				d := l.claimedBlob("evil/app", noise()[:size], fmt.Sprint(size))
				l.hub.AddBlobAt("library/app", ocispec.MediaTypeImageLayer, d, hubtest.Bytes(noise()[:size]), size)
				l.claim("library/app", d, fmt.Sprint(size))
				l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Repository: "evil/app"}, hubtest.CutAfter(mib))
				l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "blobs", Repository: "evil/app", Skip: 1}, hubtest.Status(404, "{}"))
				if breaks > 0 {
					l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Method: "GET", Repository: "library/app", Times: breaks}, hubtest.Drop())
				}
				var clients sync.WaitGroup
				for i, from := range []int64{0, 0, 1000, size - 1000} {
					clients.Go(func() {
						time.Sleep(time.Duration(i) * 100 * time.Millisecond)
						if i == 0 {
							l.get(blobPath("evil/app", d))
							return
						}
						c := &client{name: fmt.Sprint("client ", i), from: from}
						c.get(l, "library/app", d)
						c.check(t, l, d, whole)
					})
				}
				clients.Wait()
				l.checkStore(d)
			})
		}
	}
}
