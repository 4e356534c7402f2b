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
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestBlobLargerThanTheBudgetIsDelivered: a blob that can never fit is passed through.
// Nothing is evicted for it, and it is downloaded once.
func TestBlobLargerThanTheBudgetIsDelivered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 4 * mib})
		kept := l.oneLayerImage(2 * mib)
		l.blob("library/one", string(kept))
		big := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 20*mib)})
		r := l.blob("library/big", string(big.Manifests[0].Layers[0].Digest))
		if r.header.Get("X-Hubcache") != "bypass" {
			t.Errorf("X-Hubcache: %s", r.header.Get("X-Hubcache"))
		}
		l.drain()
		if _, ok := l.store.Has(kept); !ok {
			t.Error("a cached blob was evicted for nothing")
		}
		if n := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Repository == "library/big" }).BlobBytes(); n > 20*mib+64<<10 {
			t.Errorf("upstream sent %d bytes", n)
		}
		if st := l.reg.Stats(); st.Blob.Bypass != 1 {
			t.Errorf("counted: %+v", st.Blob)
		}
	})
}

// TestBlobOfUnknownSizeBeyondTheBudgetIsDelivered: a blob without a known size turns out
// not to fit while it is downloaded. Its client gets all of it, and nothing stays in the
// store.
func TestBlobOfUnknownSizeBeyondTheBudgetIsDelivered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20}, budget: 9 << 20})
		d := l.addImage("library/app", "1", 5<<21)[0]
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
		for _, from := range []int64{0, 0, 0} {
			c := &client{name: "chunked", from: from}
			c.get(l, "library/app", d)
			c.check(t, l, d, whole)
		}
		l.checkStore(d)
		if n := l.store.Stats().Bytes; n != 0 {
			t.Errorf("%d bytes stayed in the store", n)
		}
	})
}

// TestFallbackOfUnknownSizeGoesOnWhereTheFileEnds: a blob of unknown size outgrows the budget. What
// the file has isn't fetched again for its client.
func TestFallbackOfUnknownSizeGoesOnWhereTheFileEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 10 * mib
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20}, budget: 9 * mib})
		for _, end := range []byte{1, 2} {
			b := append(bytes.Clone(noise()[:size-1]), end)
			d := l.hub.AddBlobAt("library/app", "", digest.FromBytes(b), hubtest.Bytes(b), size).Digest
			l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
			if end == 2 { // and has a wrong byte behind what the file has
				l.hub.ClearFaults()
				l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked(), hubtest.FlipByte(size-1000))
			}
			l.hub.ResetLedger()
			r := l.get(blobPath("library/app", d))
			if end == 1 && (r.status != 200 || r.err != nil || !equal(r.body, b)) || end == 2 && (r.err == nil || len(r.body) >= size) {
				t.Errorf("end %d: %d, %d bytes, %v", end, r.status, len(r.body), r.err)
			}
			l.waitIdle()
			if n := l.hub.Ledger().BlobBytes(); n > size+mib { // what was on its way when the room ended
				t.Errorf("end %d: upstream sent %d bytes of %d\n%s", end, n, size, l.hub.Ledger())
			}
		}
	})
}

// TestBypassHoldsTheLastByteUntilVerified: a blob with a wrong byte that is passed through
// ends with an error before its last byte, as a cached one does.
func TestBypassHoldsTheLastByteUntilVerified(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: mib})
		d := l.oneLayerImage(3 * mib)
		// The first request asks for one byte, to know whether the manifest claims the right size.
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Skip: 1, Times: 1}, hubtest.FlipByte(1000))
		if r := l.get(blobPath("library/one", d)); r.err == nil || len(r.body) >= 3*mib {
			t.Errorf("%d bytes, some of them wrong, and the error %v", len(r.body), r.err)
		}
		l.blob("library/one", string(d))
	})
}

// TestPausingBypassClientNeedsOneDownload: a client that pauses between reads gets all of a
// blob that is passed through, and its download is not begun again.
func TestPausingBypassClientNeedsOneDownload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, budget: 4 * mib})
		d := l.oneLayerImage(8 * mib)
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
			time.Sleep(15 * time.Second) // as with a slow disk at the client
		}
		if n := l.hub.Ledger().BlobBytes(); total != 8*mib || n > 8*mib+1 { // a byte to know the size
			t.Errorf("%d bytes, %d from upstream, resumes %d", total, n, l.reg.Stats().Resumes)
		}
	})
}

// TestHTTP10ClientGetsNoWrongBytesOfUnknownLength: a client of HTTP/1.0, as nginx is by
// default, cannot tell the end of a body of unknown length from a broken one, so wrong
// bytes must not end like a success.
func TestHTTP10ClientGetsNoWrongBytesOfUnknownLength(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{anonymous: true})
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
		return // the connection was cut, which is right
	}
	b, err := readAll(resp.Body, -1)
	if resp.StatusCode == 200 && err == nil && digest.FromBytes(b) != d {
		t.Errorf("%d bytes of %d, ended without an error: %s %v", len(b), 8*mib, resp.Proto, resp.Header)
	}
}
