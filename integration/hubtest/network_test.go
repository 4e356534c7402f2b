package hubtest_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

func TestTransportRefusesUnknownHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{})
		c := newClient(t, "http://nowhere.test", hub.Transport())
		_, err := c.tryGet("GET", "library/x", "manifests/1")
		if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsNotFound {
			t.Errorf("unknown host: %v", err)
		}
		hub.Close()
		c.base = hub.RegistryURL()
		if _, err := c.tryGet("GET", "library/x", "manifests/1"); err == nil {
			t.Error("a closed Hub answered")
		}
	})
}

func TestTransportReachesAddedHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{})
		defer hub.Close()
		var got http.Header
		hub.AddHost("evil.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header }))
		c, path, _ := faulty(t, hub, hub.Transport())
		hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.RedirectTo("https://evil.test/x"))
		if a := c.get("GET", faultyRepo, path); a.StatusCode != 200 || got == nil {
			t.Errorf("%d, headers %v", a.StatusCode, got)
		}
	})
}

// TestDialContextReachesRealNamesByTLS pulls by https under Docker Hub's own names, which only
// the dialer can resolve.
func TestDialContextReachesRealNamesByTLS(t *testing.T) {
	hub := hubtest.New(hubtest.Options{
		TLS: true, RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com",
	})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	_, pool := hub.Network.CA()
	rt := &http.Transport{DialContext: hub.Network.DialContext, TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer rt.CloseIdleConnections()
	c, path, want := faulty(t, hub, rt)
	if !strings.HasPrefix(hub.RegistryURL(), "https://registry-1.docker.io:") {
		t.Error(hub.RegistryURL())
	}
	if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
		t.Errorf("%d, %d bytes", a.StatusCode, len(a.body))
	}
	hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.CutAfter(500))
	if a := c.get("GET", faultyRepo, path); len(a.body) != 500 || a.err != io.ErrUnexpectedEOF {
		t.Errorf("cut: %d bytes, %v", len(a.body), a.err)
	}
}
