package hubtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	Query      string      `json:"query,omitempty"`      // empty at the CDN, where it has the signature, a secret
	Kind       string      `json:"kind"`                 // ping, manifests, blobs, tags, referrers, token or other
	Repository string      `json:"repository,omitempty"` // of a token request: of its scopes, separated by commas
	Reference  string      `json:"reference,omitempty"`  // tag or digest; of a token request: the actions
	Range      string      `json:"range,omitempty"`
	Account    string      `json:"account,omitempty"` // "" is anonymous; of a token request: the name given, right or wrong
	Remote     string      `json:"remote"`            // the client's address without its port
	HasAuth    bool        `json:"has_auth"`          // there was an Authorization header
	Header     http.Header `json:"header,omitempty"`  // of the request, without Authorization
	Fault      bool        `json:"fault,omitempty"`   // a rule of Inject fired for it
	Rule       string      `json:"rule,omitempty"`    // its Match.Name
	Status     int         `json:"status"`            // 0: none was sent (yet)
	BodyBytes  int64       `json:"body_bytes"`        // response body bytes that the connection took; 0 with Raw
	Started    time.Time   `json:"started"`
	Ended      time.Time   `json:"ended"` // zero while it goes on
}

// String is the entry as one line. It has no times, sizes and ports, so it is the same on
// every run:
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

// Short cuts a digest to 12 hex digits, as in lines of the ledger. It returns a tag as it is.
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

// Count returns for how many entries want is true.
func (l Ledger) Count(want func(Entry) bool) int { return len(l.Filter(want)) }

// Lines returns every entry as its String.
func (l Ledger) Lines() []string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.String()
	}
	return lines
}

// String is the lines, joined by line breaks.
func (l Ledger) String() string { return strings.Join(l.Lines(), "\n") }

// ManifestGETs counts GETs of manifests, whatever their status, except those answered with 401.
func (l Ledger) ManifestGETs() int { return l.manifests(http.MethodGet) }

// ManifestHEADs counts HEADs of manifests, whatever their status, except those answered
// with 401.
func (l Ledger) ManifestHEADs() int { return l.manifests(http.MethodHead) }

func (l Ledger) manifests(method string) int {
	return l.Count(func(e Entry) bool {
		return e.Kind == "manifests" && e.Method == method && e.Status != http.StatusUnauthorized
	})
}

// blobBody reports whether a blob was requested and not redirected elsewhere.
func blobBody(e Entry) bool {
	return e.Kind == "blobs" && e.Method == http.MethodGet &&
		(e.Face == CDN || e.Status == http.StatusOK || e.Status == http.StatusPartialContent)
}

// BlobGETs counts GETs of blobs at the host that sends the bytes: all at the CDN, and those
// that the registry answered itself (Options.InlineBlobs).
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

// ledger is what the Hub remembers of its clients.
type ledger struct {
	mu         sync.Mutex // guards all, and what the entries point at
	entries    []*Entry
	inFlight   int // requests that are being answered
	violations []string
	secrets    []string
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

func (l *ledger) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
}

// busy reports whether a request is being answered.
func (l *ledger) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inFlight > 0
}

// start adds the entry of a request. It must be followed by finish.
func (l *ledger) start(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	l.inFlight++
}

// end records when the response ended. Only the first call counts.
func (l *ledger) end(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Ended.IsZero() {
		e.Ended = time.Now()
	}
}

// finish says that the request is no longer being answered.
func (l *ledger) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
}

// update changes an entry that others may be reading.
func (l *ledger) update(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *ledger) violation(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violations = append(l.violations, fmt.Sprintf(format, args...))
}

func (l *ledger) allViolations() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.violations)
}

func (l *ledger) secret(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets = append(l.secrets, s)
}

func (l *ledger) allSecrets() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.secrets)
}

// ServeHTTP is the page of Options.LedgerPage: text, or JSON with ?json. DELETE resets it.
func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodDelete:
		l.reset()
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Query().Has("json"):
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(l.snapshot())
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, l.snapshot().String()+"\n")
	}
}
