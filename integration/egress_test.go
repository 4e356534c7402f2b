//go:build integration

package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// connectProxy is a proxy that tunnels to the Hub, under the names that the Hub has.
type connectProxy struct {
	URL string

	mu    sync.Mutex
	hosts map[string]bool // that it was asked for
}

// startProxy starts a proxy that listens on that address.
func startProxy(t *testing.T, hub *hubtest.Hub, host string) *connectProxy {
	t.Helper()
	p := &connectProxy{hosts: map[string]bool{}}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		p.mu.Lock()
		p.hosts[host] = true
		p.mu.Unlock()
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		far, err := hub.Network.DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer far.Close()
		w.WriteHeader(http.StatusOK)
		near, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		go func() {
			_, _ = io.Copy(far, buffered) // the other direction says when it is over
			_ = far.Close()
		}()
		_, _ = io.Copy(near, far)
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	p.URL = server.URL
	return p
}

func (p *connectProxy) Hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.hosts))
}

// writeCA writes the certificate of the Hub's authority to a file.
func writeCA(t *testing.T, hub *hubtest.Hub) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	ca, _ := hub.Network.CA()
	if err := os.WriteFile(path, ca, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestUpstreamByProxyAndPrivateCA reaches a Hub whose names only the proxy knows, and whose
// certificate only the CA file vouches for: registry, token service and CDN alike.
func TestUpstreamByProxyAndPrivateCA(t *testing.T) {
	names := hubtest.Options{TLS: true, RegistryName: "registry.hub.test", TokenName: "auth.hub.test", CDNName: "cdn.bucket.test"}
	hub := startHub(t, names)
	proxy := startProxy(t, hub, "127.0.0.1")
	env := []string{"HTTPS_PROXY=" + proxy.URL, "NO_PROXY=elsewhere.test"}
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 3<<20)})

	s := startServer(t, serverOptions{Hub: hub, Env: env, Args: []string{"--upstream-ca-file", writeCA(t, hub)}})
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	if got, want := proxy.Hosts(), []string{"auth.hub.test", "cdn.bucket.test", "registry.hub.test"}; !slices.Equal(got, want) {
		t.Errorf("the proxy was asked for %v, want %v", got, want)
	}

	distrustful := startServer(t, serverOptions{Hub: hub, Env: env})
	a, err := request(t.Context(), http.MethodGet, distrustful.URL+"/v2/library/app/manifests/1")
	if err != nil || a.Status < 429 || !strings.Contains(string(a.Body), "certificate") {
		t.Errorf("without the CA file: %d %s %v; want a failure that names the certificate", a.Status, a.Body, err)
	}
	distrustful.Stop() // the access log comes after the answer
	if !strings.Contains(distrustful.Log(), "certificate") {
		t.Error("the log does not say that it is the certificate")
	}
}

// TestUpstreamInNoProxyIsReachedDirectly has the registry and token service on an address that NO_PROXY names,
// and the CDN behind the proxy.
func TestUpstreamInNoProxyIsReachedDirectly(t *testing.T) {
	host := dockertest.NewNetwork(t).Addr.String() // loopback never goes through a proxy
	hub := startHub(t, hubtest.Options{TLS: true, RegistryAddr: host + ":0", TokenAddr: host + ":0", CDNName: "cdn.bucket.test"})
	proxy := startProxy(t, hub, "127.0.0.1")
	env := []string{"HTTPS_PROXY=" + proxy.URL, "NO_PROXY=" + host}
	s := startServer(t, serverOptions{Hub: hub, Env: env, Args: []string{"--upstream-ca-file", writeCA(t, hub)}})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 3<<20)})
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	if got := proxy.Hosts(); !slices.Equal(got, []string{"cdn.bucket.test"}) {
		t.Errorf("the proxy was asked for %v", got)
	}
}

// TestListensOnSeveralAddresses serves on several addresses of both families, in plain text and by TLS.
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
		t.Errorf("three listeners fetched %d bytes of an image of %d", sent, img.Size())
	}
	plain.Stop()

	cert, key, roots := labCertificate(t)
	secure := startServer(t, serverOptions{Hub: hub, Args: append(listen, "--tls-cert-file", cert, "--tls-key-file", key)})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
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
	lender := httptest.NewTLSServer(nil)
	defer lender.Close()
	cert := lender.TLS.Certificates[0]
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
	roots.AddCert(lender.Certificate())
	return write("cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		write("key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: key}), roots
}
