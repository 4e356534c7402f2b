//go:build integration

package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// sendRaw sends these bytes and returns the answer until the connection ends or the time is up.
// ended reports whether the server has closed the connection.
func sendRaw(t *testing.T, addr, request string, within time.Duration) (answer string, ended bool) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		return "", true
	}
	conn.SetReadDeadline(time.Now().Add(within))
	b, err := io.ReadAll(conn)
	ne, timeout := err.(net.Error)
	return string(b), !timeout || !ne.Timeout()
}

// TestHostileRequestsAreRefused sends names and digests with path traversal, endless headers and
// unexpected methods. All answers must be 4xx or 301, and no request may go upstream.
func TestHostileRequestsAreRefused(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	hex := strings.Repeat("a", 64)
	for _, path := range []string{
		"/v2/../../../etc/passwd/manifests/latest", "/v2/..%2f..%2fetc/manifests/latest", "/v2/library/redis/blobs/sha256:../../../../etc/passwd",
		"/v2/library/redis/blobs/sha256:" + strings.Repeat("../", 21) + "x", "/v2/library/redis/blobs/..%2f..%2findex.db", "/v2/library/redis/manifests/..%2f..%2fx",
		"/v2/a%00b/manifests/1", "/v2/library/redis/blobs/SHA256:" + hex, "/v2/library/redis/blobs/md5:" + hex[:32], "/v2/library/redis/manifests/" + strings.Repeat("x", 5000),
		"/v2/" + strings.Repeat("a/", 3000) + "b/manifests/1", "//v2//library//redis//manifests//1", "/index.db", "/v2/library/redis/blobs/uploads/", "/api/v1/stats", "/metrics",
	} {
		a, ended := sendRaw(t, s.Addr, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", time.Minute)
		if !ended || !strings.HasPrefix(a, "HTTP/1.1 4") && !strings.HasPrefix(a, "HTTP/1.1 301") {
			t.Errorf("%.60q: %.80q, ended: %v", path, a, ended)
		}
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "FOO"} {
		a, _ := sendRaw(t, s.Addr, method+" /v2/library/redis/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", time.Minute)
		if !strings.HasPrefix(a, "HTTP/1.1 4") {
			t.Errorf("%s: %.80q", method, a)
		}
	}
	a, ended := sendRaw(t, s.Addr, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("y", 200<<10)+"\r\n\r\n", time.Minute)
	if !ended || a != "" && !strings.HasPrefix(a, "HTTP/1.1 431") {
		t.Errorf("headers of 200 KiB: %.80q, ended: %v", a, ended)
	}
	caused := func(e hubtest.Entry) bool { return e.Kind != "ping" } // the server itself pings at its start
	if l := hub.Ledger().Filter(caused); len(l) > 0 {
		t.Errorf("these requests went upstream:\n%s", l)
	}
	s.checkAlive()
}

// TestHostileSlowRequestsAreEnded checks that the server closes connections on which a request
// does not arrive completely.
func TestHostileSlowRequestsAreEnded(t *testing.T) {
	t.Parallel()
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	var wg sync.WaitGroup
	for name, request := range map[string]string{
		"nothing at all":            "",
		"half a request line":       "GET /v2/",
		"half the headers":          "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-",
		"a body that doesn't come":  "POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
		"a GET's body":              "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
		"a chunk that doesn't come": "GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
	} {
		wg.Go(func() {
			start := time.Now()
			if _, ended := sendRaw(t, s.Addr, request, 2*time.Minute); !ended {
				t.Errorf("%s: still open after %s", name, time.Since(start))
			}
		})
	}
	wg.Wait()
	s.checkAlive()
}

// TestHostileIdleConnectionsStopNoPull checks that pulls work and memory stays bounded beside
// 10,000 idle connections.
func TestHostileIdleConnectionsStopNoPull(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 11_000 {
		t.Fatalf("11,000 file descriptors are needed, the limit is %d (ulimit -Hn): %v", limit.Cur, err)
	}
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2<<20)})
	conns := make([]net.Conn, 0, 10_000)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for len(conns) < cap(conns) {
		c, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
		if len(conns)%10 == 0 { // one in ten has made a request before it is idle
			fmt.Fprintf(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("connection %d: %v", len(conns), err)
			}
			io.Copy(io.Discard, resp.Body)
		}
	}
	for range 2 {
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Error(err)
		}
	}
	k := &soak{s: s}
	if rss := k.status(t, "VmRSS:"); rss > 2*soakMemory {
		t.Errorf("%d MiB resident", rss>>20)
	} else {
		t.Logf("%d connections: %d MiB resident", len(conns), rss>>20)
	}
	s.checkAlive()
}
