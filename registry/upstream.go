package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hubcache/hubcache/auth"
)

// Deadlines towards upstream. A manifest must be answered within 5 s whatever happens,
// or a client with no timeout of its own never falls back; containerd waits 30 s for headers.
const (
	manifestDeadline = 4500 * time.Millisecond // for each request
	answerWithin     = 4800 * time.Millisecond // for all that an answer needs
	headersDeadline  = 4 * time.Second         // for the headers of a blob, once
	firstDeadline    = 8 * time.Second         // for the headers of a blob, retries included
	stallAfter       = 10 * time.Second        // without a byte of a body
	dialDeadline     = 3 * time.Second
)

// acceptManifest names all four types; without it some registries convert.
const acceptManifest = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5"

// upstream talks to the registry that is cached, its token service and its CDN.
// All methods are safe for concurrent use.
type upstream struct {
	name string // "docker.io"
	base *url.URL
	auth *auth.Transport
	cred *auth.File // nil: anonymous
	cool coolDowns

	private atomic.Bool // the registry's own address is a loopback, private or link-local one

	requests  atomic.Int64
	fetched   atomic.Int64 // body bytes of manifests and blobs
	responses [6]atomic.Int64

	mu    sync.Mutex // guards quota
	quota *RateLimit
}

func newUpstream(o Options) (*upstream, error) {
	u := &upstream{name: cmp.Or(o.Upstream.Name, "docker.io"), base: o.Upstream.URL, cred: o.Upstream.Credential, cool: newCoolDowns()}
	if u.base == nil || u.base.Host == "" || u.base.Scheme != "http" && u.base.Scheme != "https" {
		return nil, errors.New("the upstream needs an http or https URL")
	}
	if u.base.User != nil {
		return nil, errors.New("the upstream's URL must not contain credentials")
	}
	u.private.Store(internalHost(u.base.Hostname()))
	base := o.Upstream.Transport
	if base == nil {
		base = u.transport(o.Upstream.RootCAs)
	}
	u.auth = &auth.Transport{Registry: u.base, Credential: u.cred, Base: base, Log: o.Log}
	return u, nil
}

// transport is net/http's with limits of our own. HTTP/2 is off: several ranges of a blob
// over one connection would share what the CDN gives to one. Compression is off: bytes
// that were gzipped on the way have another digest.
func (u *upstream) transport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           u.dial,
		TLSClientConfig:       &tls.Config{RootCAs: roots},
		TLSHandshakeTimeout:   dialDeadline,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:    true,
		MaxIdleConnsPerHost:   64, // as many as there may be transfers, and their redirects
		IdleConnTimeout:       60 * time.Second,
		ReadBufferSize:        64 << 10,
		ResponseHeaderTimeout: headersDeadline,
	}
}

// dial refuses addresses inside the network unless the registry itself is inside, so that
// a redirect's host name can't lead there, nor knock there. A proxy may be anywhere.
func (u *upstream) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(addr)
	own := host == u.base.Hostname()
	d := net.Dialer{Timeout: dialDeadline, Control: func(_, address string, _ syscall.RawConn) error {
		ip, err := netip.ParseAddrPort(address)
		if err != nil || !internal(ip.Addr()) || own || u.private.Load() || u.isProxy(addr) {
			return nil
		}
		return fmt.Errorf("%s is an address inside the network, and the upstream is outside", ip.Addr())
	}}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil && own && internal(ip.Addr()) {
		u.private.Store(true)
	}
	return conn, nil
}

// isProxy reports whether addr is that of the outbound proxy for the registry.
func (u *upstream) isProxy(addr string) bool {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u.base})
	if err != nil || proxy == nil {
		return false
	}
	port := cmp.Or(proxy.Port(), map[string]string{"http": "80", "https": "443", "socks5": "1080"}[proxy.Scheme])
	return addr == net.JoinHostPort(proxy.Hostname(), port)
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

// url returns the URL of a path of the registry's API, such as "library/redis/manifests/7".
func (u *upstream) url(path string) *url.URL {
	v := *u.base
	v.Path = strings.TrimSuffix(v.Path, "/") + "/v2/" + path
	v.RawPath, v.RawQuery = "", ""
	return &v
}

// get sends a request, following no redirect, unless a cool-down answers it.
// Errors are *upstreamError, whatever the status: only 2xx, 3xx, 404 and 416 are responses.
func (u *upstream) get(ctx context.Context, method string, to *url.URL, header http.Header, m limit) (*http.Response, error) {
	if err := u.cool.check(m, u.version()); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, to.String(), nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	sent := time.Now()
	resp, err := u.send(req, m)
	if err != nil {
		u.responses[0].Add(1)
		e := classify(to.Host, err)
		if auth.IsAbuseLimit(err) {
			e = &upstreamError{cause: throttled, host: to.Host, status: http.StatusTooManyRequests, err: errors.New("its abuse limit")}
			u.cool.throttle(abuse, 0, 0)
		}
		if ctxErr := context.Cause(ctx); ctxErr != nil && !errors.Is(ctxErr, context.DeadlineExceeded) {
			return nil, e // the asker's doing, not the upstream's
		}
		if e.cause == refused {
			u.cool.refuse(time.Now().Add(max(e.retryAfter, failedFor)))
		}
		if m != cdn && (e.cause == timeout || e.cause == unreachable) {
			u.cool.fell(e, sent)
		}
		return nil, e
	}
	u.responses[min(max(resp.StatusCode/100, 0), 5)].Add(1)
	if m != cdn {
		u.cool.rose()
		u.observe(resp.Header)
	}
	if s := resp.StatusCode; s < 400 || s == http.StatusRequestedRangeNotSatisfiable {
		if m == pulls && s < 300 {
			u.cool.pass(pulls)
		}
		return resp, nil
	}
	return nil, u.statusError(resp, to.Host, m)
}

