package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

// The first client leaves at 10 %, others join at the start and half way, one reads
// throttledBody: everybody gets all, and upstream sends each byte once.
func TestReadersThatJoinAndLeaveShareOneDownload(t *testing.T) {
	for _, ranges := range []int{1, 6} {
		t.Run(fmt.Sprint(ranges, " ranges"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6, Latency: 30 * time.Millisecond},
					policy: func(p *registry.Policy) { p.Limits.Ranges = ranges }})
				const size = 24 * mib
				_, d := l.oneLayerImage(size)
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
					t.Errorf("%d GETs", n)
				}
				if got := l.reg.Stats().Fetched; got < size || got > size+10_000 {
					t.Errorf("fetched %d", got)
				}
			})
		})
	}
}

// TestStampedeIsOneDownload: however many clients come at once, every byte of the image
// crosses the wire once, in ranges that don't overlap.
func TestStampedeIsOneDownload(t *testing.T) {
	s := newStand(t, slog.New(slog.DiscardHandler))
	img := s.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Index: true, Layers: hubtest.Layers(2, 9<<20)})
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			if err := s.pull(img); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	l := s.hub.Ledger()
	if got := l.BlobBytes(); got != img.Size() {
		t.Errorf("%d bytes for an image of %d", got, img.Size())
	}
	if n := l.ManifestGETs(); n != 2 {
		t.Errorf("%d manifest GETs for an index and a manifest", n)
	}
	for _, layer := range img.Manifests[0].Layers {
		type span struct{ from, to int64 }
		var spans []span
		for _, e := range l {
			if e.Face != hubtest.CDN || e.Reference != layer.Digest.String() {
				continue
			}
			var p span
			if n, _ := fmt.Sscanf(e.Range, "bytes=%d-%d", &p.from, &p.to); n != 2 {
				t.Fatalf("%s is no closed range", e)
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

// TestClientsOverTCPFollowAGrowingBlob: clients that follow a download over real sockets get its bytes
// as it grows, and all of them, whole or from anywhere.
func TestClientsOverTCPFollowAGrowingBlob(t *testing.T) {
	s := newStand(t, slog.New(slog.DiscardHandler))
	img := s.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 24<<20)})
	layer := img.Manifests[0].Layers[0]
	want := make([]byte, layer.Size)
	if _, err := s.hub.Blob(layer.Digest).ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	s.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 40 << 20 })
	server := httptest.NewServer(s.reg)
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
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, want[from:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(got), err)
			}
		})
	}
	clients.Wait()
	if l := s.hub.Ledger(); l.BlobBytes() != layer.Size {
		t.Errorf("%d bytes for a blob of %d", l.BlobBytes(), layer.Size)
	}
}

func TestDownloadGoesOnAfterItsOnlyClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 20e6}})
		const size = 32 * mib
		_, d := l.oneLayerImage(size)
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

// Who comes while an orphan is being cancelled.
func TestClientThatJoinsACancelledDownloadIsServed(t *testing.T) {
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

// bodySlowToCancel is a body that takes a second to notice that it is cancelled.
type bodySlowToCancel struct{ io.ReadCloser }

func (b bodySlowToCancel) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		time.Sleep(time.Second)
	}
	return n, err
}

// TestBlobIsServedDespiteAFailureUnderAnotherRepository: somebody asks for a blob under a repository that
// hasn't got it. Who asks for it meanwhile where it is, gets it.
func TestBlobIsServedDespiteAFailureUnderAnotherRepository(t *testing.T) {
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
			t.Errorf("evil: %d", c.status)
		}
		l.checkStore(d)
	})
}

// Nobody waits long for the end of what has come whole.
func TestLastByteIsSentWhenTheBlobIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{Bandwidth: 5e6, Latency: 30 * time.Millisecond},
			policy: func(p *registry.Policy) { p.Limits.Transfers = 8 }})
		var ds []digest.Digest
		for i := range 8 { // as many as there are lanes
			size := 64*mib + int64(i)
			if i == 0 {
				size = 16 * mib
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
			t.Errorf("the last byte was held for %s after it had come", worst)
		}
	})
}

// A steady connection that is slower than we are: its reader sees what comes as it comes.
func TestBytesOfASlowConnectionAreSentAsTheyArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		d := l.zeroImage("library/a", 6*mib)
		l.wrapBodies(d, func(b io.ReadCloser) io.ReadCloser { return throttledBody{b, 16 << 10} }) // as whole TLS records
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
			t.Errorf("%s without a byte, and 16 KiB come every 100 ms", worst)
		}
	})
}

// What is asked for when the server stops is written after the store is closed.
func TestNothingIsRequestedOrWrittenAfterClose(t *testing.T) {
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
