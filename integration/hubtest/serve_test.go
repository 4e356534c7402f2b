package hubtest_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestLatencyAndBandwidthAreExact checks latency and bandwidth on synctest's clock, which only
// the Hub's waiting moves.
func TestLatencyAndBandwidthAreExact(t *testing.T) {
	took := func(t *testing.T, o hubtest.Options, clients int) time.Duration {
		var d time.Duration
		synctest.Test(t, func(t *testing.T) {
			hub := hubtest.New(o)
			defer hub.Close()
			c, path, want := faulty(t, hub, hub.Transport())
			start := time.Now()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
						t.Errorf("%d, %d bytes, %v", a.StatusCode, len(a.body), a.err)
					}
				})
			}
			wg.Wait()
			d = time.Since(start).Round(time.Millisecond)
		})
		return d
	}
	for name, row := range map[string]struct {
		o       hubtest.Options
		clients int
		want    time.Duration
	}{
		"nothing":         {hubtest.Options{}, 3, 0},
		"latency":         {hubtest.Options{Latency: time.Second}, 1, 2 * time.Second}, // registry and CDN
		"connections":     {hubtest.Options{ConnLatency: time.Second}, 1, 2 * time.Second},
		"first byte":      {hubtest.Options{FirstByte: time.Second}, 1, time.Second},
		"bandwidth":       {hubtest.Options{Bandwidth: 10_000}, 3, 10 * time.Second},
		"total bandwidth": {hubtest.Options{TotalBandwidth: 10_000}, 3, 30 * time.Second},
	} {
		if got := took(t, row.o, row.clients); got != row.want {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}

// TestClockSkewChangesDatesOnly checks that the Hub's dates are wrong while its tokens work.
func TestClockSkewChangesDatesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{ClockSkew: -time.Hour})
		defer hub.Close()
		c, path, want := faulty(t, hub, hub.Transport())
		a := c.get("GET", faultyRepo, path)
		date, err := http.ParseTime(a.Header.Get("Date"))
		if err != nil || time.Since(date) != time.Hour || !bytes.Equal(a.body, want) {
			t.Errorf("%v, %v old, status %d", err, time.Since(date), a.StatusCode)
		}
	})
}

// TestLedgerIsCompleteForFaultsInTheHeader checks the ledger right after responses that end with
// their header or are not written by net/http.
func TestLedgerIsCompleteForFaultsInTheHeader(t *testing.T) {
	for name, row := range map[string]struct {
		o      hubtest.Options
		method string
		fault  hubtest.Fault
	}{
		"raw":                   {hubtest.Options{}, "GET", hubtest.Raw(503, "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")},
		"HEAD without a length": {hubtest.Options{}, "HEAD", hubtest.Chunked()},
		"empty body":            {hubtest.Options{FirstByte: time.Microsecond}, "GET", hubtest.Status(404, "")},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, row.o, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
				c, path, _ := faulty(t, hub, rt)
				hub.Inject(hubtest.Match{Face: hubtest.CDN}, row.fault)
				for i := range 1000 {
					hub.ResetLedger()
					a := c.get(row.method, faultyRepo, path)
					l := hub.Ledger()
					if last := l[len(l)-1]; last.Ended.IsZero() || last.Status != a.StatusCode {
						t.Fatalf("request %d, status %d: %+v", i, a.StatusCode, last)
					}
				}
			})
		})
	}
}

// TestCloseEndsRawResponses checks that Close doesn't wait for a client that reads nothing more
// of a raw response.
func TestCloseEndsRawResponses(t *testing.T) {
	const size = 64 << 20 // more than the kernel's buffers hold
	raw := "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n" + strings.Repeat("x", size)
	for name, https := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, hubtest.Options{TLS: https}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
				hub.Inject(hubtest.Match{}, hubtest.Raw(200, raw))
				if https {
					_, pool := hub.Network.CA()
					rt.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
				}
				resp, err := newClient(t, "", rt).http.Get(hub.RegistryURL() + "/v2/")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				closed := make(chan struct{})
				go func() {
					hub.Close()
					close(closed)
				}()
				select {
				case <-closed:
				case <-time.After(5 * time.Second):
					t.Error("Close waits for the client")
					resp.Body.Close()
					<-closed
				}
			})
		})
	}
}

// TestChunkedHasNoLength checks that Chunked leaves out the length that Status was given too.
func TestChunkedHasNoLength(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, _ := faulty(t, hub, rt)
		hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Status(200, "hello", "Content-Length: 5"), hubtest.Chunked())
		if a := c.get("GET", faultyRepo, path); a.ContentLength != -1 || string(a.body) != "hello" || a.err != nil {
			t.Errorf("length %d, body %q, %v", a.ContentLength, a.body, a.err)
		}
		if a := c.get("HEAD", faultyRepo, path); a.ContentLength != -1 || a.StatusCode != 200 {
			t.Errorf("HEAD: length %d, status %d", a.ContentLength, a.StatusCode)
		}
	})
}

// failingReader is a blob that can't be read from byte 50,000 on.
type failingReader struct{}

func (failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 50_000 {
		return 0, errors.New("the disk is broken")
	}
	return len(p), nil
}

// TestReadErrorsEndTheBody checks that a blob that can't be read arrives as a body that is too
// short, and not as wrong bytes.
func TestReadErrorsEndTheBody(t *testing.T) {
	onBoth(t, hubtest.Options{Bandwidth: 100 << 20}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, _, _ := faulty(t, hub, rt)
		blob := hub.AddBlobAt(faultyRepo, "", digest.FromString("unreadable"), failingReader{}, 100_000)
		a, err := c.tryGet("GET", faultyRepo, "blobs/"+blob.Digest.String())
		if err == nil {
			err = a.err
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || len(a.body) > 50_000 {
			t.Errorf("%v after %d bytes", err, len(a.body))
		}
	})
}
