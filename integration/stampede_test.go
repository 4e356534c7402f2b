//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const (
	stampedeSize  = 64 << 20
	stampedeSpeed = 20 << 20        // bytes a second of the whole CDN
	stampedeFirst = 3 * time.Second // limit for the first byte of a blob
)

// memoryBlob is a blob of the Hub, held in memory. Tests compare bodies with it, since hashing
// fifty of them would take the test longer than serving them takes the server.
type memoryBlob struct {
	url    string
	digest string
	bytes  []byte
}

func addMemoryBlob(t *testing.T, hub *hubtest.Hub, s *server, tag string) memoryBlob {
	t.Helper()
	img := hub.AddImage("library/big", tag, hubtest.ImageSpec{Layers: hubtest.Layers(1, stampedeSize)})
	get(t, s.URL+"/v2/library/big/manifests/"+tag)
	layer := img.Manifests[0].Layers[0].Digest
	b := memoryBlob{url: s.URL + "/v2/library/big/blobs/" + layer.String(), digest: layer.String(), bytes: make([]byte, stampedeSize)}
	if _, err := io.ReadFull(hub.Blob(layer), b.bytes); err != nil {
		t.Fatal(err)
	}
	return b
}

// read gets the blob's first n bytes, compares them and closes the connection. It returns how
// long the first byte took.
func (b memoryBlob) read(ctx context.Context, n int) (first time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	resp, err := labClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", resp.Status)
	}
	buf := make([]byte, 256<<10)
	for at := 0; at < n; {
		got, err := resp.Body.Read(buf)
		if at == 0 {
			first = time.Since(start)
		}
		if !bytes.Equal(buf[:got], b.bytes[at:min(at+got, len(b.bytes))]) {
			return first, fmt.Errorf("wrong bytes between %d and %d", at, at+got)
		}
		at += got
		if err == io.EOF && at == len(b.bytes) {
			break
		}
		if err != nil {
			return first, fmt.Errorf("after %d bytes: %w", at, err)
		}
	}
	return first, nil
}

// checkFetchedOnce checks that the CDN has sent each byte of the blob once, in one request or in
// several with different ranges.
func (b memoryBlob) checkFetchedOnce(t *testing.T, hub *hubtest.Hub) {
	t.Helper()
	fetches := hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN && e.Reference == b.digest })
	if got := fetches.BlobBytes(); got != stampedeSize {
		t.Errorf("upstream sent %d bytes of a blob of %d:\n%s", got, stampedeSize, fetches)
	}
	var ranges []string
	for _, e := range fetches {
		ranges = append(ranges, e.Range)
	}
	slices.Sort(ranges)
	if len(slices.Compact(ranges)) != len(fetches) {
		t.Errorf("a range was requested twice:\n%s", fetches)
	}
}

// TestFiftyClientsOneDownload has fifty clients request a blob that is not cached at the same
// moment.
func TestFiftyClientsOneDownload(t *testing.T) {
	hub := startHub(t, hubtest.Options{TotalBandwidth: stampedeSpeed, Latency: 20 * time.Millisecond})
	s := startServer(t, serverOptions{Hub: hub})
	blob := addMemoryBlob(t, hub, s, "1")
	var clients sync.WaitGroup
	var mu sync.Mutex
	var firsts []time.Duration
	for i := range 50 {
		clients.Go(func() {
			first, err := blob.read(t.Context(), stampedeSize)
			if err != nil {
				t.Errorf("client %d: %v", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			firsts = append(firsts, first)
		})
	}
	clients.Wait()
	slices.Sort(firsts)
	t.Logf("first byte: median %v, last %v", firsts[25], firsts[49])
	if firsts[49] > stampedeFirst {
		t.Errorf("a client had to wait %v for its first byte", firsts[49])
	}
	blob.checkFetchedOnce(t, hub)
	stats := s.Stats()
	if b := stats.Requests.Blob; b.Miss+b.Shared+b.Hit != 50 || b.Miss != 1 {
		t.Errorf("counted as %+v", b)
	}
	if stats.Bytes.Served < 50*stampedeSize {
		t.Errorf("bytes.served is %d", stats.Bytes.Served)
	}
}

// TestDownloadGoesOnWithoutItsFirstClient has the client that began a download leave after a tenth
// of the blob, and another one join when half of it has arrived.
func TestDownloadGoesOnWithoutItsFirstClient(t *testing.T) {
	hub := startHub(t, hubtest.Options{TotalBandwidth: stampedeSpeed})
	s := startServer(t, serverOptions{Hub: hub})
	blob := addMemoryBlob(t, hub, s, "1")
	if _, err := blob.read(t.Context(), stampedeSize/10); err != nil {
		t.Fatal(err)
	}
	// The download goes on without a client.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		inflight := s.Stats().Inflight
		if len(inflight) != 1 || time.Now().After(deadline) {
			t.Fatalf("in flight: %+v", inflight)
		}
		if inflight[0].Received >= stampedeSize/2 {
			break
		}
	}
	first, err := blob.read(t.Context(), stampedeSize)
	if err != nil {
		t.Errorf("the client that joined: %v", err)
	}
	if first > stampedeFirst {
		t.Errorf("the client that joined waited %v for its first byte", first)
	}
	if _, err := blob.read(t.Context(), stampedeSize); err != nil {
		t.Errorf("a client after the download: %v", err)
	}
	blob.checkFetchedOnce(t, hub)
	if b := s.Stats().Requests.Blob; b.Miss != 1 || b.Shared+b.Hit != 2 {
		t.Errorf("counted as %+v", b)
	}
}
