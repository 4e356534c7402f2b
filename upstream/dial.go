package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// dialer makes the connections to a registry and to where it redirects. It refuses
// addresses inside the network, unless the registry itself is inside, so that the host name
// of a redirect can't lead there. A proxy may be anywhere.
type dialer struct {
	base   *url.URL    // of the registry
	inside atomic.Bool // the registry's own address is a loopback, private or link-local one
}

// transport is net/http's with limits of our own. HTTP/2 is off: several ranges of a blob
// over one connection would share what the CDN gives to one. Compression is off: bytes
// that were compressed on the way have another digest.
//
// An answer has to begin within headers.
func (d *dialer) transport(roots *x509.CertPool, headers time.Duration) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.dial,
		TLSClientConfig:       &tls.Config{RootCAs: roots},
		TLSHandshakeTimeout:   dialDeadline,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:    true,
		MaxIdleConnsPerHost:   64, // as many as there may be transfers, and their redirects
		IdleConnTimeout:       60 * time.Second,
		ReadBufferSize:        64 << 10,
		ResponseHeaderTimeout: headers,
	}
}

// newTransport returns a transport that trusts what roots returns at the time, or what the
// system trusts if roots is nil.
func newTransport(d *dialer, roots func() *x509.CertPool) http.RoundTripper {
	if roots == nil {
		return byPatience{d.transport(nil, headersDeadline), d.transport(nil, ListDeadline)}
	}
	return byPatience{
		&trustingTransport{dialer: d, roots: roots, headers: headersDeadline},
		&trustingTransport{dialer: d, roots: roots, headers: ListDeadline},
	}
}

// byPatience is a transport for most requests, and a patient one for those whose context says so.
type byPatience struct{ usual, patient http.RoundTripper }

type patientKey struct{}

// patiently returns a copy of ctx for requests whose answers may take ListDeadline to begin.
func patiently(ctx context.Context) context.Context {
	return context.WithValue(ctx, patientKey{}, true)
}

// isPatient reports whether ctx is one of patiently. That such an answer doesn't come says nothing
// about the health of the upstream.
func isPatient(ctx context.Context) bool { return ctx.Value(patientKey{}) != nil }

// RoundTrip implements http.RoundTripper.
func (t byPatience) RoundTrip(req *http.Request) (*http.Response, error) {
	if isPatient(req.Context()) {
		return t.patient.RoundTrip(req)
	}
	return t.usual.RoundTrip(req)
}

// CloseIdleConnections closes the connections that carry nothing now.
func (t byPatience) CloseIdleConnections() {
	closeIdle(t.usual)
	closeIdle(t.patient)
}

// closeIdle closes the connections of a transport that carry nothing now, if it can.
func closeIdle(t http.RoundTripper) {
	if c, ok := t.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// trustingTransport makes a new transport whenever other certificates are trusted. Connections
// that were opened under the old ones only end what they have begun. It is safe for concurrent use.
type trustingTransport struct {
	dialer  *dialer
	roots   func() *x509.CertPool
	headers time.Duration // in which an answer has to begin

	mu      sync.Mutex // guards what follows; no other lock is taken under it
	trusted *x509.CertPool
	current *http.Transport // trusts trusted; nil: none yet
}

// RoundTrip implements http.RoundTripper.
func (t *trustingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.now(t.roots()).RoundTrip(req)
}

// CloseIdleConnections closes the connections that carry nothing now.
func (t *trustingTransport) CloseIdleConnections() {
	t.mu.Lock()
	current := t.current
	t.mu.Unlock()
	if current != nil {
		current.CloseIdleConnections()
	}
}

// now returns the transport that trusts roots.
func (t *trustingTransport) now(roots *x509.CertPool) *http.Transport {
	t.mu.Lock()
	old := t.current
	if old != nil && t.trusted == roots {
		t.mu.Unlock()
		return old
	}
	t.trusted, t.current = roots, t.dialer.transport(roots, t.headers)
	now := t.current
	t.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
	return now
}

// dial checks the address before the connection is made, so that no port is even knocked at.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(addr)
	own := host == d.base.Hostname()
	nd := net.Dialer{Timeout: dialDeadline, Control: func(_, address string, _ syscall.RawConn) error {
		ip, err := netip.ParseAddrPort(address)
		if err != nil || !internal(ip.Addr()) || own || d.inside.Load() || d.isProxy(addr) {
			return nil
		}
		return fmt.Errorf("%s is an address inside the network, and the upstream is outside", ip.Addr())
	}}
	conn, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil && own && internal(ip.Addr()) {
		d.inside.Store(true)
	}
	return conn, nil
}

// isProxy reports whether addr is that of the outbound proxy for the registry.
func (d *dialer) isProxy(addr string) bool {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: d.base})
	if err != nil || proxy == nil {
		return false
	}
	port := cmp.Or(proxy.Port(), map[string]string{"http": "80", "https": "443", "socks5": "1080"}[proxy.Scheme])
	return addr == net.JoinHostPort(proxy.Hostname(), port)
}

// mayFollow says why a redirect must not be followed, or nil. Its errors never contain the
// URL, which may be signed.
func (d *dialer) mayFollow(to *url.URL) error {
	switch {
	case to.User != nil:
		return errors.New("redirect with credentials in its URL refused")
	case to.Scheme != "https" && to.Scheme != "http", to.Host == "":
		return errors.New("redirect to something other than http refused")
	case to.Scheme == "http" && d.base.Scheme == "https" && !d.inside.Load():
		return fmt.Errorf("redirect to plain http at %s refused", to.Host)
	case internalHost(to.Hostname()) && !d.inside.Load():
		return fmt.Errorf("redirect into the network, to %s, refused", to.Host)
	}
	return nil
}

func internal(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
}

// internalHost is internal for a host as it stands in a URL, without a look-up.
func internalHost(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && internal(ip)
}
