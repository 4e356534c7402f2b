//go:build integration

package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestListensOnSeveralAddresses serves on several addresses, IPv4 and IPv6, by http and by https.
func TestListensOnSeveralAddresses(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
	six, second := freeAddr(t, "::1"), freeAddr(t, "127.0.0.2")
	listen := []string{"--listen", six, "--listen", second}
	plain := startServer(t, serverOptions{Hub: hub, Args: listen})
	for _, addr := range []string{plain.Addr, six, second} {
		if err := pullImage(t.Context(), "http://"+addr, img, ""); err != nil {
			t.Error(err)
		}
	}
	if sent := hub.Ledger().BlobBytes(); sent != img.Size() {
		t.Errorf("pulls from three listeners fetched %d bytes of an image of %d", sent, img.Size())
	}
	plain.Stop()

	cert, key, roots := labCertificate(t)
	secure := startServer(t, serverOptions{Hub: hub, Args: append(listen, "--tls-cert-file", cert, "--tls-key-file", key)})
	client := &http.Client{Transport: &http.Transport{DialContext: labDial, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	for _, addr := range []string{secure.Addr, six} { // the certificate does not name 127.0.0.2
		url := fmt.Sprintf("https://%s/v2/library/app/manifests/1", addr)
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Docker-Content-Digest") != img.Digest.String() {
			t.Errorf("%s: %s, digest %q", url, resp.Status, resp.Header.Get("Docker-Content-Digest"))
		}
	}
}

// labCertificate writes a certificate for 127.0.0.1 and ::1, and its key, to files.
func labCertificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil) // for its certificate
	defer server.Close()
	cert := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, block *pem.Block) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	roots = x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return write("cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		write("key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: key}), roots
}
