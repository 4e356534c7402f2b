package registry_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
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

// TestReadersThatJoinAndLeaveShareOneDownload: the first client leaves after 10 %, others
// join at the start and half way. Each gets its first byte at once and all bytes in the
// end, and upstream sends each byte once.
func TestReadersThatJoinAndLeaveShareOneDownload(t *testing.T) {
	t.Parallel()
	for _, ranges := range []int{1, 6} {
		t.Run(fmt.Sprint(ranges, " ranges"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6, Latency: 30 * time.Millisecond},
					policy: func(p *registry.Policy) { p.Limits.Ranges = ranges }})
				const size = 24 * mib
				d := l.oneLayerImage(size)
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
				l.drain()
				ledger := l.hub.Ledger()
				if ledger.BlobBytes() != size {
					t.Errorf("upstream sent %d bytes\n%s", ledger.BlobBytes(), ledger)
				}
				if n := ledger.BlobGETs(); ranges == 1 && n != 1 {
					t.Errorf("%d GETs for one range", n)
				}
				if got := l.reg.Stats().Fetched; got < size || got > size+10_000 {
					t.Errorf("%d bytes counted as fetched", got)
				}
			})
		})
	}
}

// TestStampedeIsOneDownload: however many clients come at once, upstream sends every byte
// of the image once, in ranges that don't overlap.
func TestStampedeIsOneDownload(t *testing.T) {
	t.Parallel()
	l := newRealTimeLab(t, slog.New(slog.DiscardHandler))
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Index: true, Layers: hubtest.Layers(2, 9<<20)})
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			if err := l.servePull(img); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	ledger := l.hub.Ledger()
	if got := ledger.BlobBytes(); got != img.Size() {
		t.Errorf("%d bytes for an image of %d", got, img.Size())
	}
	if n := ledger.ManifestGETs(); n != 2 {
		t.Errorf("%d manifest GETs for an index and a manifest", n)
	}
	for _, layer := range img.Manifests[0].Layers {
		type span struct{ from, to int64 }
		var spans []span
		for _, e := range ledger {
			if e.Face != hubtest.CDN || e.Reference != layer.Digest.String() {
				continue
			}
			var p span
			if n, _ := fmt.Sscanf(e.Range, "bytes=%d-%d", &p.from, &p.to); n != 2 {
				t.Fatalf("%s: not a closed range", e)
			}
			spans = append(spans, p)
		}
		slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
		at := int64(0)
		for _, p := range spans {
			if p.from != at {
				t.Errorf("%s: ranges %v overlap or leave gaps", layer.Digest, spans)
				break
			}
			at = p.to + 1
		}
		if at != layer.Size || len(spans) < 2 {
			t.Errorf("%s: ranges %v for %d bytes", layer.Digest, spans, layer.Size)
		}
	}
}

// TestClientsOverTCPFollowAGrowingBlob: clients on real sockets that ask for all or part of
// a blob while it is downloaded get all their bytes, and it is downloaded once.
func TestClientsOverTCPFollowAGrowingBlob(t *testing.T) {
	t.Parallel()
	l := newRealTimeLab(t, slog.New(slog.DiscardHandler))
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 24<<20)})
	layer := img.Manifests[0].Layers[0]
	want := make([]byte, layer.Size)
	if _, err := l.hub.Blob(layer.Digest).ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	l.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 40 << 20 })
	server := httptest.NewServer(l.reg)
	defer server.Close()
	var clients sync.WaitGroup
	for i := range 6 {
		clients.Go(func() {
			from := int64(i) * 3 << 20
			req, err := http.NewRequest(http.MethodGet, server.URL+"/v2/library/redis/blobs/"+layer.Digest.String(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			if from > 0 {
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := readAll(resp.Body, -1)
			if err != nil || !equal(got, want[from:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(got), err)
			}
		})
	}
	clients.Wait()
	if n := l.hub.Ledger().BlobBytes(); n != layer.Size {
		t.Errorf("%d bytes for a blob of %d", n, layer.Size)
	}
}

// TestDownloadGoesOnAfterItsOnlyClientLeaves: when the only client leaves, the download
// goes on, and the next client gets the blob without a second one.
func TestDownloadGoesOnAfterItsOnlyClientLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6}})
		const size = 12 * mib
		d := l.oneLayerImage(size)
		ctx, cancel := context.WithCancel(context.Background())
		resp, err := l.ask(ctx, "GET", blobPath("library/one", d))
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, size/10)
		cancel()
		resp.Body.Close()
		l.drain()
		l.blob("library/one", string(d))
		if n := l.hub.Ledger().BlobBytes(); n != size {
			t.Errorf("upstream sent %d bytes", n)
		}
	})
}

