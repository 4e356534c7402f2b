package registry_test

import (
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// slowHub is an upstream that gives 1 MiB/s to a connection, 30 ms away.
func slowHub() hubtest.Options {
	return hubtest.Options{Bandwidth: mib, Latency: 30 * time.Millisecond, ConnLatency: 60 * time.Millisecond}
}

// roundTrip is what a request on a new connection of slowHub takes, with some time for us.
const roundTrip = 90*time.Millisecond + 60*time.Millisecond

// timed is what a client gets of a range, and when.
type timed struct {
	reply
	first, all time.Duration // since the client asked
}

// getTimed asks for a range and reads the whole answer.
func (l *lab) getTimed(path, field string) (r timed) {
	l.t.Helper()
	began := time.Now()
	resp, err := l.ask(context.Background(), "GET", path, "Range", field)
	if err != nil {
		l.t.Error(err)
		return r
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	one := make([]byte, 1)
	if _, r.err = io.ReadFull(resp.Body, one); r.err == nil {
		r.first = time.Since(began)
		r.body, r.err = readAll(resp.Body, resp.ContentLength)
		r.body = append(one, r.body...)
	}
	r.all = time.Since(began)
	return r
}

// firstUpstreamByte is when the CDN began with its first answer, since then.
func (l *lab) firstUpstreamByte(d digest.Digest, since time.Time, o hubtest.Options) time.Duration {
	e := l.cdnRequests(d)
	if len(e) == 0 {
		l.t.Fatal("the CDN was not asked")
	}
	return e[0].Started.Sub(since) + o.Latency + o.ConnLatency
}

// onceAndWhole checks that the blob has come, whole and right, and each byte of it once.
func (l *lab) onceAndWhole(repository string, d digest.Digest, size int64) {
	l.t.Helper()
	l.drain()
	if _, ok := l.store.Has(d); !ok {
		l.t.Error("the blob isn't kept")
	}
	if n := l.hub.Ledger().BlobBytes(); n != size {
		l.t.Errorf("upstream sent %d bytes of %d: %s", n, size, l.cdnRequests(d))
	}
	l.checkStore(d)
}

// TestFarRangeOfAColdBlobComesAtOnce: a range far into a cold blob begins within one round trip of
// the upstream's first byte, wherever it lies, and costs no byte twice; the blob is completed.
func TestFarRangeOfAColdBlobComesAtOnce(t *testing.T) {
	t.Parallel()
	const size = 48 * mib
	for field, n := range map[string]int64{
		fmt.Sprintf("bytes=%d-%d", size-mib, size-1): mib,
		"bytes=-1048576":                     mib,
		"bytes=-1":                           1,
		"bytes=25000000-25050000":            50001,
		fmt.Sprintf("bytes=%d-", size-2*mib): 2 * mib,
		fmt.Sprintf("bytes=%d-%d", 3*mib/2+7, 3*mib/2+99): 93,
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: slowHub()})
				d := l.oneLayerImage(size)
				began := time.Now()
				r := l.getTimed(blobPath("library/one", d), field)
				if r.status != 206 || r.err != nil || int64(len(r.body)) != n {
					t.Fatalf("%d, %d bytes, %v", r.status, len(r.body), r.err)
				}
				first := l.firstUpstreamByte(d, began, slowHub())
				if r.first > first+roundTrip {
					t.Errorf("the first byte came after %s, the upstream's after %s: %s", r.first, first, l.cdnRequests(d))
				}
				direct := first + time.Duration(float64(n)/mib*float64(time.Second))
				if strings.HasSuffix(field, "-") { // its last byte waits for all the others
				} else if r.all > direct*3/2+roundTrip {
					t.Errorf("it took %s, from the upstream %s", r.all, direct)
				}
				l.onceAndWhole("library/one", d, size)
			})
		})
	}
}

