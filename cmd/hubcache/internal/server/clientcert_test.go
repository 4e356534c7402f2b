package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// testCA is an authority of clients.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, name string) testCA {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return testCA{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// client issues a certificate with this common name, for this use, valid until then.
func (ca testCA) client(t *testing.T, name string, use x509.ExtKeyUsage, until time.Time) tls.Certificate {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{use},
		NotBefore: time.Unix(0, 0), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// checked is a server that asks for certificates of the authorities in a file.
type checked struct {
	*httptest.Server
	check *clientCheck
	file  string

	mu      sync.Mutex // guards refused
	refused []string
}

func newChecked(t *testing.T, ca testCA) *checked {
	t.Helper()
	s := &checked{file: filepath.Join(t.TempDir(), "ca.pem")}
	writePEM(t, s.file, "CERTIFICATE", ca.cert.Raw)
	var err error
	s.check, err = newClientCheck(s.file, func(_ net.Addr, why string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = append(s.refused, why)
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "%s by %s", req.TLS.PeerCertificates[0].Subject.CommonName, req.Proto)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	// What the server itself does: see serveAll.
	pair := httptest.NewTLSServer(nil)
	pair.Close()
	s.Config.TLSConfig = &tls.Config{Certificates: pair.TLS.Certificates, MinVersion: tls.VersionTLS12}
	s.check.require(s.Config)
	go func() { _ = s.Config.ServeTLS(s.Listener, "", "") }()
	t.Cleanup(func() { _ = s.Config.Close() })
	return s
}

// get asks with a certificate, and returns the answer's body.
func (s *checked) get(client *http.Client) (string, error) {
	resp, err := client.Get("https://" + s.Listener.Addr().String())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func clientWith(version uint16, h2 bool, certs ...tls.Certificate) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, MaxVersion: version, Certificates: certs, ClientSessionCache: tls.NewLRUClientSessionCache(4),
		// As a client does that doesn't look at the authorities that the server names.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		},
	}}}
}

// TestClientsNeedACertificate tries each kind of certificate with each version of TLS and of HTTP.
func TestClientsNeedACertificate(t *testing.T) {
	ca, other := newCA(t, "nodes"), newCA(t, "nodes")
	s := newChecked(t, ca)
	day := time.Now().Add(24 * time.Hour)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, h2 := range []bool{false, true} {
			want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]
			got, err := s.get(clientWith(version, h2, ca.client(t, "node-1", x509.ExtKeyUsageClientAuth, day)))
			if err != nil || got != "node-1 by "+want {
				t.Errorf("TLS %x, HTTP/2 %v: %q %v", version, h2, got, err)
			}
			for name, certs := range map[string][]tls.Certificate{
				"no certificate":      nil,
				"another authority":   {other.client(t, "node-1", x509.ExtKeyUsageClientAuth, day)},
				"an expired one":      {ca.client(t, "node-1", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Hour))},
				"one of a server":     {ca.client(t, "node-1", x509.ExtKeyUsageServerAuth, day)},
				"the authority's own": {{Certificate: [][]byte{other.cert.Raw}, PrivateKey: other.key}},
			} {
				if got, err := s.get(clientWith(version, h2, certs...)); err == nil {
					t.Errorf("TLS %x, HTTP/2 %v: %s is served: %q", version, h2, name, got)
				}
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) < 20 || !strings.Contains(strings.Join(s.refused, "\n"), errNoCertificate.Error()) {
		t.Errorf("%d refusals were reported, want 20: %q", len(s.refused), s.refused)
	}
}

// TestAuthorityIsTakenAway: after a reload an open connection gets nothing more, a session isn't
// resumed, and the clients of the new authority are served. A broken file changes nothing.
func TestAuthorityIsTakenAway(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		old, next := newCA(t, "old"), newCA(t, "next")
		s := newChecked(t, old)
		day := time.Now().Add(24 * time.Hour)
		client := clientWith(tls.VersionTLS13, h2, old.client(t, "node-1", x509.ExtKeyUsageClientAuth, day))
		for range 2 {
			if _, err := s.get(client); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(s.file, []byte("no certificate"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.check.authorities.load(); err == nil {
			t.Error("a file without a certificate is no error")
		}
		if _, err := s.get(client); err != nil {
			t.Errorf("after a broken file: %v", err)
		}
		writePEM(t, s.file, "CERTIFICATE", next.cert.Raw)
		if err := s.check.authorities.load(); err != nil {
			t.Fatal(err)
		}
		for range 3 { // on the open connection, and on new ones
			if got, err := s.get(client); err == nil {
				t.Errorf("HTTP/2 %v: after its authority was taken away: %q", h2, got)
			}
		}
		if _, err := s.get(clientWith(tls.VersionTLS13, h2, next.client(t, "node-2", x509.ExtKeyUsageClientAuth, day))); err != nil {
			t.Errorf("a client of the new authority: %v", err)
		}
	}
}
