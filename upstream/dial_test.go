package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// selfSigned returns a certificate for loopback, and a pool with it alone.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	return validFor(t, time.Unix(0, 0), time.Now().Add(time.Hour))
}

// TestTrustedAuthoritiesMayChange: requests trust what is trusted at their time. Idle
// connections don't carry an old trust on, and none is opened anew while nothing changes.
func TestTrustedAuthoritiesMayChange(t *testing.T) {
	cert, right := selfSigned(t)
	_, wrong := selfSigned(t)
	var conns atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.StartTLS()
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var trusted atomic.Pointer[x509.CertPool]
	c, err := New(Options{URL: base, RootCAs: trusted.Load})
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		pool *x509.CertPool
		ok   bool
	}{{right, true}, {wrong, false}, {right, true}, {right, true}, {wrong, false}} {
		trusted.Store(step.pool)
		req, err := http.NewRequest(http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.auth.Base.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != step.ok {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if n := conns.Load(); n != 4 {
		t.Errorf("%d connections, want one for each change and for the first request", n)
	}
}
