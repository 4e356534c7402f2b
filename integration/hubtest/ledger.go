package hubtest

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Entry is one request that reached the Hub.
type Entry struct {
	Face       Face        `json:"face"`
	Method     string      `json:"method"`
	Path       string      `json:"path"`
	Query      string      `json:"query,omitempty"`      // with the CDN: without the signature
	Kind       string      `json:"kind"`                 // ping, manifests, blobs, tags, referrers, token or other
	Repository string      `json:"repository,omitempty"` // of a token request: of its scopes, separated by commas
	Reference  string      `json:"reference,omitempty"`  // tag or digest; of a token request: the actions
	Range      string      `json:"range,omitempty"`
	Account    string      `json:"account,omitempty"` // "" is anonymous; of a token request: the name given, right or wrong
	Remote     string      `json:"remote"`            // the client's address without its port
	HasAuth    bool        `json:"has_auth"`          // there was an Authorization header
	Header     http.Header `json:"header,omitempty"`  // of the request, without Authorization
	Fault      bool        `json:"fault,omitempty"`   // an injected fault had its hand in it
	Status     int         `json:"status"`            // 0: none was sent (yet)
	BodyBytes  int64       `json:"body_bytes"`        // response body bytes that the connection took
	Started    time.Time   `json:"started"`
	Ended      time.Time   `json:"ended"` // zero while it goes on
}

// String is the entry as one line without times, sizes and ports, the same on every run:
//
//	GET cdn library/redis blobs/sha256:ab12cd34ef56 range=- account=alice → 200
func (e Entry) String() string {
	what := e.Kind
	if e.Reference != "" {
		what += "/" + Short(e.Reference)
	}
	return fmt.Sprintf("%s %s %s %s range=%s account=%s → %d", e.Method, e.Face, cmp.Or(e.Repository, "-"), what,
		cmp.Or(e.Range, "-"), cmp.Or(e.Account, "-"), e.Status)
}

// Short is a digest cut to 12 hex digits, as lines of the ledger show it; a tag is left alone.
func Short(reference string) string {
	d, err := digest.Parse(reference)
	if err != nil {
		return reference
	}
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}

// Ledger is a list of requests in the order in which they came.
type Ledger []Entry

// Filter returns the entries for which keep is true.
func (l Ledger) Filter(keep func(Entry) bool) Ledger {
	var kept Ledger
	for _, e := range l {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

// Count returns how many entries are wanted.
func (l Ledger) Count(want func(Entry) bool) int { return len(l.Filter(want)) }

// Lines returns every entry as its String.
func (l Ledger) Lines() []string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.String()
	}
	return lines
}

// String is the lines, one after the other.
func (l Ledger) String() string { return strings.Join(l.Lines(), "\n") }

// ManifestGETs counts GETs of manifests, whatever came of them, but for 401 challenges.
func (l Ledger) ManifestGETs() int { return l.manifests(http.MethodGet) }

// ManifestHEADs counts HEADs of manifests, whatever came of them, but for 401 challenges.
func (l Ledger) ManifestHEADs() int { return l.manifests(http.MethodHead) }

func (l Ledger) manifests(method string) int {
	return l.Count(func(e Entry) bool {
		return e.Kind == "manifests" && e.Method == method && e.Status != http.StatusUnauthorized
	})
}

// blobBody reports whether a blob's bytes were asked for and not redirected elsewhere.
func blobBody(e Entry) bool {
	return e.Kind == "blobs" && e.Method == http.MethodGet &&
		(e.Face == CDN || e.Status == http.StatusOK || e.Status == http.StatusPartialContent)
}

// BlobGETs counts GETs that reached a blob's bytes: all of the CDN's, and those that the
// registry answered itself (Options.InlineBlobs).
func (l Ledger) BlobGETs() int { return l.Count(blobBody) }

// BlobBytes adds up the blob bytes sent with 200 and 206. Error bodies don't count.
func (l Ledger) BlobBytes() int64 {
	var n int64
	for _, e := range l.Filter(blobBody) {
		if e.Status == http.StatusOK || e.Status == http.StatusPartialContent {
			n += e.BodyBytes
		}
	}
	return n
}

// TokenRequests counts the token requests made with the account's name; "" is anonymous.
func (l Ledger) TokenRequests(account string) int {
	return l.Count(func(e Entry) bool { return e.Face == Token && e.Account == account })
}

// Ledger returns a copy of all requests since the start or the last [Hub.ResetLedger]. A
// request is complete in it before its client has the last byte.
func (h *Hub) Ledger() Ledger { return h.ledger.snapshot() }

// ResetLedger forgets all requests, also those that are still being answered.
func (h *Hub) ResetLedger() {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	h.ledger.entries = nil
}

type ledger struct {
	mu       sync.Mutex // guards all, and what the entries point at
	entries  []*Entry
	inflight int
}

func (l *ledger) snapshot() Ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(Ledger, len(l.entries))
	for i, e := range l.entries {
		all[i] = *e
	}
	return all
}

func (l *ledger) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inflight > 0
}

func (l *ledger) start(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	l.inflight++
}

// end notes the time, the first time.
func (l *ledger) end(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Ended.IsZero() {
		e.Ended = time.Now()
	}
}

func (l *ledger) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inflight--
}

// note changes an entry that others may be looking at.
func (l *ledger) note(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}
