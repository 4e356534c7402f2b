package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/auth"
)

// validFor returns a certificate for loopback that is valid for that time, and a pool with it.
func validFor(t *testing.T, from, to time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestFailureSaysTheKind: each way in which an upstream can't be asked has its own word.
func TestFailureSaysTheKind(t *testing.T) {
	now := time.Now()
	serve := func(from, to time.Time) (string, *x509.CertPool) {
		cert, pool := validFor(t, from, to)
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.URL, pool
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	early, earlyPool := serve(now.Add(time.Hour), now.Add(2*time.Hour))
	late, latePool := serve(now.Add(-2*time.Hour), now.Add(-time.Hour))
	other, _ := serve(now.Add(-time.Hour), now.Add(time.Hour))
	fails := func(err error) http.RoundTripper {
		return transportFunc(func(*http.Request) (*http.Response, error) { return nil, err })
	}
	for _, c := range []struct {
		name, url string
		roots     *x509.CertPool
		transport http.RoundTripper
		want      FailureKind
		host      string
	}{
		{name: "closed port", url: "http://127.0.0.1:1", want: FailureRefused, host: "127.0.0.1:1"},
		{name: "unknown certificate", url: other, roots: earlyPool, want: FailureTLS},
		{name: "no TLS", url: "https" + strings.TrimPrefix(plain.URL, "http"), want: FailureTLS},
		{name: "not yet valid", url: early, roots: earlyPool, want: FailureClock},
		{name: "not valid any more", url: late, roots: latePool, want: FailureClock},
		{name: "no answer", url: "https://" + silent.Addr().String(), want: FailureTimeout},
		{name: "no such name", url: "https://registry.hub.test", transport: fails(&net.DNSError{Err: "no such host", Name: "registry.hub.test", IsNotFound: true}), want: FailureDNS, host: "registry.hub.test"},
		{name: "DNS doesn't answer", url: "https://registry.hub.test", transport: fails(&net.DNSError{Err: "i/o timeout", IsTimeout: true}), want: FailureDNS},
		{name: "no route", url: "https://registry.hub.test", transport: fails(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}), want: FailureUnreachable},
		{name: "proxy", url: "https://registry.hub.test", transport: fails(&net.OpError{Op: "proxyconnect", Err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}), want: FailureProxy},
		{name: "the token service's name", url: "https://registry.hub.test", transport: fails(&auth.TokenError{Host: "auth.hub.test", Err: &net.DNSError{Err: "no such host"}}), want: FailureDNS, host: "auth.hub.test"},
		{name: "the connection breaks", url: "https://registry.hub.test", transport: fails(syscall.ECONNRESET), want: FailureBroken},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, err := url.Parse(c.url)
			if err != nil {
				t.Fatal(err)
			}
			o := Options{URL: base, Transport: c.transport}
			if c.roots != nil {
				o.RootCAs = func() *x509.CertPool { return c.roots }
			}
			client, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Resolve(t.Context(), "library/x", Manifests, "1")
			f := client.Stats().Failure
			if f == nil || f.Kind != c.want || c.host != "" && f.Host != c.host || f.Status != 0 {
				t.Errorf("%+v after %v; want %s", f, err, c.want)
			}
			learning, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			_ = learning.Learn() // what it meets is in Stats
			if f := learning.Stats().Failure; f == nil || f.Kind != c.want {
				t.Errorf("learning meets %+v; want %s", f, c.want)
			}
		})
	}
}

// TestFailureEndsWithAnAnswer: a failure stands until the same host answers, an error status is
// one, and what a client ends or the upstream hasn't got is none. The CDN's failure is told from
// the registry's.
func TestFailureEndsWithAnAnswer(t *testing.T) {
	status := 200
	var fail error
	base, _ := url.Parse("https://registry.hub.test")
	client, err := New(Options{URL: base, Transport: transportFunc(func(req *http.Request) (*http.Response, error) {
		if fail != nil {
			return nil, fail
		}
		if status == 307 && req.URL.Host != base.Host {
			return answerOf(req, 503, ""), nil
		}
		return answerOf(req, status, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, "Content-Type", "application/json", "Location", "https://cdn.hub.test/x", "Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context) { _, _ = client.Resolve(ctx, "library/x", Blobs, "sha256:00") } // Stats says how it ended
	is := func(kind FailureKind, host string, status int) {
		t.Helper()
		f := client.Stats().Failure
		if f == nil && kind != "" || f != nil && (f.Kind != kind || f.Host != host || f.Status != status) {
			t.Errorf("%+v; want %s of %s, %d", f, kind, host, status)
		}
	}
	if ahead := client.Stats().ClockAhead; ahead != nil {
		t.Errorf("before the first answer the clock is ahead by %s", *ahead)
	}
	fail = errors.New("broken")
	ask(t.Context())
	is(FailureBroken, base.Host, 0)
	fail = nil
	ask(t.Context())
	is("", "", 0)
	if ahead := client.Stats().ClockAhead; ahead == nil || ahead.Round(time.Minute) != time.Hour {
		t.Errorf("the clock is ahead by %v, want an hour", ahead)
	}
	status = 404
	ask(t.Context())
	is("", "", 0)
	status = 500
	ask(t.Context())
	is(FailureBroken, base.Host, 500)
	status = 307
	ask(t.Context())
	is(FailureBroken, "cdn.hub.test", 503)
	status = 200
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fail = context.Canceled
	client.record = record{}
	ask(ctx)
	is("", "", 0)
}

// TestUnreadableTokenIsNotCalledRefused: clients and the log hear of the cause.
func TestUnreadableTokenIsNotCalledRefused(t *testing.T) {
	e := classify("registry.hub.test", &auth.FileError{Path: "/secret/place", Fault: auth.FileMissing, Err: errors.New("no such file")})
	if e.Cause != Refused || strings.Contains(e.Summary(), "refuses") || !strings.Contains(e.Summary(), "the access token of this cache can't be read") || strings.Contains(e.Summary(), "/secret") {
		t.Error(e.Summary())
	}
}
