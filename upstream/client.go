// Package upstream is one upstream registry as a client sees it: its API, its token
// service, and the CDN that it redirects to. It follows redirects safely, resumes bodies
// that break, keeps to rate limits, and stops asking a registry that can't be reached.
//
// It keeps no content and knows nothing of the clients that are served. Every failure is an
// *Error, whose Cause says what it means. No mutex of this package is held while another
// lock is taken, or during I/O.
package upstream

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hubcache/hubcache/answer"
	"github.com/hubcache/hubcache/auth"
)

// Deadlines towards an upstream. containerd waits 30 s for headers.
const (
	headersDeadline = 4 * time.Second  // for the headers of a blob, each time
	openDeadline    = 8 * time.Second  // for the headers of a blob, retries included
	stallDeadline   = 10 * time.Second // without a byte of a body
	dialDeadline    = 3 * time.Second
)

// refusedFor is how long a credential that was refused isn't tried again when nobody says.
const refusedFor = 10 * time.Second

// Options is what New needs. URL must be set.
type Options struct {
	Name       string // as in keys, answers and messages; "" means "docker.io"
	URL        *url.URL
	Credential *auth.File // nil: anonymous

	// RootCAs returns the certificates to trust. It is called before each request, and a pool
	// that is another one than before counts from then on. nil: the system's are trusted.
	RootCAs func() *x509.CertPool

	// Transport carries all requests when set; then RootCAs, the environment's proxy and
	// the check of addresses are its business.
	Transport http.RoundTripper

	// Public returns some repositories that are known to be public. A refusal of another one
	// counts only while one of them is granted. nil: those that were read since the start.
	Public func() []string

	Others Others // who uses the same account too; nil: nobody

	Counters *Counters    // nil: new ones
	Log      *slog.Logger // nil: slog.Default()
}

// Client talks to an upstream registry. All methods are safe for concurrent use.
type Client struct {
	name      string // "docker.io"
	base      *url.URL
	auth      *auth.Transport
	transport http.RoundTripper // carries the requests of auth
	cred      *auth.File        // nil: anonymous
	dialer    dialer
	health    health
	quota     quota
	others    Others // nil: none
	record    record
	log       *slog.Logger

	*Counters
}

// Counters count what goes on at an upstream. A client that takes the place of another one may take
// over its counters. The zero value has counted nothing. All methods are safe for concurrent use.
type Counters struct {
	requests      atomic.Int64
	blobBytes     atomic.Int64 // of bodies
	manifestBytes atomic.Int64 // of bodies
	resumes       atomic.Int64
	responses     [6]atomic.Int64 // by the first digit of the status; 0: no answer
}

// Bytes returns how many bytes of bodies were fetched.
func (c *Counters) Bytes() (manifests, blobs int64) {
	return c.manifestBytes.Load(), c.blobBytes.Load()
}

// Resumes returns how many bodies were continued by Range.
func (c *Counters) Resumes() int64 { return c.resumes.Load() }

// New returns a Client. It makes no request.
// Errors: a URL that no registry can have.
func New(o Options) (*Client, error) {
	c := &Client{name: cmp.Or(o.Name, "docker.io"), base: o.URL, cred: o.Credential, others: o.Others, log: cmp.Or(o.Log, slog.Default()), Counters: cmp.Or(o.Counters, &Counters{})}
	if c.base == nil || c.base.Host == "" || c.base.Scheme != "http" && c.base.Scheme != "https" {
		return nil, errors.New("the upstream needs an http or https URL")
	}
	if c.base.User != nil {
		return nil, errors.New("the upstream's URL must not contain credentials")
	}
	c.dialer.base = c.base
	c.dialer.inside.Store(internalHost(c.base.Hostname()))
	base := o.Transport
	if base == nil {
		base = newTransport(&c.dialer, o.RootCAs)
	}
	c.health = newHealth(c.title())
	c.transport = base
	c.auth = &auth.Transport{Registry: c.base, Credential: c.cred, Base: base, Public: o.Public, Log: c.log}
	return c, nil
}

// title is the upstream's name for people.
func (c *Client) title() string {
	if c.hub() {
		return "Docker Hub"
	}
	return c.name
}