// TestLazyPullerNeedsNoMoreThanItReads: a client reads the index at the end of a layer, and then
// small pieces of it here and there, one after the other; each comes within a round trip and its own
// bytes, also in what the download has claimed for later.
func TestLazyPullerNeedsNoMoreThanItReads(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{false, true} { // another client pulls the same layer as a whole
		t.Run(fmt.Sprint("whole ", whole), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: slowHub()})
				const size = 48 * mib
				d := l.oneLayerImage(size)
				var other sync.WaitGroup
				if whole {
					other.Go(func() { l.blob("library/one", string(d)) })
					time.Sleep(time.Second)
				}
				for i, off := range []int64{size - 51, size - 600<<10, 40 * mib, 3 * mib, 20*mib + 12345, 33 * mib, 7 * mib} {
					n := int64(64 << 10)
					if i == 0 {
						n = 51
					}
					r := l.getTimed(blobPath("library/one", d), fmt.Sprintf("bytes=%d-%d", off, off+n-1))
					if r.status != 206 || r.err != nil || int64(len(r.body)) != n {
						t.Fatalf("%d: %d, %d bytes, %v", off, r.status, len(r.body), r.err)
					}
					l.same(string(d), off, r.body)
					limit := roundTrip + 64*time.Millisecond
					if i == 0 && !whole {
						limit += 400 * time.Millisecond // the registry, the token, the first answer
					} else {
						limit += 300 * time.Millisecond // it may lie near what is on its way: a piece
					}
					if r.all > limit {
						t.Errorf("%d bytes at %d took %s: %s", n, off, r.all, l.cdnRequests(d))
					}
				}
				other.Wait()
				if whole { // a chunk on its way was cut: what was in the connection comes again
					l.drain()
					if n := l.hub.Ledger().BlobBytes(); n > size+size/50 {
						t.Errorf("upstream sent %d bytes of %d", n, size)
					}
					l.checkStore(d)
					return
				}
				l.onceAndWhole("library/one", d, size)
			})
		})
	}
}

// TestFarRangeOfABlobThatIsPulledWhole: one connection brings a small blob, and one whose size nobody
// knew when it was asked for. A range far into it is asked for by another one all the same, where the
// upstream says that it knows ranges.
func TestFarRangeOfABlobThatIsPulledWhole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size           int64
		listed, ranges bool
	}{{24 * mib, false, true}, {6 * mib, true, true}, {6 * mib, false, true}, {6 * mib, true, false}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := slowHub()
				o.IgnoreRange = !c.ranges
				l := newLab(t, labOptions{hub: o})
				layer := hubtest.Layers(1, c.size)[0]
				d := l.hub.AddImage("library/one", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{layer}}).Manifests[0].Layers[0].Digest
				if c.listed {
					l.get("/v2/library/one/manifests/1")
				}
				var whole sync.WaitGroup
				whole.Go(func() { l.blob("library/one", string(d)) })
				time.Sleep(time.Second)
				r := l.getTimed(blobPath("library/one", d), "bytes=-1000")
				if r.status != 206 || r.err != nil || len(r.body) != 1000 {
					t.Fatalf("%d, %d bytes, %v", r.status, len(r.body), r.err)
				}
				l.same(string(d), c.size-1000, r.body)
				if c.ranges && r.all > roundTrip+300*time.Millisecond {
					t.Errorf("it took %s: %s", r.all, l.cdnRequests(d))
				}
				whole.Wait()
				l.drain()
				if n := l.hub.Ledger().BlobBytes(); n > c.size+c.size/50 || !c.ranges && n != c.size {
					t.Errorf("upstream sent %d bytes of %d: %s", n, c.size, l.cdnRequests(d))
				}
				if _, ok := l.store.Has(d); !ok {
					t.Error("the blob isn't kept")
				}
				l.checkStore(d)
			})
		})
	}
}

// TestFaultsInADemandedRange: what goes wrong in the range that a client waits for goes wrong as
// anywhere else: it is resumed, and no wrong byte is kept.
func TestFaultsInADemandedRange(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	for name, fault := range map[string]hubtest.Fault{
		"cut": hubtest.CutAfter(100_000), "reset": hubtest.ResetAfter(100_000), "stall": hubtest.StallAfter(100_000),
		"expired": hubtest.ExpiredURL(), "503": hubtest.Status(503, ""), "no ranges": hubtest.IgnoreRange(), "wrong byte": hubtest.FlipByte(size - 1000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{Bandwidth: 4 * mib}})
				d := l.oneLayerImage(size)
				rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Range: fmt.Sprintf("bytes=%d-*", size-300_000), Times: 1}, fault)
				r := l.getTimed(blobPath("library/one", d), "bytes=-300000")
				if r.status != 206 || r.err != nil || len(r.body) != 300_000 {
					t.Fatalf("%d, %d bytes, %v", r.status, len(r.body), r.err)
				}
				if name != "wrong byte" {
					l.same(string(d), size-300_000, r.body)
				}
				l.drain()
				if rule.Hits() != 1 {
					t.Errorf("the fault was met %d times: %s", rule.Hits(), l.cdnRequests(d))
				}
				if _, ok := l.store.Has(d); ok != (name != "wrong byte") {
					t.Errorf("kept: %v", ok)
				}
				l.hub.ClearFaults()
				l.fetch("library/one", d)
				l.checkStore(d)
			})
		})
	}
}

