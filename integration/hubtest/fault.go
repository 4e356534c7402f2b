package hubtest

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Match says which requests a rule is for. Zero fields match everything. In the globs *
// stands for any run of characters.
type Match struct {
	Name       string // of the rule, for the ledger; it matches nothing
	Face       Face
	Method     string
	Kind       string // as in [Entry]
	Path       string // glob
	Repository string // glob
	Reference  string // tag or digest, whole
	Account    string // as in [Entry]
	Ranged     bool   // only requests with a Range header
	Range      string // glob of the Range header

	Skip   int     // how many matching requests to let pass first
	Times  int     // how many times to fire then; 0 is always
	Chance float64 // share of the requests to fire for (1 is all); 0 is all
}

// Fault is something that goes wrong with a request. Several make a rule; see [Hub.Inject].
type Fault func(*effects)

// effects is what the faults of a rule do to an exchange.
type effects struct {
	delay       time.Duration
	hang        bool
	drop        *ending
	raw         string
	rawStatus   int
	response    func(*request) *response // instead of the real one
	location    func(http.Header)
	cutAt       *int64
	cutHow      ending
	stallAt     *int64
	flipAt      *int64
	grow        int64
	chunked     bool
	ignoreRange bool
	expired     bool
}

// Rule is an injected fault. Its methods may be called concurrently.
type Rule struct {
	faults   *faults
	match    Match
	effects  effects
	seen     int           // matching requests so far; guarded by faults.mu
	hits     int           // of them, those that it fired for; guarded by faults.mu
	freed    bool          // released is closed; guarded by faults.mu
	released chan struct{} // closed by Release
}

// faults are the rules in the order in which they were injected.
type faults struct {
	mu    sync.Mutex // guards all below, and the counters of the rules
	rules []*Rule
	rand  *rand.Rand // for Match.Chance
}

func newFaults(seed uint64) *faults { return &faults{rand: rand.New(rand.NewPCG(seed, 0))} }

func (f *faults) inject(m Match, list []Fault) *Rule {
	r := &Rule{faults: f, match: m, released: make(chan struct{})}
	for _, fault := range list {
		fault(&r.effects)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, r)
	return r
}

func (f *faults) clear() {
	f.mu.Lock()
	rules := f.rules
	f.rules = nil
	f.mu.Unlock()
	for _, r := range rules {
		r.Release()
	}
}

// fire counts the request and returns the rule that fires for it, or nil.
func (f *faults) fire(e *Entry) *Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if !r.match.matches(e) {
			continue
		}
		r.seen++
		m := r.match
		if r.seen <= m.Skip || m.Times > 0 && r.hits >= m.Times {
			continue
		}
		if m.Chance > 0 && f.rand.Float64() >= m.Chance {
			continue
		}
		r.hits++
		return r
	}
	return nil
}

// Hits is how often the rule has fired.
func (r *Rule) Hits() int {
	r.faults.mu.Lock()
	defer r.faults.mu.Unlock()
	return r.hits
}

// Release ends the waiting of requests that the rule hangs or stalls. Later ones don't wait.
func (r *Rule) Release() {
	r.faults.mu.Lock()
	defer r.faults.mu.Unlock()
	if !r.freed {
		r.freed = true
		close(r.released)
	}
}

// Remove ends the rule: it fires no more, and it is released.
func (r *Rule) Remove() {
	f := r.faults
	f.mu.Lock()
	// A new slice: clear may be reading the old one.
	f.rules = slices.DeleteFunc(slices.Clone(f.rules), func(other *Rule) bool { return other == r })
	f.mu.Unlock()
	r.Release()
}

// matches reports whether the rule is for this request. It doesn't look at the counts.
func (m Match) matches(e *Entry) bool {
	return (m.Face == "" || m.Face == e.Face) &&
		(m.Method == "" || m.Method == e.Method) &&
		(m.Kind == "" || m.Kind == e.Kind) &&
		(m.Account == "" || m.Account == e.Account) &&
		(m.Reference == "" || m.Reference == e.Reference) &&
		(!m.Ranged || e.Range != "") &&
		globMatch(m.Path, e.Path) && globMatch(m.Range, e.Range) && globMatch(m.Repository, e.Repository)
}

// globMatch reports whether s matches the glob, in which * is any run of characters.
// The empty glob matches everything.
func globMatch(glob, s string) bool {
	if glob == "" {
		return true
	}
	parts := strings.Split(glob, "*")
	if len(parts) == 1 {
		return glob == s
	}
	rest, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}

// Delay waits before the headers.
func Delay(d time.Duration) Fault { return func(e *effects) { e.delay = d } }

// Hang sends no headers until the rule is released; then the response is the usual one.
func Hang() Fault { return func(e *effects) { e.hang = true } }

// Reset resets the connection (RST) before the headers.
func Reset() Fault { return func(e *effects) { e.drop = new(resetting) } }

