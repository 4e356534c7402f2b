package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func TestGate(t *testing.T) {
	s := settings.Default()
	s.ListenAllow = settings.List{"10.0.0.0/8", "192.0.2.7", "2001:db8::/32"}
	nets, err := s.AllowedClients()
	if err != nil {
		t.Fatal(err)
	}
	var g gate
	g.set(nets)
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	for _, c := range []struct {
		addr net.Addr
		in   bool
	}{
		{tcp("10.1.2.3:4"), true}, {tcp("[::ffff:10.1.2.3]:4"), true}, {tcp("192.0.2.7:4"), true}, {tcp("[2001:db8::9]:4"), true},
		{tcp("[2001:db8::9%eth0]:4"), true},
		{tcp("11.1.2.3:4"), false}, {tcp("192.0.2.8:4"), false}, {tcp("[2001:db9::9]:4"), false},
		{tcp("127.0.0.1:4"), false}, {tcp("[::1]:4"), false}, // only who is listed
		{&net.UnixAddr{Net: "unix"}, true},
	} {
		if got := g.open(c.addr); got != c.in {
			t.Errorf("%s: let in is %v", c.addr, got)
		}
	}
	g.set(nil)
	if !g.open(tcp("203.0.113.1:4")) {
		t.Error("an empty list is not everyone")
	}
}

// TestGateClosesConnections shows it on a listener: who isn't listed gets no byte, and a
// change counts from the next connection.
func TestGateClosesConnections(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{log: slog.New(slog.DiscardHandler)}
	g.set([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go server.Serve(gated{raw, g})
	defer server.Close()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + raw.Addr().String()
	if resp, err := client.Get(url); err == nil {
		t.Errorf("let in: %s", resp.Status)
	}
	g.set([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})
	if _, err := client.Get(url); err != nil {
		t.Errorf("listed, and not let in: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s.sock")
	for _, c := range []struct {
		admin bool
		mode  os.FileMode
	}{{true, 0o660}, {false, 0o666}} {
		// What a killed server left: a socket that nobody serves.
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

func TestPortTaken(t *testing.T) {
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

// writePair writes a certificate with this serial number, and its key.
func writePair(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, keyFile, "PRIVATE KEY", pkcs8)
	writePEM(t, certFile, "CERTIFICATE", der)
	// Two certificates within the resolution of a file's time would look the same.
	when := time.Unix(1_700_000_000+serial, 0)
	if err := os.Chtimes(certFile, when, when); err != nil {
		t.Fatal(err)
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func serialOf(t *testing.T, k *keyPair) int64 {
	t.Helper()
	cert, err := k.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

// TestCertificateIsReadAgain shows a renewal without a restart, that a half-written one
// changes nothing, and that a SIGHUP doesn't wait.
func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	synctest.Test(t, func(t *testing.T) {
		writePair(t, certFile, keyFile, 1)
		k, err := newKeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		expect := func(serial int64, when string) {
			t.Helper()
			if got := serialOf(t, k); got != serial {
				t.Errorf("%s: certificate %d, want %d", when, got, serial)
			}
		}
		writePair(t, certFile, keyFile, 2)
		expect(1, "at once")
		time.Sleep(lookEvery + time.Second)
		expect(2, "after a look")

		writePair(t, certFile, filepath.Join(dir, "other.pem"), 3) // its key is still the old one
		time.Sleep(lookEvery + time.Second)
		expect(2, "half renewed")
		if err := k.load(); err == nil {
			t.Error("a key that belongs to another certificate is no error")
		}
		if err := os.Rename(filepath.Join(dir, "other.pem"), keyFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(3, "wholly renewed")

		writePair(t, certFile, keyFile, 4)
		if err := k.load(); err != nil {
			t.Fatal(err)
		}
		expect(4, "after a SIGHUP")
		was, err := os.Stat(certFile)
		if err != nil {
			t.Fatal(err)
		}
		writePair(t, certFile+".new", keyFile, 5)
		if err := os.Chtimes(certFile+".new", was.ModTime(), was.ModTime()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(certFile+".new", certFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(5, "another file of the same time")
		if err := os.Remove(certFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(5, "gone")
	})
	if _, err := newKeyPair(certFile, keyFile); err == nil {
		t.Error("a start without a certificate is no error")
	}
}

// TestTLS shows https with HTTP/2 and HTTP/1.1 on a TCP address, and a unix socket beside
// it that stays plain.
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