// TestClientThatJoinsACancelledDownloadIsServed: limits.orphans is 1, so the second
// download without a client is cancelled. A client that asks for it while the cancelling
// takes its time gets it.
func TestClientThatJoinsACancelledDownloadIsServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 50_000}, policy: func(p *registry.Policy) { p.Limits.Orphans = 1 }})
		img := l.hub.AddImage("library/two", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2*mib)})
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.ContentLength > mib {
				resp.Body = bodySlowToCancel{resp.Body}
			}
			return resp, err
		})
		l.get(manifestPath(img))
		a, b := img.Manifests[0].Layers[0].Digest, img.Manifests[0].Layers[1].Digest
		for _, d := range []digest.Digest{a, b} {
			l.leaveEarly("library/two", d, 0)
			time.Sleep(200 * time.Millisecond)
		}
		r := l.get(blobPath("library/two", b))
		if r.status != 200 || r.err != nil || len(r.body) != 2*mib {
			t.Errorf("%d, %d bytes, %v %s\n%s", r.status, len(r.body), r.err, r.body[:min(len(r.body), 300)], l.log)
		}
	})
}

// TestCancelledDownloadThatWasCompleteIsAHit: a download that nobody reads is cancelled when
// all its bytes are here already, and is committed all the same. A client that comes
// meanwhile gets it from the store, and upstream, which is down by then, is not asked.
func TestCancelledDownloadThatWasCompleteIsAHit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) { p.Limits.Orphans = 1 }})
		img := l.hub.AddImage("library/two", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2*mib)})
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.ContentLength > mib {
				resp.Body = bodySlowToClose{resp.Body}
			}
			return resp, err
		})
		l.get(manifestPath(img))
		a, b := img.Manifests[0].Layers[0].Digest, img.Manifests[0].Layers[1].Digest
		for _, d := range []digest.Digest{a, b} {
			l.leaveEarly("library/two", d, 100*time.Millisecond) // all bytes have come
		}
		time.Sleep(100 * time.Millisecond)
		l.hub.Inject(hubtest.Match{}, hubtest.Drop())
		l.hub.ResetLedger()
		r := l.get(blobPath("library/two", b))
		if r.status != 200 || r.header.Get("X-Hubcache") != "hit" || len(r.body) != 2*mib {
			t.Errorf("%d %s, %d bytes, %v", r.status, r.header.Get("X-Hubcache"), len(r.body), r.err)
		}
		if asked := l.hub.Ledger(); len(asked) > 0 {
			t.Errorf("upstream was asked:\n%s", asked)
		}
	})
}

// leaveEarly asks for a blob, reads some bytes, and leaves after a while.
func (l *lab) leaveEarly(repository string, d digest.Digest, after time.Duration) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	resp, err := l.ask(ctx, "GET", blobPath(repository, d))
	if err != nil {
		l.t.Fatal(err)
	}
	io.CopyN(io.Discard, resp.Body, 1000)
	time.Sleep(after)
	cancel()
	resp.Body.Close()
}

// bodySlowToClose is a body that takes ten seconds to close.
type bodySlowToClose struct{ io.ReadCloser }

func (b bodySlowToClose) Close() error {
	time.Sleep(10 * time.Second)
	return b.ReadCloser.Close()
}