// Drop closes the connection before the headers.
func Drop() Fault { return func(e *effects) { e.drop = new(closing) } }

// Status answers with this status, body and headers, which are lines like "Retry-After: 7".
// Without a Content-Type among the headers the body is plain text.
func Status(status int, body string, headers ...string) Fault {
	return func(e *effects) {
		e.response = func(*request) *response {
			resp := textResponse(status, "text/plain; charset=utf-8", body)
			for _, line := range headers {
				name, value, _ := strings.Cut(line, ":")
				resp.header.Set(name, strings.TrimSpace(value))
			}
			return resp
		}
	}
}

// TooManyRequests is the registry's JSON for 429, without Retry-After unless there is one
// among the headers.
func TooManyRequests(headers ...string) Fault {
	return Status(http.StatusTooManyRequests,
		`{"errors":[{"code":"TOOMANYREQUESTS","message":"`+pullLimitMessage("")+`"}]}`,
		append([]string{"Content-Type: application/json"}, headers...)...)
}

// HTML answers as a captive portal does: with a page and status 200, whatever was requested.
func HTML() Fault {
	return Status(http.StatusOK, "<!DOCTYPE html><html><body>Please log in to the network.</body></html>\n",
		"Content-Type: text/html")
}

// HAP429 is the response of Docker Hub's abuse limit as it has been observed: line ends are
// bare \n and the body stands where a header should be. Go reports a malformed MIME header
// and not a 429. For a well-formed one use Status(429, "Too Many Requests (HAP429).\n", "Retry-After: 60").
func HAP429() Fault {
	return Raw(http.StatusTooManyRequests, "HTTP/1.1 429 Too Many Requests\nRetry-After: 60\n"+
		"Connection: close\nContent-Type: text/plain\nToo Many Requests (HAP429).\n\n")
}

// Raw writes these bytes on the connection and closes it. The status is for the ledger, in
// which the response has no body bytes.
func Raw(status int, response string) Fault {
	return func(e *effects) { e.raw, e.rawStatus = response, status }
}

// CutAfter closes the connection after n body bytes, all of which arrive. A body of n bytes or
// fewer isn't cut, though the rule fires. A negative n is 0.
func CutAfter(n int64) Fault { return func(e *effects) { e.cutAt, e.cutHow = &n, closing } }

// ResetAfter resets the connection (RST) after n body bytes. On a socket the last of them
// may be lost, because the kernel discards what it has not sent yet. A body of n bytes or fewer
// isn't reset, though the rule fires. A negative n is 0.
func ResetAfter(n int64) Fault { return func(e *effects) { e.cutAt, e.cutHow = &n, resetting } }

// StallAfter sends n body bytes and then nothing until the rule is released. A body of n bytes
// or fewer isn't stalled, though the rule fires. A negative n is 0.
func StallAfter(n int64) Fault { return func(e *effects) { e.stallAt = &n } }

// FlipByte sends a wrong byte at offset n of the blob or manifest.
func FlipByte(n int64) Fault { return func(e *effects) { e.flipAt = &n } }

// Shorter leaves out the last n bytes of the body and announces the shorter length, so that
// the body ends early but without an error. With Chunked nothing is announced.
func Shorter(n int64) Fault { return func(e *effects) { e.grow = -n } }

// Longer adds n bytes to the body and to the length it announces: in a range the next bytes of
// the blob, and dots where the blob or another body has ended.
func Longer(n int64) Fault { return func(e *effects) { e.grow = n } }

// Chunked leaves Content-Length out, also one that Status was given.
func Chunked() Fault { return func(e *effects) { e.chunked = true } }

// IgnoreRange answers 200 with the whole blob.
func IgnoreRange() Fault { return func(e *effects) { e.ignoreRange = true } }

// ExpiredURL makes the registry redirect to a CDN URL that has expired, and the CDN treat
// the URL as expired.
func ExpiredURL() Fault { return func(e *effects) { e.expired = true } }

// RedirectTo answers 307 with this Location.
func RedirectTo(location string) Fault {
	return Status(http.StatusTemporaryRedirect, "", "Location: "+location)
}

// RedirectLoop answers 307 with the URL that was requested.
func RedirectLoop() Fault {
	return func(e *effects) {
		e.response = func(q *request) *response {
			resp := textResponse(http.StatusTemporaryRedirect, "text/plain", "")
			resp.header.Set("Location", q.base+q.r.URL.RequestURI())
			return resp
		}
	}
}

// EditRedirect changes the URL that the registry redirects to, such as its scheme or host.
// The signature stays valid.
func EditRedirect(change func(*url.URL)) Fault {
	return func(e *effects) {
		e.location = func(header http.Header) {
			u, err := url.Parse(header.Get("Location"))
			if err != nil || header.Get("Location") == "" {
				return
			}
			change(u)
			header.Set("Location", u.String())
		}
	}
}
