package hubtest

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Match says which requests a rule is for. Zero fields match everything; in Path and
// Repository * stands for any run of characters.
type Match struct {
	Face       Face
	Method     string
	Kind       string // as in [Entry]
	Path       string // glob
	Repository string // glob
	Reference  string // tag or digest, whole
	Ranged     bool   // only requests with a Range header

	Skip   int     // let so many matching requests pass first
	Times  int     // then fire so many times; 0 is always
	Chance float64 // fire for this share of the requests (1 is all); 0 is all
}

// Fault is something that goes wrong with a request. Several make a rule; see [Hub.Inject].
type Fault func(*tricks)

// tricks is what faults do to an exchange.
type tricks struct {
	delay       time.Duration
	hang        bool
	drop        *ending
	raw         string
	rawStatus   int
	reply       func(*exchange) *reply // instead of the real one
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

// Rule is a fault that waits for its requests.
type Rule struct {
	hub      *Hub
	match    Match
	tricks   tricks
	seen     int           // under hub.mu
	hits     int           // under hub.mu
	released chan struct{} // closed by Release
	freed    bool          // under hub.mu
}

// Inject makes the faults befall the requests that match. Of several rules that match a
// request, the one injected first fires; one that has fired its Times steps aside.
func (h *Hub) Inject(m Match, faults ...Fault) *Rule {
	r := &Rule{hub: h, match: m, released: make(chan struct{})}
	for _, fault := range faults {
		fault(&r.tricks)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rules = append(h.rules, r)
	return r
}

// ClearFaults removes and releases all rules.
func (h *Hub) ClearFaults() {
	h.mu.Lock()
	rules := h.rules
	h.rules = nil
	h.mu.Unlock()
	for _, r := range rules {
		r.Release()
	}
}

// Hits is how often the rule has fired.
func (r *Rule) Hits() int {
	r.hub.mu.Lock()
	defer r.hub.mu.Unlock()
	return r.hits
}

// Release lets the requests go on that the rule hangs or stalls, also later ones.
func (r *Rule) Release() {
	r.hub.mu.Lock()
	defer r.hub.mu.Unlock()
	if !r.freed {
		r.freed = true
		close(r.released)
	}
}

// Remove ends the rule: it fires no more, and what it hangs or stalls goes on.
func (r *Rule) Remove() {
	r.hub.mu.Lock()
	for i, other := range r.hub.rules {
		if other == r {
			r.hub.rules = append(r.hub.rules[:i:i], r.hub.rules[i+1:]...)
			break
		}
	}
	r.hub.mu.Unlock()
	r.Release()
}

// fire returns the rule whose turn it is, or nil.
func (h *Hub) fire(e *Entry) *Rule {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.rules {
		if !r.match.wants(e) {
			continue
		}
		r.seen++
		m := r.match
		if r.seen <= m.Skip || m.Times > 0 && r.hits >= m.Times {
			continue
		}
		if m.Chance > 0 && h.rand.Float64() >= m.Chance {
			continue
		}
		r.hits++
		return r
	}
	return nil
}

func (m Match) wants(e *Entry) bool {
	return (m.Face == "" || m.Face == e.Face) &&
		(m.Method == "" || m.Method == e.Method) &&
		(m.Kind == "" || m.Kind == e.Kind) &&
		(m.Reference == "" || m.Reference == e.Reference) &&
		(!m.Ranged || e.Range != "") &&
		matches(m.Path, e.Path) && matches(m.Repository, e.Repository)
}

// Delay waits before the headers.
func Delay(d time.Duration) Fault { return func(t *tricks) { t.delay = d } }

// Hang sends no headers until the rule is released; then the answer is the usual one.
func Hang() Fault { return func(t *tricks) { t.hang = true } }

// Reset resets the connection (RST) before the headers.
func Reset() Fault { return func(t *tricks) { t.drop = new(resetting) } }

// Drop closes the connection before the headers.
func Drop() Fault { return func(t *tricks) { t.drop = new(closing) } }

// Status answers with a status, headers ("Retry-After: 7") and body of the test's choice.
// Without a Content-Type among the headers the body is plain text.
func Status(status int, body string, headers ...string) Fault {
	return func(t *tricks) {
		t.reply = func(*exchange) *reply {
			rep := textReply(status, "text/plain; charset=utf-8", body)
			for _, line := range headers {
				name, value, _ := strings.Cut(line, ":")
				rep.header.Set(name, strings.TrimSpace(value))
			}
			return rep
		}
	}
}

// TooManyRequests is the registry's JSON for 429, without Retry-After unless there is one
// among the headers.
func TooManyRequests(headers ...string) Fault {
	return Status(http.StatusTooManyRequests,
		`{"errors":[{"code":"TOOMANYREQUESTS","message":"`+pullLimit("")+`"}]}`,
		append([]string{"Content-Type: application/json"}, headers...)...)
}

// HTML is a captive portal: a page with status 200 in place of anything.
func HTML() Fault {
	return Status(http.StatusOK, "<!DOCTYPE html><html><body>Please log in to the network.</body></html>\n",
		"Content-Type: text/html")
}

// HAP429 is Docker Hub's abuse limit as it was seen to be sent: bare \n line ends and the
// body where a header should be, which Go reports as a malformed MIME header and not as a
// 429. For the well-formed one use Status(429, "Too Many Requests (HAP429).\n", "Retry-After: 60").
func HAP429() Fault {
	return Raw(http.StatusTooManyRequests, "HTTP/1.1 429 Too Many Requests\nRetry-After: 60\n"+
		"Connection: close\nContent-Type: text/plain\nToo Many Requests (HAP429).\n\n")
}

// Raw writes the bytes on the connection as they are and closes it. The status is what the
// ledger says.
func Raw(status int, response string) Fault {
	return func(t *tricks) { t.raw, t.rawStatus = response, status }
}

// CutAfter closes the connection after n body bytes, all of which arrive.
func CutAfter(n int64) Fault { return func(t *tricks) { t.cutAt, t.cutHow = &n, closing } }

// ResetAfter resets the connection (RST) after n body bytes. The last of them may be lost
// on a socket, as the kernel throws away what it has not sent yet.
func ResetAfter(n int64) Fault { return func(t *tricks) { t.cutAt, t.cutHow = &n, resetting } }

// StallAfter sends n body bytes and then nothing until the rule is released.
func StallAfter(n int64) Fault { return func(t *tricks) { t.stallAt = &n } }

// FlipByte sends a wrong byte at offset n of the blob or manifest.
func FlipByte(n int64) Fault { return func(t *tricks) { t.flipAt = &n } }

// Shorter leaves out the last n bytes of the body and announces the shorter length: a clean
// end before its time. With Chunked nothing is announced.
func Shorter(n int64) Fault { return func(t *tricks) { t.grow = -n } }

// Longer adds n bytes to the body and to the length it announces.
func Longer(n int64) Fault { return func(t *tricks) { t.grow = n } }

// Chunked leaves Content-Length out.
func Chunked() Fault { return func(t *tricks) { t.chunked = true } }

// IgnoreRange answers 200 with the whole blob.
func IgnoreRange() Fault { return func(t *tricks) { t.ignoreRange = true } }

// ExpiredURL, at the registry, redirects to a CDN URL whose time has passed; at the CDN it
// treats the URL as such.
func ExpiredURL() Fault { return func(t *tricks) { t.expired = true } }

// RedirectTo answers 307 with this Location.
func RedirectTo(location string) Fault {
	return Status(http.StatusTemporaryRedirect, "", "Location: "+location)
}

// RedirectLoop answers 307 with the URL that was asked for, without end when always on.
func RedirectLoop() Fault {
	return func(t *tricks) {
		t.reply = func(x *exchange) *reply {
			rep := textReply(http.StatusTemporaryRedirect, "text/plain", "")
			rep.header.Set("Location", x.hub.url(x.face)+x.r.URL.RequestURI())
			return rep
		}
	}
}

// EditRedirect changes the URL that the registry redirects to: its scheme, its host, or
// credentials in it. The signature stays right.
func EditRedirect(change func(*url.URL)) Fault {
	return func(t *tricks) {
		t.location = func(header http.Header) {
			u, err := url.Parse(header.Get("Location"))
			if err != nil || header.Get("Location") == "" {
				return
			}
			change(u)
			header.Set("Location", u.String())
		}
	}
}
