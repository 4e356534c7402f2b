package content

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// TestSendfileIsUsed: no byte of a file is copied for a plain connection, and TLS gets the
// same bytes through a buffer. How net/http hands over its connection is not in its
// contract; this test says when that changes.
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
	buffers = sync.Pool{New: func() any { copies.Add(1); return new([bufferSize]byte) }}
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		off, n := int64(1000), int64(len(want)-1000)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		if sent, err := sendFile(w, nil, f, off, n, req.URL.Path == "/fresh"); err != nil || sent != n {
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

// stuck is a client that reads nothing. Its connection is a socket that only sendfile writes to.
type stuck struct {
	http.ResponseWriter
	missed            bool // the first deadline
	deadlines, writes int  // after it
}

func (s *stuck) ReadFrom(io.Reader) (int64, error) {
	s.missed = true
	return 0, os.ErrDeadlineExceeded
}
func (s *stuck) Write(p []byte) (int, error) { s.writes++; return 0, os.ErrDeadlineExceeded }
func (s *stuck) Flush()                      {}
func (s *stuck) SetWriteDeadline(time.Time) error {
	if s.missed {
		s.deadlines++
	}
	return nil
}

// TestStuckClientIsCutOnce: a client that has read nothing for a write deadline doesn't get
// a second one.
func TestStuckClientIsCutOnce(t *testing.T) {
	const size = 4 << 20
	store, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: 1 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	body := make([]byte, size)
	in, err := store.Begin(storage.Origin{Repository: "docker.io/library/a"}, digest.FromBytes(body), size)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Abort(errors.New("the test ends"))
	in.WriteAt(body, 0)
	rd, _ := in.Reader()
	defer rd.Close()
	w := &stuck{ResponseWriter: httptest.NewRecorder()}
	_, err = Growing(httptest.NewRequest("GET", "/", nil), rd)(w, 0, size)
	if err == nil || w.deadlines > 0 || w.writes > 0 {
		t.Errorf("%v; %d more deadlines, %d more writes", err, w.deadlines, w.writes)
	}
}

// TestSlowSendfileTellsTheScheduler: after a call that has waited for a disk, the scheduler is
// told of the next ones.
func TestSlowSendfileTellsTheScheduler(t *testing.T) {
	const size = 8 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		s := &fileSender{f: f, n: size, pace: long, w: w}
		s.sendfile = func(to, from int, at *int64, n int) (int, error) {
			calls.Add(1)
			time.Sleep(2 * maxTurn)
			return sendfileAtOnce(to, from, at, n)
		}
		http.NewResponseController(w).Flush()
		if sent, err := w.(io.ReaderFrom).ReadFrom(s); sent != size || err != nil {
			t.Error(sent, err)
		}
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil || calls.Load() != 1 {
		t.Errorf("%d bytes, %v, %d calls", n, err, calls.Load())
	}
}