// TestSourceWithoutRangesServesParts: an upstream that answers each range with the whole blob is
// read once, in order.
func TestSourceWithoutRangesServesParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := slowHub()
		o.IgnoreRange = true
		l := newLab(t, labOptions{hub: o})
		const size = 5 * mib
		d := l.oneLayerImage(size)
		for _, field := range []string{"bytes=-1000", "bytes=3000000-3000999"} {
			r := l.getTimed(blobPath("library/one", d), field)
			if r.status != 206 || r.err != nil || len(r.body) != 1000 {
				t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
			}
		}
		l.onceAndWhole("library/one", d, size)
	})
}

// TestLazyClientThatLeavesLeavesAWholeBlob: the client of the first range is gone before its bytes
// come, others come and go; the blob is completed, each byte once.
func TestLazyClientThatLeavesLeavesAWholeBlob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: slowHub()})
		const size = 12 * mib
		d := l.oneLayerImage(size)
		for i := range int64(8) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(100+50*i)*time.Millisecond)
			off := size - (i+1)*mib
			resp, err := l.ask(ctx, "GET", blobPath("library/one", d), "Range", fmt.Sprintf("bytes=%d-%d", off, off+mib-1))
			if err == nil {
				io.CopyN(io.Discard, resp.Body, 1000)
				resp.Body.Close()
			}
			cancel()
		}
		l.onceAndWhole("library/one", d, size)
	})
}

// TestDemandedPieceSurvivesARestart: what was written ahead of the rest is not fetched again, and is
// hashed when the rest has come.
func TestDemandedPieceSurvivesARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: slowHub()})
		const size = 12 * mib
		d := l.oneLayerImage(size)
		if r := l.getTimed(blobPath("library/one", d), "bytes=-2097152"); r.status != 206 || r.err != nil {
			t.Fatal(r.status, r.err)
		}
		l.stop()
		sent := l.hub.Ledger().BlobBytes()
		l.start()
		r := l.getTimed(blobPath("library/one", d), "bytes=-2097152")
		if r.status != 206 || r.err != nil || r.all > roundTrip+400*time.Millisecond {
			t.Errorf("%d after %s, %v", r.status, r.all, r.err)
		}
		l.same(string(d), size-2*mib, r.body)
		l.drain()
		if again := l.hub.Ledger().BlobBytes() - sent; again > size-2*mib {
			t.Errorf("%d bytes were fetched after the restart", again)
		}
		l.checkStore(d)
		if _, ok := l.store.Has(d); !ok {
			t.Error("the blob isn't kept")
		}
	})
}

// TestReadAheadYieldsToDemandedRanges: read-ahead has all connections but one, at work on long
// chunks. A range is there within a round trip all the same, and what stands still meanwhile is not
// fetched again.
func TestReadAheadYieldsToDemandedRanges(t *testing.T) {
	t.Parallel()
	for _, transfers := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(transfers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: slowHub(), policy: func(p *registry.Policy) { p.ReadAhead, p.Limits.Transfers = true, transfers }})
				layers := l.addImage("library/lazy", "1", 12*mib, 9*mib, 10*mib, 11*mib)
				l.get("/v2/library/lazy/manifests/1")
				path := blobPath("library/lazy", layers[0])
				if r := l.getTimed(path, "bytes=0-1"); r.status != 206 {
					t.Fatal(r.status)
				}
				time.Sleep(3 * time.Second)
				if r := l.getTimed(path, "bytes=-1000"); r.status != 206 || r.err != nil || r.all > roundTrip+300*time.Millisecond {
					t.Errorf("%d after %s, %v", r.status, r.all, r.err)
				}
				l.drain()
				for time.Sleep(time.Minute); len(l.reg.Stats().Inflight) > 0; time.Sleep(time.Second) {
				}
				if n, want := l.hub.Ledger().BlobBytes(), int64(42*mib); n > want+want/50 && transfers > 1 {
					t.Errorf("upstream sent %d bytes", n)
				}
				l.checkStore(layers...)
			})
		})
	}
}