// bodySlowToCancel is a body that takes a second to notice that it is cancelled.
type bodySlowToCancel struct{ io.ReadCloser }

func (b bodySlowToCancel) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		time.Sleep(time.Second)
	}
	return n, err
}

// TestBlobIsServedDespiteAFailureUnderAnotherRepository: a client asks for a blob under a
// repository that does not have it. Clients that ask meanwhile under the repository that
// has it get it.
func TestBlobIsServedDespiteAFailureUnderAnotherRepository(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Latency: 100 * time.Millisecond}})
		d := l.addImage("library/app", "1", 5<<18)[0]
		l.addImage("evil/repo", "1", 1001)
		l.get("/v2/library/app/manifests/1")
		l.get("/v2/evil/repo/manifests/1")
		evil := make(chan *client)
		go func() {
			c := &client{name: "evil"}
			c.get(l, "evil/repo", d)
			evil <- c
		}()
		time.Sleep(20 * time.Millisecond)
		for _, c := range l.mixedClients("library/app", d) {
			c.check(t, l, d, whole)
		}
		if c := <-evil; c.status != 404 {
			t.Errorf("status %d under the repository that does not have it", c.status)
		}
		l.checkStore(d)
	})
}

// TestLastByteIsSentWhenTheBlobIsComplete: with every slot taken, no client waits longer
// than a second for its last byte once that has come from upstream.
func TestLastByteIsSentWhenTheBlobIsComplete(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 5e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 8 }})
		var ds []digest.Digest
		for i := range 8 { // as many as there are slots
			size := 16*mib + int64(i)
			if i == 0 {
				size = 8 * mib
			}
			ds = append(ds, l.zeroImage(fmt.Sprintf("library/app%d", i), size))
		}
		start := time.Now()
		took := make([]time.Duration, len(ds))
		var wg sync.WaitGroup
		for i, d := range ds {
			wg.Go(func() { took[i] = l.timeBlobs(fmt.Sprintf("library/app%d", i), d)[0] })
		}
		wg.Wait()
		l.drain()
		worst := time.Duration(0)
		for i, d := range ds {
			last := time.Duration(0)
			for _, e := range l.cdnRequests(d) {
				last = max(last, e.Ended.Sub(start))
			}
			worst = max(worst, took[i]-last)
		}
		if worst > time.Second {
			t.Errorf("the last byte was sent %s after it had come", worst)
		}
	})
}

// TestBytesOfASlowConnectionAreSentAsTheyArrive: a steady connection that is slower than
// the disk and the client: the client gets each piece when it comes.
func TestBytesOfASlowConnectionAreSentAsTheyArrive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		d := l.zeroImage("library/a", 6*mib)
		l.wrapBodies(d, func(b io.ReadCloser) io.ReadCloser { return throttledBody{b, 16 << 10} }) // the size of a TLS record
		resp, err := l.ask(t.Context(), "GET", blobPath("library/a", d))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 64<<10)
		worst := time.Duration(0)
		for {
			start := time.Now()
			_, err := resp.Body.Read(buf)
			if worst = max(worst, time.Since(start)); err != nil {
				break
			}
		}
		if worst > 300*time.Millisecond {
			t.Errorf("%s without a byte, though 16 KiB come every 100 ms", worst)
		}
	})
}

// TestNothingIsRequestedOrWrittenAfterClose: a request that is running when the server
// stops causes no upstream request and writes nothing after Close.
func TestNothingIsRequestedOrWrittenAfterClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		l.pull(l.smallImage("library/redis", "7"))
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
			t.Errorf("upstream saw after Close:\n%s", l.hub.Ledger())
		}
		if _, err := os.Stat(l.blobFile(img.Digest)); err == nil {
			t.Error("a manifest was written after Close")
		}
		if i := strings.Index(l.log.String(), "level=ERROR"); i >= 0 {
			t.Error(l.log.String()[i:])
		}
		l.start()
	})
}
