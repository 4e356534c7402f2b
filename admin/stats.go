package admin

import (
	"cmp"
	"slices"
	"time"
)

// Schema is the version of Stats. It rises when a field changes its meaning or goes.
const Schema = 1

// Stats is the document of GET /api/v1/stats and of "hubcache stats --json". Sizes are in
// bytes; counters begin at the start of the server.
type Stats struct {
	Schema        int        `json:"schema"`
	Version       string     `json:"version"`
	UptimeSeconds int64      `json:"uptime_seconds"`
	Store         Store      `json:"store"`
	Requests      Requests   `json:"requests"`
	Bytes         Bytes      `json:"bytes"`
	Upstreams     []Upstream `json:"upstreams"`
	Inflight      []Inflight `json:"inflight"`
}

// Store says what is kept. Bytes is what lies in blobs/ and ingest/.
type Store struct {
	Bytes         int64      `json:"bytes"`
	ReservedBytes int64      `json:"reserved_bytes"`
	PinnedBytes   int64      `json:"pinned_bytes"`
	BudgetBytes   int64      `json:"budget_bytes"`
	IndexBytes    int64      `json:"index_bytes"`
	Blobs         int64      `json:"blobs"`
	Manifests     int64      `json:"manifests"`
	Tags          int64      `json:"tags"`
	Evictions     int64      `json:"evictions"`
	EvictedBytes  int64      `json:"evicted_bytes"`
	OldestUse     *time.Time `json:"oldest_use"` // null while the store is empty
}

// Requests counts every GET and HEAD of a manifest or blob once, under what it was.
type Requests struct {
	Manifest ManifestRequests `json:"manifest"`
	Blob     BlobRequests     `json:"blob"`
}

// ManifestRequests are those of manifests.
type ManifestRequests struct {
	Hit         int64 `json:"hit"`
	Revalidated int64 `json:"revalidated"`
	Miss        int64 `json:"miss"`
	Shared      int64 `json:"shared"`
	Stale       int64 `json:"stale"`
	Bypass      int64 `json:"bypass"`
	Error       int64 `json:"error"`
}

// Total is how many there were.
func (r ManifestRequests) Total() int64 {
	return r.Hit + r.Revalidated + r.Miss + r.Shared + r.Stale + r.Bypass + r.Error
}

// BlobRequests are those of blobs.
type BlobRequests struct {
	Hit    int64 `json:"hit"`
	Miss   int64 `json:"miss"`
	Shared int64 `json:"shared"`
	Bypass int64 `json:"bypass"`
	Error  int64 `json:"error"`
}

// Total is how many there were.
func (r BlobRequests) Total() int64 { return r.Hit + r.Miss + r.Shared + r.Bypass + r.Error }

// Bytes counts bodies of manifests and blobs: sent to clients, read from upstreams, and
// read ahead for nobody.
type Bytes struct {
	Served          int64 `json:"served"`
	Fetched         int64 `json:"fetched"`
	ReadAheadUnused int64 `json:"read_ahead_unused"`
}

// Upstream is one registry that is cached.
type Upstream struct {
	Registry      string     `json:"registry"`
	URL           string     `json:"url"`
	State         string     `json:"state"` // ok, cooling, denied or down
	Requests      int64      `json:"requests"`
	Authenticated bool       `json:"authenticated"`
	RateLimit     *RateLimit `json:"rate_limit"` // null when unknown or unlimited
}

// RateLimit is what the upstream last said of the pull quota.
type RateLimit struct {
	Limit         int64     `json:"limit"`
	Remaining     int64     `json:"remaining"`
	WindowSeconds int64     `json:"window_seconds"`
	Source        string    `json:"source"`
	Observed      time.Time `json:"observed"`
}

// Inflight is a blob that is being fetched.
type Inflight struct {
	Digest     string `json:"digest"`
	Repository string `json:"repository"`
	Size       int64  `json:"size"` // -1 while unknown
	Received   int64  `json:"received"`
	Readers    int    `json:"readers"`
}

// document takes the snapshots and puts them together.
func (a *admin) document(now time.Time) Stats {
	s, r := a.Store.Stats(), a.Registry.Stats()
	d := Stats{
		Schema: Schema, Version: a.Version, UptimeSeconds: int64(now.Sub(a.Started).Seconds()),
		Store: Store{
			Bytes: s.Bytes, ReservedBytes: s.ReservedBytes, PinnedBytes: s.PinnedBytes, BudgetBytes: s.BudgetBytes,
			IndexBytes: s.IndexBytes, Blobs: s.Blobs, Manifests: s.Manifests, Tags: s.Tags,
			Evictions: s.Evictions, EvictedBytes: s.EvictedBytes,
		},
		Requests: Requests{
			Manifest: ManifestRequests(r.Manifest),
			Blob:     BlobRequests{r.Blob.Hit, r.Blob.Miss, r.Blob.Shared, r.Blob.Bypass, r.Blob.Error},
		},
		Bytes:     Bytes{r.Served, r.Fetched, r.ReadAheadUnused},
		Upstreams: []Upstream{}, Inflight: []Inflight{},
	}
	if !s.OldestUse.IsZero() {
		t := s.OldestUse.UTC()
		d.Store.OldestUse = &t
	}
	for _, u := range r.Upstreams {
		up := Upstream{Registry: u.Registry, URL: u.URL, State: u.State, Requests: u.Requests, Authenticated: u.Authenticated}
		if q := u.RateLimit; q != nil {
			up.RateLimit = &RateLimit{q.Limit, q.Remaining, q.WindowSeconds, q.Source, q.Observed.UTC()}
		}
		d.Upstreams = append(d.Upstreams, up)
	}
	for _, f := range r.Inflight {
		d.Inflight = append(d.Inflight, Inflight(f))
	}
	slices.SortFunc(d.Inflight, func(a, b Inflight) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Digest, b.Digest))
	})
	return d
}
