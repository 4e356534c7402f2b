package registry

import (
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/storage"
)

// Options is what New needs. Store and Upstream.URL must be set; the zero value of
// everything else means what its comment says.
type Options struct {
	Store    *storage.Store
	Upstream Upstream
	Policy   Policy
	Log      *slog.Logger // nil: slog.Default()
}

// Upstream is the registry that is cached.
type Upstream struct {
	Name       string // as in keys and answers; "" means "docker.io"
	URL        *url.URL
	Credential *auth.File     // nil: anonymous
	RootCAs    *x509.CertPool // nil: the system's

	// Transport carries all requests when set; then RootCAs and the environment's proxy
	// are its business.
	Transport http.RoundTripper
}

// Policy is what an operator may change while the server runs (Registry.SetPolicy).
type Policy struct {
	Tags         []TagRule // first match wins; see TagRule
	TagTTL       *time.Duration
	MaxStale     time.Duration // how long a tag may be served while upstream fails; 0: never
	NegativeTTL  time.Duration // how long an upstream 404 is remembered
	KeepGone     bool          // serve a tag that upstream has deleted
	Allow, Deny  []string      // repository globs; empty Allow: all; Deny wins
	Private      []string      // repository globs served although they are private
	QuotaReserve float64       // share of the quota (0…1) below which no tag is refreshed in the background
	Limits       Limits
	ReadAhead    bool
}

// TagRule overrides the tag settings for references that match, e.g. "library/*:*-alpine".
// In a pattern * crosses no slash. A nil field keeps the general setting.
type TagRule struct {
	Match    string
	TTL      *time.Duration
	MaxStale *time.Duration
	Refresh  bool // check the tag in the background before its TTL ends, while it is in use
}

// Limits bounds what goes on upstream at one time. Zero means the default, which DefaultLimits returns.
type Limits struct {
	Transfers int // connections that carry blob bodies
	Orphans   int // blob fetches that nobody reads, read-ahead among them
	Ranges    int // connections for one blob
	Bypass    int // bodies passed through without being kept
}

// DefaultLimits are the limits of an ordinary host: enough connections to fill a
// gigabit from a CDN that gives 20 MB/s to each, and buffers for them in some 16 MiB.
var DefaultLimits = Limits{Transfers: 32, Orphans: 8, Ranges: 6, Bypass: 16}
