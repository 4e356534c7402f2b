package dockerhost

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// newPair writes a certificate for clients, or for servers, and its key.
func newPair(t *testing.T, usage x509.ExtKeyUsage) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "runner-1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return cert, key
}

const secureMirror = "https://10.0.0.1:5000"

// TestSetupWritesCertificates: the client gets the files by the names that it looks for, the key for
// its owner alone, and its hosts.toml names them. A later setup without them leaves them; an undo
// takes them away.
func TestSetupWritesCertificates(t *testing.T) {
	cert, key := newPair(t, x509.ExtKeyUsageClientAuth)
	for _, test := range []struct {
		name  string
		setup func(s *Setup, apply, undo bool) error
		hosts bool
	}{
		{"Docker 20.10", func(s *Setup, apply, undo bool) error { return s.Run(t.Context(), apply, undo) }, false},
		{"Docker 29.7.2", func(s *Setup, apply, undo bool) error { return s.Run(t.Context(), apply, undo) }, true},
		{"containerd", func(s *Setup, apply, undo bool) error {
			return s.RunContainerd(t.Context(), "/does/not/exist", apply, undo)
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, "", daemonOptions{Version: strings.TrimPrefix(test.name, "Docker "), Containerd: test.hosts})
			s, out := newSetup(d, secureMirror)
			s.Certificates = Certificates{CA: cert, Cert: cert, Key: key}
			dir := filepath.Join(d.certs, "10.0.0.1:5000")
			if err := test.setup(s, false, false); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("it wrote without --apply")
			}
			if err := test.setup(s, true, false); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]struct {
				from string
				mode fs.FileMode
			}{"ca.crt": {cert, 0o644}, "client.cert": {cert, 0o644}, "client.key": {key, 0o600}} {
				path := filepath.Join(dir, name)
				if got := contentOf(t, path); got != hostsMark+contentOf(t, want.from) {
					t.Errorf("%s is %q", name, got)
				}
				if info, err := os.Stat(path); err != nil || info.Mode() != want.mode {
					t.Errorf("%s: %v, %v", name, info.Mode(), err)
				}
			}
			hosts := contentOf(t, filepath.Join(d.certs, "docker.io", "hosts.toml"))
			if got := strings.Contains(hosts, `ca = ["`+dir+`/ca.crt"]`) && strings.Contains(hosts, `client = [["`+dir+`/client.cert", "`+dir+`/client.key"]]`); got != test.hosts {
				t.Errorf("hosts.toml is\n%s", hosts)
			}
			for _, given := range []Certificates{s.Certificates, {}} {
				out.Reset()
				s.Certificates = given
				if err := test.setup(s, true, false); err != nil || !strings.Contains(out.String(), "Nothing to change") {
					t.Errorf("again with %v: %v\n%s", given, err, out)
				}
			}
			if err := test.setup(s, true, true); err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(filepath.Join(d.certs, "*", "*")); len(left) > 0 {
				t.Errorf("an undo left %v", left)
			}
		})
	}
}

// TestSetupRefusesCertificates that the client couldn't use, and keeps those that somebody else has
// written.
func TestSetupRefusesCertificates(t *testing.T) {
	cert, key := newPair(t, x509.ExtKeyUsageClientAuth)
	_, otherKey := newPair(t, x509.ExtKeyUsageClientAuth)
	serverCert, serverKey := newPair(t, x509.ExtKeyUsageServerAuth)
	for _, test := range []struct {
		name, mirror string
		given        Certificates
		want         string
	}{
		{"http", "http://10.0.0.1:5000", Certificates{CA: cert}, "https"},
		{"no key", secureMirror, Certificates{Cert: cert}, "belong together"},
		{"no certificate", secureMirror, Certificates{Key: key}, "belong together"},
		{"another key", secureMirror, Certificates{Cert: cert, Key: otherKey}, "can't be used together"},
		{"a server's", secureMirror, Certificates{Cert: serverCert, Key: serverKey}, "clientAuth"},
		{"a key as the authority", secureMirror, Certificates{CA: key}, "no certificate in PEM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, "", daemonOptions{Version: "28.5.2"})
			s, _ := newSetup(d, test.mirror)
			s.Certificates = test.given
			err := s.Run(t.Context(), true, false)
			if _, ok := errors.AsType[settings.UsageError](err); !ok || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want a usage error with %q", err, test.want)
			}
			if contentOf(t, d.config) != "" {
				t.Error("it wrote daemon.json")
			}
		})
	}
	t.Run("a missing file", func(t *testing.T) {
		d := startDaemon(t, "", daemonOptions{Version: "28.5.2"})
		s, _ := newSetup(d, secureMirror)
		s.Certificates = Certificates{CA: "/does/not/exist"}
		if err := s.Run(t.Context(), true, false); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
	t.Run("somebody else's", func(t *testing.T) {
		d := startDaemon(t, "", daemonOptions{Version: "28.5.2"})
		s, _ := newSetup(d, secureMirror)
		path := filepath.Join(d.certs, "10.0.0.1:5000", "client.key")
		writeFile(t, path, contentOf(t, otherKey))
		s.Certificates = Certificates{Cert: cert, Key: key}
		if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%v", err)
		}
		if err := s.Run(t.Context(), true, true); err != nil {
			t.Error(err)
		}
		if got := contentOf(t, path); got != contentOf(t, otherKey) {
			t.Error("the key was changed")
		}
	})
}