// hub reports whether the upstream is Docker Hub, or takes its place: only its limits are known.
func (c *Client) hub() bool { return c.name == "docker.io" }

// Name returns the upstream's name, such as "docker.io".
func (c *Client) Name() string { return c.name }

// Host returns the host of the upstream's URL, for errors.
func (c *Client) Host() string { return c.base.Host }

// HasCredential reports whether requests carry a credential, with which an upstream may
// show what is private.
func (c *Client) HasCredential() bool { return c.cred != nil }

// CloseIdle closes the connections that carry nothing now. Requests may follow nevertheless.
func (c *Client) CloseIdle() { closeIdle(c.transport) }

// Learn asks the registry how it wants to be authenticated to, unless that is known: this
// spares the first pull a round trip and a connection.
// Errors: those of the transport.
func (c *Client) Learn() error {
	err := c.auth.Learn()
	if err != nil {
		c.record.failed(plain, classify(c.base.Host, err))
	}
	return err
}

// Anonymous returns a copy of ctx for requests that are made without the credential.
func Anonymous(ctx context.Context) context.Context { return auth.Anonymous(ctx) }

// IsAnonymous reports whether ctx is one of Anonymous.
func IsAnonymous(ctx context.Context) bool { return auth.IsAnonymous(ctx) }

// Public asks whether an anonymous client could pull the repository ("library/redis").
// Errors: *Error with the cause NoVisibility.
func (c *Client) Public(ctx context.Context, repository string) (bool, error) {
	v, err := c.auth.Access(ctx, repository)
	if err != nil {
		e := classify(c.base.Host, err)
		return false, &Error{Cause: NoVisibility, Host: e.Host, Status: e.Status, RetryAfter: e.RetryAfter, Err: err}
	}
	return v == auth.Public, nil
}

// Down returns why blobs can't be fetched now, as far as is known without asking, or nil.
// Errors: *Error.
func (c *Client) Down() error { return c.health.blobsBlocked(c.version(context.Background())) }

// Scarce reports whether less than a share (0…1) of the pull quota is left. Then nothing
// should be asked that no client waits for.
func (c *Client) Scarce(reserve float64) bool { return c.quota.scarce(reserve) }

// url returns the URL of a path of the registry's API, such as "library/redis/manifests/7".
func (c *Client) url(path string) *url.URL {
	v := *c.base
	v.Path = strings.TrimSuffix(v.Path, "/") + "/v2/" + path
	v.RawPath, v.RawQuery = "", ""
	return &v
}

