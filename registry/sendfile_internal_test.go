package registry

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// TestSendfileIsUsed: nothing copies what a file has for a plain connection, and TLS gets
// the same bytes by way of a buffer. How net/http hands over its connection is not in its
// contract; this says when that changes.
func TestSendfileIsUsed(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 300<<10) // some pieces, and not a whole number
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	var copies atomic.Int32
	copyBuffers = sync.Pool{New: func() any { copies.Add(1); return new([copyPiece]byte) }}
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		off, n := int64(1000), int64(len(want)-1000)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		if sent, err := sendStretch(w, f, off, n, req.URL.Path == "/fresh"); err != nil || sent != n {
			t.Errorf("%d of %d sent: %v", sent, n, err)
		}
	})
	for _, start := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
		copies.Store(0)
		srv := start(handler)
		for _, path := range []string{"/", "/fresh", "/"} { // on one connection
			resp, err := srv.Client().Get(srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, want[1000:]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		}
		if copied := copies.Load() > 0; copied != (srv.TLS != nil) {
			t.Errorf("%s: bytes were copied: %v", srv.URL, copied)
		}
		srv.Close()
	}
}
