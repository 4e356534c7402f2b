//go:build integration

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// certificate is a certificate and its key, in memory and in files.
type certificate struct {
	cert     *x509.Certificate
	key      *ecdsa.PrivateKey
	certFile string
	keyFile  string
}

// newCertificate makes a certificate that another one signs, or that is an authority if by is nil.
func newCertificate(t *testing.T, by *certificate, commonName string, addr net.IP) *certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true}
	parent, signer := template, key
	switch {
	case by == nil:
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	case addr != nil:
		template.IPAddresses, template.ExtKeyUsage = []net.IP{addr}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	default:
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &certificate{key: key, certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem")}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(c.certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(c.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestClientsWithCertificates: a server with tls.client_ca_file serves a real Docker and a real Podman
// that have a certificate of the authority, which docker setup gives Docker, and no other. Their common
// name is in the log. SIGHUP makes another authority count at once. No client has another way to an
// image.
func TestClientsWithCertificates(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	authority, others := newCertificate(t, nil, "authority", nil), newCertificate(t, nil, "others", nil)
	serving := newCertificate(t, authority, "cache", network.Addr.AsSlice())
	ci := newCertificate(t, authority, "runner-1", nil)
	authorities := filepath.Join(t.TempDir(), "clients.crt")
	admit := func(c *certificate) {
		t.Helper()
		if err := os.WriteFile(authorities, []byte(fileOf(t, c.certFile)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	admit(authority)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String(), Env: []string{"HUBCACHE_TLS_CLIENT_CA_FILE=" + authorities},
		Args: []string{"--tls-cert-file", serving.certFile, "--tls-key-file", serving.keyFile}})
	s.URL = "https://" + s.Addr
	img := runnableImage(t, hub, "library/app", "1", 1, 100<<10, hubtest.ImageSpec{})

	certs := t.TempDir()
	own := filepath.Join(certs, s.Addr)
	d := dockertest.Start(t, dockertest.Options{Network: network, Certs: certs, Env: deadProxy(s)})
	hubcache := func(args ...string) (string, error) {
		cmd := exec.Command(hubcacheProgram(t), args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "HUBCACHE_ADMIN=" + s.Admin}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := hubcache("docker", "setup", "--host", d.Host(), "--certs-dir", certs, "--mirror", s.URL,
		"--ca", authority.certFile, "--client-cert", ci.certFile, "--client-key", ci.keyFile, "--apply"); err != nil {
		t.Fatalf("docker setup: %v\n%s", err, out)
	}
	pull := func() error {
		_ = d.Command("rmi", "-f", "app:1").Run() // it may have none
		if out, err := d.Command("pull", "app:1").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	refusals := func() int { return strings.Count(s.Log(), "a client was refused: tls.client_ca_file") }

	if err := pull(); err != nil {
		t.Fatal(err)
	}
	checkRuns(t, d, "app:1")
	if !strings.Contains(s.Log(), `"client_name":"runner-1"`) {
		t.Error("the certificate's common name is not in the log")
	}
	diagnose := func() string {
		out, _ := hubcache("doctor", "--host", d.Host(), "--certs-dir", certs) // what else it finds is no matter here
		return out
	}
	if out := diagnose(); !strings.Contains(out, s.URL+" answers") {
		t.Errorf("doctor says\n%s", out)
	}

	hidden := filepath.Join(t.TempDir(), "client.cert")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(filepath.Join(own, "client.cert"), hidden)
	move(filepath.Join(own, "client.key"), hidden+".key")
	if err := pull(); err == nil {
		t.Error("a Docker without a certificate was served")
	}
	if refusals() == 0 {
		t.Error("the log has no refusal")
	}
	if out := diagnose(); !strings.Contains(out, "wants a certificate of this host (tls.client_ca_file)") {
		t.Errorf("doctor says\n%s", out)
	}
	move(hidden, filepath.Join(own, "client.cert"))
	move(hidden+".key", filepath.Join(own, "client.key"))

	reload := func() {
		t.Helper()
		before := strings.Count(s.Log(), "settings read again")
		if err := syscall.Kill(s.PID, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); strings.Count(s.Log(), "settings read again") == before; time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("no line about the reload:\n%s", lastLines(s.Log(), 20))
			}
		}
	}
	admit(others)
	reload()
	if err := pull(); err == nil {
		t.Error("a client of an authority that is gone was served")
	}
	admit(authority)
	reload()
	if err := pull(); err != nil {
		t.Error(err)
	}

	t.Run("podman", func(t *testing.T) {
		c := newContainersClient(t, s)
		c.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\n[[registry.mirror]]\nlocation = %q\n", s.Addr))
		policy := c.write(t, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
		pull := func() error {
			cmd := exec.Command(program(t, "podman", "podman"), "--root", filepath.Join(c.dir, "root"), "--runroot", filepath.Join(c.dir, "run"), "--tmpdir", filepath.Join(c.dir, "tmp"),
				"--storage-driver", "vfs", "--events-backend", "none", "pull", "--signature-policy", policy, "docker.io/library/app:1")
			cmd.Env, cmd.Dir = c.env, c.dir
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
		at := filepath.Join(c.dir, ".config/containers/certs.d", s.Addr)
		if err := errors.Join(os.MkdirAll(at, 0o755), os.CopyFS(at, os.DirFS(own))); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(filepath.Join(at, "client.cert")), os.Remove(filepath.Join(at, "client.key"))); err != nil {
			t.Fatal(err)
		}
		before := refusals()
		if err := pull(); err == nil || refusals() == before {
			t.Errorf("a Podman without a certificate: %v, %d refusals", err, refusals()-before)
		}
		for _, name := range []string{"client.cert", "client.key"} {
			if err := os.WriteFile(filepath.Join(at, name), []byte(fileOf(t, filepath.Join(own, name))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := pull(); err != nil {
			t.Error(err)
		}
	})
	if sent := hub.Ledger().BlobBytes(); sent != img.Size() {
		t.Errorf("the Hub has sent %d bytes of an image of %d", sent, img.Size())
	}
}
