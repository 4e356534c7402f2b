package server

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func TestUnixSocketReplacesADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s.sock")
	for _, c := range []struct {
		admin bool
		mode  os.FileMode
	}{{true, 0o660}, {false, 0o666}} {
		// A killed server leaves a socket that nobody serves.
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		left, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		left.(*net.UnixListener).SetUnlinkOnClose(false)
		left.Close()

		l, err := listenOn("unix:"+path, c.admin)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != c.mode {
			t.Errorf("admin %v: %v, %v", c.admin, fi.Mode(), err)
		}
		if _, err := listenOn("unix:"+path, c.admin); err == nil || !strings.Contains(err.Error(), "another server") {
			t.Errorf("a socket in use: %v", err)
		}
		l.Close()
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenOn("unix:"+path, true); err == nil {
		t.Error("a file is taken for a socket")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("a file in the way is %q, %v", b, err)
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	if _, err := listenOn(addr, false); err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

// TestTLS: a TCP address has https, with HTTP/2 and HTTP/1.1, and a unix socket beside it
// has plain http.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, socket := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "s.sock")
	writePair(t, certFile, keyFile, 1)
	s := settings.Default()
	s.Listen = settings.List{"127.0.0.1:0", "unix:" + socket}
	s.Admin.Listen = settings.List{"unix:" + filepath.Join(dir, "admin.sock")}
	s.TLS.CertFile, s.TLS.KeyFile, s.DataDir = settings.Text(certFile), settings.Text(keyFile), settings.Text(filepath.Join(dir, "data"))
	srv := &server{settings: &settings.Loaded{Settings: s}, log: slog.New(slog.DiscardHandler), failed: make(chan error, 1)}
	if err := srv.open(); err != nil {
		t.Fatal(err)
	}
	ls, err := srv.listen()
	if err != nil {
		t.Fatal(err)
	}
	srv.serveAll(ls)
	t.Cleanup(func() {
		if err := srv.stop(); err != nil {
			t.Error(err)
		}
	})

	for _, h2 := range []bool{true, false} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2}}
		resp, err := client.Get("https://" + ls[0].Addr().String() + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != h2 {
			t.Errorf("asked for h2 %v: %s, %s", h2, resp.Proto, resp.Status)
		}
		client.CloseIdleConnections()
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
		t.Errorf("%q, %v", b, err)
	}
}