// TestOnlyWholeBodiesWaitForTheDigest: of a blob with a wrong byte at its beginning, the parts at its
// end are sent, also of a small one and to the last byte. Nothing that the digest speaks for ends
// well: not the blob, nor the rest from some byte on, nor a closed range that has all of it.
func TestOnlyWholeBodiesWaitForTheDigest(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{300_000, 3 * mib} {
		for field, ok := range map[string]bool{
			"bytes=-1000": true, fmt.Sprintf("bytes=%d-%d", size-1000, size-1): true, "bytes=5000-9000": true, "bytes=5000-5999,-1000": true,
			"": false, "bytes=0-": false, fmt.Sprintf("bytes=%d-", size-1000): false, fmt.Sprintf("bytes=0-%d", size-1): false,
		} {
			for _, when := range []string{"miss", "bypass"} {
				t.Run(fmt.Sprint(size, " ", when, " ", field), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						o := labOptions{hub: hubtest.Options{Bandwidth: mib}}
						if when == "bypass" {
							o.budget = 200_000
						}
						l := newLab(t, o)
						d := l.oneLayerImage(size)
						l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.FlipByte(100))
						r := l.get(blobPath("library/one", d), "Range", field)
						if good := r.status == 206 && r.err == nil; good != ok {
							t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
						}
						if _, kept := l.store.Has(d); kept {
							t.Error("it is kept")
						}
					})
				})
			}
		}
	}
}

// TestSeveralRangesInOneAnswer: valid ranges get one part each, in the order asked for, on a hit, in
// flight and in bypass; the upstream sees single ranges only, and each byte once.
func TestSeveralRangesInOneAnswer(t *testing.T) {
	t.Parallel()
	const size = 12 * mib
	spans := [][2]int64{{size - 1000, size}, {0, 100}, {5 * mib, 5*mib + 200_000}, {5*mib + 200_000, 5*mib + 200_001}, {9 * mib, 9*mib + 10}}
	var fields []string
	for _, s := range spans {
		fields = append(fields, fmt.Sprintf("%d-%d", s[0], s[1]-1))
	}
	field := "bytes=" + strings.Join(fields, ", ")
	for _, when := range []string{"miss", "shared", "hit", "bypass", "bypass without ranges"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := labOptions{hub: hubtest.Options{Bandwidth: 4 * mib, Latency: 30 * time.Millisecond, IgnoreRange: when == "bypass without ranges"}}
				bypass := strings.HasPrefix(when, "bypass")
				if bypass {
					o.budget = mib
				}
				l := newLab(t, o)
				d := l.oneLayerImage(size)
				path := blobPath("library/one", d)
				var other sync.WaitGroup
				switch when {
				case "shared":
					other.Go(func() { l.blob("library/one", string(d)) })
					time.Sleep(500 * time.Millisecond)
				case "hit":
					l.get(path)
					l.drain()
				}
				r := l.get(path, "Range", field)
				if o.hub.IgnoreRange {
					if r.status != 200 || r.err != nil || len(r.body) != size {
						t.Fatalf("%d, %d bytes, %v", r.status, len(r.body), r.err)
					}
					l.same(string(d), 0, r.body)
					return
				}
				l.sameParts(d, r, spans, size)
				other.Wait()
				for _, e := range l.cdnRequests(d) {
					if strings.Contains(e.Range, ",") {
						t.Errorf("upstream was asked for %s", e.Range)
					}
				}
				if bypass {
					if n := l.hub.Ledger().BlobBytes(); n != 201_111 {
						t.Errorf("upstream sent %d bytes", n)
					}
					return
				}
				if when == "shared" { // what was in a connection that was cut comes again
					l.drain()
					if n := l.hub.Ledger().BlobBytes(); n > size+size/50 {
						t.Errorf("upstream sent %d bytes", n)
					}
					return
				}
				l.onceAndWhole("library/one", d, size)
			})
		})
	}
}

// sameParts checks an answer of several parts.
func (l *lab) sameParts(d digest.Digest, r reply, spans [][2]int64, size int64) {
	l.t.Helper()
	kind, params, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if r.status != 206 || r.err != nil || err != nil || kind != "multipart/byteranges" {
		l.t.Fatalf("%d %v, %d bytes, %v %v", r.status, r.header, len(r.body), r.err, err)
	}
	parts := multipart.NewReader(strings.NewReader(string(r.body)), params["boundary"])
	for _, s := range spans {
		p, err := parts.NextPart()
		if err != nil {
			l.t.Fatal(err)
		}
		if got, want := p.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", s[0], s[1]-1, size); got != want {
			l.t.Errorf("%s, want %s", got, want)
		}
		b, err := io.ReadAll(p)
		if err != nil || int64(len(b)) != s[1]-s[0] {
			l.t.Errorf("%d bytes, %v", len(b), err)
		}
		l.same(string(d), s[0], b)
	}
	if _, err := parts.NextPart(); err != io.EOF {
		l.t.Errorf("one more part: %v", err)
	}
}
