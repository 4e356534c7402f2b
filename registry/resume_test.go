package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// TestBrokenDownloadIsResumed: the client of a body that breaks off upstream gets all bytes
// and notices nothing.
func TestBrokenDownloadIsResumed(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]hubtest.Fault{
		"cut": hubtest.CutAfter(mib), "reset": hubtest.ResetAfter(mib), "stall": hubtest.StallAfter(mib), "expired": hubtest.ExpiredURL(),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{})
				d := l.oneLayerImage(3 * mib)
				l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, fault)
				start := time.Now()
				l.blob("library/one", string(d))
				if took := time.Since(start); took > 12*time.Second {
					t.Errorf("it took %s", took)
				}
				l.drain()
				l.hub.ClearFaults()
				if n := l.reg.Stats().Resumes; n != 1 && name != "expired" {
					t.Errorf("%d resumes", n)
				}
			})
		})
	}
}

// TestUnfinishedDownloadSurvivesRestart: what has arrived before a restart is not fetched
// again.
func TestUnfinishedDownloadSurvivesRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 1e6}})
		const size = 6 * mib
		d := l.oneLayerImage(size)
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

// TestResumeWithOneRangeNeedsFewRequests: with one connection for each blob, the rest of a
// partial download is fetched in a few requests, not in many small ones.
func TestResumeWithOneRangeNeedsFewRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 256 * mib
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 50e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Ranges = 1 }})
		d := l.zeroImage("library/a", size)
		resp, err := l.ask(t.Context(), "GET", blobPath("library/a", d))
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, 32*mib)
		resp.Body.Close()
		l.stop()
		l.start()
		l.hub.ResetLedger()
		l.timeBlobs("library/a", d)
		l.drain()
		if all := l.cdnRequests(d); len(all) > 10 {
			t.Errorf("%d requests", len(all))
		}
	})
}

// TestWrongBytesAreNeverASuccess: upstream sends the right length with one wrong byte. No
// client's body ends without an error, nothing is cached, the mismatch is counted, and the
// next download is right.
func TestWrongBytesAreNeverASuccess(t *testing.T) {
	t.Parallel()
	for _, how := range fetchModes {
		t.Run(how.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20}, policy: func(p *registry.Policy) { p.ReadAhead = how.ahead }})
				layers := l.addImage("library/app", "1", how.size, how.size)
				l.get("/v2/library/app/manifests/1")
				target := layers[1]
				rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(target)}, hubtest.FlipByte(how.size/2))
				if how.ahead {
					l.fetch("library/app", layers[0])
				}
				for _, c := range l.mixedClients("library/app", target) {
					switch {
					case c.leave || c.from > how.size/2: // it did not ask for the wrong byte
					case c.status == 0, c.status >= 400, c.err != nil:
					default:
						t.Errorf("%s: %d, and %d bytes that end without an error", c.name, c.status, c.n)
					}
				}
				if l.reg.Stats().DigestMismatches == 0 {
					t.Error("the mismatch was not counted")
				}
				if _, ok := l.store.Has(target); ok {
					t.Error("the blob was cached")
				}
				l.checkStore(target)
				rule.Remove()
				time.Sleep(21 * time.Second)
				l.fetch("library/app", target)
				l.checkStore(target)
			})
		})
	}
}

// TestWholeBodyInPlaceOfARangeIsVerified: the CDN answers one of several ranges with the
// whole blob, whose bytes are wrong where other ranges have been written and hashed. Nobody
// gets wrong bytes, and none are cached.
func TestWholeBodyInPlaceOfARangeIsVerified(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		d := l.oneLayerImage(24 * mib)
		var answered atomic.Bool
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			rng := req.Header.Get("Range")
			// The second range is late, and answered with the whole blob, whose end is wrong.
			if strings.HasPrefix(rng, "bytes=4194304-") && strings.HasPrefix(req.URL.Host, "cdn.") {
				answered.Store(true)
				time.Sleep(3 * time.Second)
				req = req.Clone(req.Context())
				req.Header.Del("Range")
				resp, err := next.RoundTrip(req)
				if err == nil && resp.StatusCode == 200 {
					resp.Body = &bodyCorruptFrom{ReadCloser: resp.Body, from: 10 * mib}
				}
				return resp, err
			}
			return next.RoundTrip(req)
		})
		l.get("/v2/library/one/manifests/1")
		r := l.get(blobPath("library/one", d))
		t.Logf("%d, %d bytes, %v\n%s", r.status, len(r.body), r.err, l.hub.Ledger())
		if !answered.Load() {
			t.Error("no range was answered with the whole blob")
		}
		if r.err == nil && r.status == 200 && digest.FromBytes(r.body) != d {
			t.Error("wrong bytes that end without an error")
		}
		l.drain()
		b, err := l.store.Open(d)
		if err != nil {
			return
		}
		defer b.Close()
		if l.store.Verify(t.Context(), d, nil) != nil {
			t.Error("wrong bytes in the store")
		}
	})
}

// bodyCorruptFrom is a body whose bytes are wrong from an offset on.
type bodyCorruptFrom struct {
	io.ReadCloser
	at, from int64
}

func (f *bodyCorruptFrom) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond) // slower than hashing, as a real CDN is
	n, err := f.ReadCloser.Read(p)
	for i := range n {
		if f.at+int64(i) >= f.from {
			p[i] ^= 0xff
		}
	}
	f.at += int64(n)
	return n, err
}

// TestCompletePartialIsNotFetchedAgain: the process was killed when all bytes of a blob had come
// and before it was verified. Upstream is asked for one byte, since it must have the blob under
// the repository of the request.
func TestCompletePartialIsNotFetchedAgain(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{5 << 18, 20 * mib} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{})
			d := l.oneLayerImage(size)
			in, err := l.store.Begin(storage.Origin{Repository: "docker.io/library/one"}, d, size)
			if err != nil {
				t.Fatal(err)
			}
			all := make([]byte, size)
			hubtest.Random(0).ReadAt(all, 0)
			if digest.FromBytes(all) != d {
				t.Fatal("these are not the bytes of the layer")
			}
			if _, err := in.WriteAt(all, 0); err != nil {
				t.Fatal(err)
			}
			in.Abort(errors.New("killed"))
			l.stop()
			l.start()
			if r := l.get(blobPath("library/other", d)); r.status != 404 {
				t.Errorf("a repository that hasn't got it: %d, %d bytes", r.status, len(r.body))
			}
			l.hub.ResetLedger()
			l.blob("library/one", string(d))
			l.checkStore(d)
			if n := l.hub.Ledger().BlobBytes(); n > 1 {
				t.Errorf("upstream sent %d bytes of %d", n, size)
			}
			if _, ok := l.store.Has(d); !ok {
				t.Error("it is not cached")
			}
		})
	}
}