// send counts and sends a request; one for a manifest a second time when the connection
// breaks before the answer, which the retries of a blob's body would do anyway.
func (u *upstream) send(req *http.Request, m limit) (*http.Response, error) {
	u.requests.Add(1)
	resp, err := u.auth.RoundTrip(req)
	if err == nil || m != pulls || req.Context().Err() != nil || auth.IsAbuseLimit(err) {
		return resp, err
	}
	if e := classify(req.URL.Host, err); e.cause != broken || e.status != 0 {
		return nil, err
	}
	u.requests.Add(1)
	return u.auth.RoundTrip(req)
}

// statusError reads and closes an error response.
func (u *upstream) statusError(resp *http.Response, host string, m limit) error {
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	e := &upstreamError{host: host, status: resp.StatusCode, cause: broken}
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound, s == http.StatusGone:
		e.cause = gone
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		e.cause = denied
	case s == http.StatusTooManyRequests:
		e.cause = throttled
		wait, _ := auth.ParseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
		which := m
		// The pull limit speaks JSON and only at manifests; the abuse limit is plain text.
		if m != pulls || strings.Contains(string(text), "HAP429") {
			which = abuse
		}
		e.retryAfter = u.cool.throttle(which, wait, u.version())
	}
	if m == cdn && (e.cause == gone || e.cause == denied) {
		e.cause = broken // an expired URL, say: whether there is such a blob, the registry knows
	}
	return e
}

// version is the credential's, 0 when anonymous.
func (u *upstream) version() uint64 {
	if u.cred == nil {
		return 0
	}
	return u.cred.Version()
}

// maxRedirectBody is more than the line of HTML around a signed URL that registries send.
const maxRedirectBody = 8 << 10

// follow sends a GET or HEAD and follows redirects: at most five, to https anywhere, to
// plain http and into the network only when the registry is of that kind itself, never
// with credentials in the URL. It returns the URL that answered.
func (u *upstream) follow(ctx context.Context, method string, to *url.URL, header http.Header, m limit) (*http.Response, *url.URL, error) {
	for range 6 {
		resp, err := u.get(ctx, method, to, header.Clone(), m)
		if err != nil {
			return nil, nil, err
		}
		switch resp.StatusCode {
		case 301, 302, 303, 307, 308:
		default:
			return resp, to, nil
		}
		// A connection whose body was not read to its end can't be used again.
		if n := resp.ContentLength; n >= 0 && n <= maxRedirectBody {
			io.CopyN(io.Discard, resp.Body, n+1)
		}
		resp.Body.Close()
		next, err := to.Parse(resp.Header.Get("Location"))
		if err != nil { // whose text has the URL, signature and all
			err = errors.New("redirect to something that is no URL refused")
		} else {
			err = u.mayFollow(next)
		}
		if err != nil {
			return nil, nil, &upstreamError{cause: broken, host: to.Host, status: resp.StatusCode, err: err}
		}
		to, m = next, cdn
	}
	return nil, nil, &upstreamError{cause: broken, host: to.Host, err: errors.New("more than five redirects")}
}

// mayFollow never puts the URL into its errors: it may be signed.
func (u *upstream) mayFollow(to *url.URL) error {
	switch {
	case to.User != nil:
		return errors.New("redirect with credentials in its URL refused")
	case to.Scheme != "https" && to.Scheme != "http", to.Host == "":
		return errors.New("redirect to something other than http refused")
	case to.Scheme == "http" && u.base.Scheme == "https" && !u.private.Load():
		return fmt.Errorf("redirect to plain http at %s refused", to.Host)
	case internalHost(to.Hostname()) && !u.private.Load():
		return fmt.Errorf("redirect into the network, to %s, refused", to.Host)
	}
	return nil
}

// counted counts the body bytes that are read from upstream.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// stats returns a snapshot.
func (u *upstream) stats() UpstreamStats {
	s := UpstreamStats{
		Registry: u.name, URL: u.base.String(), State: u.cool.state(u.version()), Requests: u.requests.Load(),
		Authenticated: u.cred != nil, Responses: map[string]int64{}, TokenRequests: map[string]int64{},
	}
	for i, class := range []string{"error", "1xx", "2xx", "3xx", "4xx", "5xx"} {
		s.Responses[class] = u.responses[i].Load()
	}
	t := u.auth.Stats()
	s.TokenRequests["ok"], s.TokenRequests["denied"] = int64(t.OK), int64(t.Denied)
	s.TokenRequests["throttled"], s.TokenRequests["error"] = int64(t.Throttled), int64(t.Error)
	u.mu.Lock()
	if u.quota != nil {
		q := *u.quota
		s.RateLimit = &q
	}
	u.mu.Unlock()
	return s
}
