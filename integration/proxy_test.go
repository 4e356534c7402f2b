//go:build integration

package integration

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestUpstreamByProxyAndPrivateCA pulls from a Hub whose host names only the proxy knows, and
// whose certificate is trusted only with the CA file. Requests to registry, token service and
// CDN must all go through the proxy.
func TestUpstreamByProxyAndPrivateCA(t *testing.T) {
	names := hubtest.Options{TLS: true, RegistryName: "registry.hub.test", TokenName: "auth.hub.test", CDNName: "cdn.bucket.test"}
	hub := startHub(t, names)
	proxy := startProxy(t, "127.0.0.1", hub)
	env := []string{"HTTPS_PROXY=" + proxy.URL, "NO_PROXY=elsewhere.test"}
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 3<<20)})

	s := startServer(t, serverOptions{Hub: hub, Env: env, Args: []string{"--upstream-ca-file", writeCA(t, hub)}})
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	if got, want := proxy.Hosts(), []string{"auth.hub.test", "cdn.bucket.test", "registry.hub.test"}; !slices.Equal(got, want) {
		t.Errorf("clients of the proxy requested %v, want %v", got, want)
	}

	withoutCA := startServer(t, serverOptions{Hub: hub, Env: env})
	a, err := request(t.Context(), http.MethodGet, withoutCA.URL+"/v2/library/app/manifests/1")
	if err != nil || a.Status < 429 || !strings.Contains(string(a.Body), "certificate") {
		t.Errorf("without the CA file: %d %s %v; want a failure that names the certificate", a.Status, a.Body, err)
	}
	withoutCA.Stop() // the access log is written after the answer
	if !strings.Contains(withoutCA.Log(), "certificate") {
		t.Error("the log does not name the certificate")
	}
}

// TestUpstreamInNoProxyIsReachedDirectly has the registry and token service on an address that
// NO_PROXY names, and the CDN behind the proxy.
func TestUpstreamInNoProxyIsReachedDirectly(t *testing.T) {
	host := dockertest.NewNetwork(t).Addr.String() // Go never uses a proxy for loopback
	hub := startHub(t, hubtest.Options{TLS: true, RegistryAddr: host + ":0", TokenAddr: host + ":0", CDNName: "cdn.bucket.test"})
	proxy := startProxy(t, "127.0.0.1", hub)
	env := []string{"HTTPS_PROXY=" + proxy.URL, "NO_PROXY=" + host}
	s := startServer(t, serverOptions{Hub: hub, Env: env, Args: []string{"--upstream-ca-file", writeCA(t, hub)}})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 3<<20)})
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	if got := proxy.Hosts(); !slices.Equal(got, []string{"cdn.bucket.test"}) {
		t.Errorf("clients of the proxy requested %v", got)
	}
}
