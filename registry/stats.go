package registry

import "time"

// Outcome says what a request for a manifest or a blob turned out to be.
// It is the value of the X-Hubcache header and of the requests counters.
type Outcome string

// The outcomes. OutcomeError has no header: it counts answers of 400 and above.
const (
	OutcomeHit         Outcome = "hit"         // from the store, no upstream request
	OutcomeRevalidated Outcome = "revalidated" // tag checked upstream, manifest from the store
	OutcomeMiss        Outcome = "miss"        // fetched for this request
	OutcomeShared      Outcome = "shared"      // read along with another request's fetch
	OutcomeStale       Outcome = "stale"       // upstream can't be asked; what was cached
	OutcomeBypass      Outcome = "bypass"      // passed through without being kept
	OutcomeError       Outcome = "error"
)

// Requests counts the GETs and HEADs of one kind, each once.
type Requests struct {
	Hit, Revalidated, Miss, Shared, Stale, Bypass, Error int64
}

// Stats is a snapshot of the registry's counters since the start.
type Stats struct {
	Manifest, Blob Requests

	// Bytes of manifest and blob bodies.
	Served, Fetched, ReadAheadUnused int64

	// Counters that explain failures; all since the start.
	Resumes          int64 // broken or stalled upstream bodies that were continued by Range
	DigestMismatches int64 // upstream bodies whose digest or length was wrong

	Upstreams []UpstreamStats
	Inflight  []Inflight
}

// UpstreamStats describes one upstream registry.
type UpstreamStats struct {
	Registry      string // "docker.io"
	URL           string
	State         string // ok, cooling (429), denied (credential refused), down
	Requests      int64  // to the registry and its CDN
	Authenticated bool   // a credential is configured
	RateLimit     *RateLimit

	// Responses counts upstream answers by status class ("2xx" … "5xx", "error").
	Responses map[string]int64
	// TokenRequests counts requests to the token service by result ("ok", "denied", "throttled", "error").
	TokenRequests map[string]int64
}

// RateLimit is what the upstream last said of the pull quota.
type RateLimit struct {
	Limit, Remaining, WindowSeconds int64
	Source                          string
	Observed                        time.Time
}

// Inflight is one blob being fetched now.
type Inflight struct {
	Digest, Repository string
	Size, Received     int64 // Size is -1 while unknown
	Readers            int
}