// get sends a request, unless a cool-down forbids it, and follows no redirect. If the answer to
// a HEAD doesn't tell whose it is, a GET is sent after it; its answer counts, and its body is
// closed.
// Errors are *Error, whatever the status: only 2xx, 3xx and 416 are responses.
func (c *Client) get(ctx context.Context, method string, to *url.URL, header http.Header, l limit) (*http.Response, error) {
	resp, err := c.getOnce(ctx, method, to, header, l)
	if !errors.Is(err, errUnclear) {
		return resp, err
	}
	if resp, err = c.getOnce(ctx, http.MethodGet, to, header, l); err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// errUnclear is wrapped by the error for a HEAD whose answer doesn't tell whose it is.
var errUnclear = errors.New("the answer to HEAD isn't that of a registry")

// getOnce is get without the GET that may follow a HEAD.
func (c *Client) getOnce(ctx context.Context, method string, to *url.URL, header http.Header, l limit) (*http.Response, error) {
	version, sent := c.version(ctx), time.Now()
	c.hear(ctx, l, version)
	if err := c.health.admit(l, version); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, to.String(), nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	resp, err := c.send(req, l)
	if err != nil {
		return nil, c.transportError(ctx, err, to.Host, l, sent, version)
	}
	c.responses[min(max(resp.StatusCode/100, 0), 5)].Add(1)
	c.record.succeeded(l)
	if l != cdn {
		c.record.compare(resp.Header)
		if c.health.answered(version) {
			c.log.Info("the upstream answers again", "upstream", c.title())
		}
		if c.hub() && c.quota.observe(resp.Header) { // other registries may mean something else by these headers
			c.tellQuota(ctx, version)
		}
	}
	if s := resp.StatusCode; s < 400 || s == http.StatusRequestedRangeNotSatisfiable {
		if l == pulls && s < 300 {
			c.health.passed(method == http.MethodGet, version)
		}
		return resp, nil
	}
	return nil, c.statusError(ctx, resp, to, l, version)
}

// transportError takes note of a request that got no answer.
func (c *Client) transportError(ctx context.Context, err error, host string, l limit, sent time.Time, version uint64) error {
	c.responses[0].Add(1)
	e := classify(host, err)
	if auth.IsAbuseLimit(err) {
		e = &Error{Cause: Throttled, Host: host, Status: http.StatusTooManyRequests, Err: errors.New("its abuse limit")}
		c.throttled(ctx, abuse, 0, version)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return e // the caller ended it, not the upstream
	}
	if e.Cause == Timeout || e.Cause == Unreachable || e.Cause == Broken {
		c.record.failed(l, e)
	}
	if e.Cause == Refused {
		c.health.credentialRefused(time.Now().Add(max(e.RetryAfter, refusedFor)), version)
	}
	if l != cdn && !isPatient(ctx) && (e.Cause == Timeout || e.Cause == Unreachable) && c.health.failed(e, sent) {
		c.log.Warn("the upstream can't be reached: what is cached is served, and nothing else can be pulled", "upstream", c.title(), "error", e)
	}
	return e
}

// send counts and sends a request. One for a manifest is sent a second time when the
// connection breaks before the answer; for a blob the retries of its body do that.
func (c *Client) send(req *http.Request, l limit) (*http.Response, error) {
	c.requests.Add(1)
	resp, err := c.auth.RoundTrip(req)
	if err == nil || l != pulls || req.Context().Err() != nil || auth.IsAbuseLimit(err) {
		return resp, err
	}
	if e := classify(req.URL.Host, err); e.Cause != Broken || e.Status != 0 {
		return nil, err
	}
	c.requests.Add(1)
	return c.auth.RoundTrip(req)
}

// statusError reads and closes an error response.
func (c *Client) statusError(ctx context.Context, resp *http.Response, to *url.URL, l limit, version uint64) error {
	defer resp.Body.Close()
	a := auth.ReadAnswer(place(to, l), resp)
	e := &Error{Host: to.Host, Status: resp.StatusCode, Cause: Broken}
	switch a.Subject() {
	case answer.Missing:
		e.Cause = NotFound
	case answer.Access:
		e.Cause = Denied
	case answer.Unclear:
		e.Err = errUnclear
	case answer.Token:
		e.Err = errors.New("it doesn't know the token that its own token service has given")
	case answer.Limit:
		e.Cause = Throttled
		wait, _ := auth.ParseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
		which := l
		// Docker Hub's pull limit answers JSON, and only for manifests; its abuse limit is plain
		// text. Other registries limit requests of every kind.
		if l != pulls || !c.hub() || strings.Contains(string(a.Body), "HAP429") {
			which = abuse
		}
		e.RetryAfter = c.throttled(ctx, which, wait, version)
	}
	if e.Cause == Broken {
		c.record.failed(l, e)
	}
	return e
}

// throttled begins the pause of a limit and returns how long it is.
func (c *Client) throttled(ctx context.Context, l limit, wait time.Duration, version uint64) time.Duration {
	left, say := c.health.throttle(l, wait, version)
	c.tellPause(ctx, l, left, version)
	if !say {
		return left
	}
	what := "the upstream limits requests: what is cached is served, and nothing is asked until the limit ends"
	if l == pulls {
		what = "the pull quota is used up: what is cached is served, and no other image can be pulled until it is whole again"
	}
	attrs := []any{"upstream", c.title(), "next_attempt", time.Now().Add(left).Round(time.Second)}
	if q := c.quota.rateLimit(); q != nil && l == pulls {
		attrs = append(attrs, "limit", q.Limit, "window", (time.Duration(q.WindowSeconds) * time.Second).String(), "counted_for", q.Source)
	}
	c.log.Warn(what, attrs...)
	return left
}

// place says what a URL is for package answer.
func place(to *url.URL, l limit) answer.Place {
	switch {
	case l == cdn:
		return answer.CDN
	case path.Base(path.Dir(to.Path)) == "referrers":
		return answer.Referrers
	}
	return answer.Registry
}

// version is that of the credential that a request with ctx is sent with, 0 when anonymous.
func (c *Client) version(ctx context.Context) uint64 {
	if c.cred == nil || auth.IsAnonymous(ctx) {
		return 0
	}
	return c.cred.Version()
}

// maxRedirectBody is more than the line of HTML around a signed URL that registries send.
const maxRedirectBody = 8 << 10

// follow sends a GET or HEAD and follows redirects: at most five, to https anywhere, to
// plain http and into the network only when the registry is of that kind itself, never
// with credentials in the URL. It returns the URL that answered.
func (c *Client) follow(ctx context.Context, method string, to *url.URL, header http.Header, l limit) (*http.Response, *url.URL, error) {
	for range 6 {
		resp, err := c.get(ctx, method, to, header, l)
		if err != nil {
			return nil, nil, err
		}
		if resp.Request != nil {
			method = resp.Request.Method // GET, if the registry doesn't know HEAD: the URLs that it signs are for that
		}
		if !isRedirect(resp.StatusCode) {
			return resp, to, nil
		}
		// A connection whose body was not read to its end can't be used again.
		if n := resp.ContentLength; n >= 0 && n <= maxRedirectBody {
			io.CopyN(io.Discard, resp.Body, n+1)
		}
		resp.Body.Close()
		next, err := to.Parse(resp.Header.Get("Location"))
		if err != nil { // the error's text contains the URL, signature included
			err = errors.New("redirect to something that is no URL refused")
		} else {
			err = c.dialer.mayFollow(next)
		}
		if err != nil {
			return nil, nil, &Error{Cause: Broken, Host: to.Host, Status: resp.StatusCode, Err: err}
		}
		to, l = next, cdn
	}
	return nil, nil, &Error{Cause: Broken, Host: to.Host, Err: errors.New("more than five redirects")}
}

func isRedirect(status int) bool {
	return status >= 301 && status <= 303 || status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect
}

// counted counts the body bytes that are read from the upstream.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Stats describes an upstream. The counters begin with the start of the program.
type Stats struct {
	Registry      string // "docker.io"
	URL           string
	State         string // ok, cooling (429), denied (credential refused), down
	Requests      int64  // to the registry and its CDN
	Fetched       int64  // body bytes of manifests and blobs
	Manifests     int64  // how many of Fetched were manifests
	Resumes       int64  // bodies that broke or stalled, and were continued by Range
	Authenticated bool   // a credential is configured
	RateLimit     *RateLimit

	Credential auth.CredentialStatus
	Failure    *Failure // that still stands; nil: none
	// NextAttempt is when the pause after a 429 ends; zero if there is none.
	NextAttempt time.Time
	ClockAhead  *time.Duration // of this machine, compared with the registry, to a second; nil: unknown

	// Responses counts answers by status class ("2xx" … "5xx", "error").
	Responses map[string]int64
	// TokenRequests counts requests to the token service by result ("ok", "denied",
	// "throttled", "error").
	TokenRequests map[string]int64
}

// Stats returns a snapshot.
func (c *Client) Stats() Stats {
	manifests, version := c.manifestBytes.Load(), c.version(context.Background())
	s := Stats{
		Registry: c.name, URL: c.base.String(), State: c.health.state(version), NextAttempt: c.health.nextAttempt(version), Requests: c.requests.Load(),
		Fetched: c.blobBytes.Load() + manifests, Manifests: manifests, Resumes: c.resumes.Load(), Authenticated: c.cred != nil, RateLimit: c.quota.rateLimit(),
		Credential: c.auth.CredentialStatus(), Failure: c.record.last(), ClockAhead: c.record.clock(),
		Responses: map[string]int64{}, TokenRequests: map[string]int64{},
	}
	for i, class := range []string{"error", "1xx", "2xx", "3xx", "4xx", "5xx"} {
		s.Responses[class] = c.responses[i].Load()
	}
	t := c.auth.Stats()
	s.TokenRequests["ok"], s.TokenRequests["denied"] = int64(t.OK), int64(t.Denied)
	s.TokenRequests["throttled"], s.TokenRequests["error"] = int64(t.Throttled), int64(t.Error)
	return s
}
