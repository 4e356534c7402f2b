package admin

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// Schema is the version of Stats. It rises when a field changes its meaning or is removed.
const Schema = 1

// Stats is the document of GET /api/v1/stats and of "hubcache stats --json". Sizes are in
// bytes. Counters count from the start of the
// server, but for Totals.
type Stats struct {
	Schema        int         `json:"schema"`
	Version       string      `json:"version"` // of the program
	UptimeSeconds int64       `json:"uptime_seconds"`
	Store         Store       `json:"store"`
	Requests      Requests    `json:"requests"`
	Bytes         Bytes       `json:"bytes"`
	HitRatio      HitRatio    `json:"hit_ratio"`
	Totals        Totals      `json:"totals"`
	Upstreams     []Upstream  `json:"upstreams"` // never null
	Visibility    Visibility  `json:"visibility"`
	Inflight      []Inflight  `json:"inflight"` // never null; by repository and digest
	Connections   Connections `json:"connections"`
	Warm          WarmStats   `json:"warm"`
	Shared        Shared      `json:"shared"`
	Failures      []Failed    `json:"failures"` // never null; what clients have not got lately, the newest first
}

// Store says what the cache holds.
type Store struct {
	Bytes         int64      `json:"bytes"`          // of the files in blobs/ and ingest/
	ReservedBytes int64      `json:"reserved_bytes"` // promised to downloads, whose files have not grown to it yet
	PinnedBytes   int64      `json:"pinned_bytes"`   // of Bytes: of pinned images, which are not evicted
	Pins          int64      `json:"pins"`           // images that are pinned
	BudgetBytes   int64      `json:"budget_bytes"`   // limit of Bytes and ReservedBytes together
	IndexBytes    int64      `json:"index_bytes"`    // size of the index, which the budget doesn't include
	Blobs         int64      `json:"blobs"`          // complete ones, without manifests
	Manifests     int64      `json:"manifests"`
	Tags          int64      `json:"tags"`
	Evictions     int64      `json:"evictions"` // of blobs and manifests
	EvictedBytes  int64      `json:"evicted_bytes"`
	SlowReaders   int64      `json:"slow_readers"`    // clients that were cut off because they kept room or slots that others needed
	Corrupt       int64      `json:"corrupt"`         // blobs dropped because their bytes had changed on the disk
	WriteErrors   int64      `json:"write_errors"`    // errors of the disk; the clients were served all the same
	DiskBytes     int64      `json:"disk_bytes"`      // size of the file system; it and what is free are measured every ten seconds
	DiskFreeBytes int64      `json:"disk_free_bytes"` // that the server may write
	OldestUse     *time.Time `json:"oldest_use"`      // the oldest last use among what may be evicted next; null while the store is empty

	Shortages []Shortage `json:"shortages"` // what the cache is too small for; never null
}

// Shortage says that the budget or the disk is too small for what clients ask for.
type Shortage struct {
	Kind       string `json:"kind"`        // image, working_set, disk or pins
	Image      string `json:"image"`       // that is larger than the budget, or is pinned and can be evicted, or ""
	NeedsBytes int64  `json:"needs_bytes"` // of budget, or of disk for the cache, that would do
	Message    string `json:"message"`     // for people, with the figure
}

// Requests counts every GET and HEAD for a manifest or blob once, under its result.
type Requests struct {
	Manifest ManifestRequests `json:"manifest"`
	Blob     BlobRequests     `json:"blob"`
}

// ManifestRequests counts requests for manifests.
type ManifestRequests struct {
	Hit         int64 `json:"hit"`         // from the cache
	Revalidated int64 `json:"revalidated"` // from the cache, after the upstream said that the tag is unchanged
	Miss        int64 `json:"miss"`        // from the upstream
	Shared      int64 `json:"shared"`      // from an upstream request that another client began
	Stale       int64 `json:"stale"`       // from the cache, because the upstream could not be asked
	Bypass      int64 `json:"bypass"`      // from the upstream, and not kept
	Quarantine  int64 `json:"quarantine"`  // an older image than the tag names, which has to wait
	Error       int64 `json:"error"`       // answered with a status of 400 or above; the sum of Errors

	Errors Errors `json:"errors"`
}

// Errors counts requests that were answered with an error, by whose fault that is.
type Errors struct {
	Client   int64 `json:"client"`   // it asked for what doesn't exist, or isn't public, or made no sense
	Policy   int64 `json:"policy"`   // the settings or a limit of this cache refused it
	Upstream int64 `json:"upstream"` // the upstream didn't answer, limited requests, or sent what is wrong
	Disk     int64 `json:"disk"`     // what is cached couldn't be read
}

// Total returns how many requests there were.
func (r ManifestRequests) Total() int64 {
	return r.Hit + r.Revalidated + r.Miss + r.Shared + r.Stale + r.Bypass + r.Quarantine + r.Error
}

// Answered returns how many requests were answered without an error.
func (r ManifestRequests) Answered() int64 { return r.Total() - r.Error }

// Hits returns how many requests were answered with what earlier ones had fetched, or another one.
func (r ManifestRequests) Hits() int64 { return r.Hit + r.Revalidated + r.Shared + r.Stale }

// BlobRequests counts requests for blobs. The fields mean what they do in ManifestRequests.
type BlobRequests struct {
	Hit    int64 `json:"hit"`
	Miss   int64 `json:"miss"`
	Shared int64 `json:"shared"`
	Bypass int64 `json:"bypass"`
	Error  int64 `json:"error"`

	ReadAhead int64  `json:"read_ahead"` // how many of Hit and Shared were for what had been read ahead for the same pull
	Errors    Errors `json:"errors"`
}

// Total returns how many requests there were.
func (r BlobRequests) Total() int64 { return r.Hit + r.Miss + r.Shared + r.Bypass + r.Error }

// Answered returns how many requests were answered without an error.
func (r BlobRequests) Answered() int64 { return r.Total() - r.Error }

// Hits returns how many requests were answered with what earlier ones had fetched, or another
// one, and not with what was read ahead for the same pull.
func (r BlobRequests) Hits() int64 { return r.Hit + r.Shared - r.ReadAhead }

// Bytes counts the bytes of manifests and blobs.
type Bytes struct {
	Served          int64 `json:"served"`            // sent to clients
	Hit             int64 `json:"hit"`               // sent to clients, and fetched by earlier requests or with another one; not what was read ahead for the same pull
	Fetched         int64 `json:"fetched"`           // read from upstreams
	ReadAheadUnused int64 `json:"read_ahead_unused"` // read ahead, and not asked for within ten minutes
}

// Shared says what is shared with other nodes. Errors in it name hosts of the operator.
type Shared struct {
	State      string `json:"state"`      // off, well, or unwell: the node goes on alone with what is unwell
	Bucket     string `json:"bucket"`     // off, well, or why it isn't asked now
	Lease      string `json:"lease"`      // the same of Redis
	Hits       int64  `json:"hits"`       // manifests and parts of blobs that came from the bucket or another node
	Bytes      int64  `json:"bytes"`      // of them
	Mismatches int64  `json:"mismatches"` // what came from there and had wrong bytes; none of it was kept
	Recalls    int64  `json:"recalls"`    // checks of tags that another node had just made
	Uploads    int    `json:"uploads"`    // what isn't in the bucket yet
	Leases     int    `json:"leases"`     // blobs that this node fetches for all

	Eviction     string `json:"eviction"`      // off, "this node", "another node", "needs shared.lease", or why it fails now
	BudgetBytes  int64  `json:"budget_bytes"`  // of the bucket; 0: there is none
	BucketBytes  int64  `json:"bucket_bytes"`  // blobs and manifests when this node last counted them
	Evictions    int64  `json:"evictions"`     // objects that this node has deleted from the bucket
	EvictedBytes int64  `json:"evicted_bytes"` // of them
}

// shared makes the document of what is shared.
func (a *admin) shared() Shared {
	if a.Shared == nil {
		return Shared{State: "off", Bucket: "off", Lease: "off", Eviction: "off"}
	}
	return a.Shared()
}

// Connections counts those to the listeners for pulls.
type Connections struct {
	Refused int64 `json:"refused"` // of clients whose addresses are not in listen_allow
}

// Totals counts since the first start of a server on its data directory. A crash loses the counts
// of a minute or two.
type Totals struct {
	Since        time.Time `json:"since"`
	Requests     Requests  `json:"requests"`
	Bytes        Bytes     `json:"bytes"`
	Evictions    int64     `json:"evictions"`
	EvictedBytes int64     `json:"evicted_bytes"`
}

// Count returns the counters of the running server as Totals, without Since.
func Count(s storage.Stats, r registry.Stats) Totals {
	return Totals{Requests: requestsOf(r), Bytes: bytesOf(r), Evictions: s.Evictions, EvictedBytes: s.EvictedBytes}
}

// HitRatio is the share of what was sent to clients that earlier requests had fetched, or another
// one that was under way. What read-ahead fetches for a pull is no hit of that pull. Errors don't
// count. A field is null while nothing was sent.
type HitRatio struct {
	Requests *float64 `json:"requests"` // from 0 to 1
	Bytes    *float64 `json:"bytes"`
}

// Ratio returns the hit ratio of requests and their bytes.
func Ratio(r Requests, b Bytes) (h HitRatio) {
	if all := r.Manifest.Answered() + r.Blob.Answered(); all > 0 {
		h.Requests = new(float64(r.Manifest.Hits()+r.Blob.Hits()) / float64(all))
	}
	if b.Served > 0 {
		h.Bytes = new(float64(b.Hit) / float64(b.Served))
	}
	return h
}

// Visibility says for how many public repositories nobody can tell whether they still are public.
// What is cached of them is served, and the rest is asked for without the credential.
type Visibility struct {
	Overdue          int   `json:"overdue"`            // repositories that were asked for in the last hour
	OldestAgeSeconds int64 `json:"oldest_age_seconds"` // of the visibility that is the longest ago; 0 when there is none
}

// Upstream is one registry that is cached.
type Upstream struct {
	Registry      string     `json:"registry"` // its name in references: "docker.io"
	URL           string     `json:"url"`
	State         string     `json:"state"`         // ok, cooling (a limit was met), denied (the credential is refused) or down
	Requests      int64      `json:"requests"`      // to the registry and its CDN
	Authenticated bool       `json:"authenticated"` // a credential is configured
	RateLimit     *RateLimit `json:"rate_limit"`    // null when unknown or unlimited
	Credential    Credential `json:"credential"`
	Failure       *Failure   `json:"failure"`             // why the last request failed; null when it didn't
	NextAttempt   *time.Time `json:"next_attempt"`        // when the pause after a 429 ends; null when there is none
	ClockAhead    *int64     `json:"clock_ahead_seconds"` // of the server's clock, compared with the upstream's; null when unknown
}

// Credential says what is known of the access token. Nothing of the token is in it.
type Credential struct {
	// State is none (no credential is configured), untried, accepted, refused, expired, throttled
	// (the token service limits requests), or what is wrong with the file: missing, unreadable,
	// empty, malformed.
	State   string `json:"state"`
	Detail  string `json:"detail"`  // what is wrong with the file; "" when nothing is
	Usable  bool   `json:"usable"`  // there is a token: with a fault of the file, the one before
	Exposed bool   `json:"exposed"` // every user of the machine may read the file
}

// Failure is a request to an upstream that failed.
type Failure struct {
	Kind   string    `json:"kind"`   // dns, refused, unreachable, timeout, tls, clock, proxy or broken
	Host   string    `json:"host"`   // of the registry, its token service or its CDN
	Status int       `json:"status"` // of the answer; 0: there was none
	At     time.Time `json:"at"`
}

// RateLimit is what the upstream last said about its limit on pulls.
type RateLimit struct {
	Limit         int64     `json:"limit"`     // pulls in a window
	Remaining     int64     `json:"remaining"` // pulls left in this window
	WindowSeconds int64     `json:"window_seconds"`
	Source        string    `json:"source"`   // whom the upstream counts for: an address, or an account's ID
	Observed      time.Time `json:"observed"` // when the upstream said so
}

// Inflight is a blob that is being fetched.
type Inflight struct {
	Digest     string `json:"digest"`
	Repository string `json:"repository"` // with its registry; of the request that began the download
	Size       int64  `json:"size"`       // -1 while unknown
	Received   int64  `json:"received"`   // bytes
	Readers    int    `json:"readers"`    // clients that are reading
}

// Failed is what clients have asked for lately and didn't get: requests of one repository that
// failed for the same reason. It is kept in memory, at most 16 for each cause.
type Failed struct {
	Cause     string    `json:"cause"`     // whose fault it is, as in Errors: client, policy, upstream or disk
	Reason    string    `json:"reason"`    // absent, private, throttled, …: the Reason constants of package registry
	Reference string    `json:"reference"` // of the last request: with its registry, and its tag or digest unless it was for a list
	Detail    string    `json:"detail"`    // what the last client was told
	Count     int64     `json:"count"`     // of requests
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

func failedOf(f registry.Failure) Failed {
	ref := f.Repository
	if f.Registry != "" {
		ref = f.Registry + "/" + ref
	}
	switch {
	case strings.Contains(f.Reference, ":"):
		ref += "@" + f.Reference
	case f.Reference != "":
		ref += ":" + f.Reference
	}
	return Failed{f.Cause, f.Reason, ref, f.Detail, f.Count, f.First.UTC(), f.Last.UTC()}
}

func requestsOf(r registry.Stats) Requests {
	m, b := r.Manifest, r.Blob
	return Requests{
		Manifest: ManifestRequests{m.Hit, m.Revalidated, m.Miss, m.Shared, m.Stale, m.Bypass, m.Quarantine, m.Error, Errors(m.Errors)},
		Blob:     BlobRequests{b.Hit, b.Miss, b.Shared, b.Bypass, b.Error, b.ReadAhead, Errors(b.Errors)},
	}
}

func bytesOf(r registry.Stats) Bytes { return Bytes{r.Served, r.Hit, r.Fetched, r.ReadAheadUnused} }

// document makes the Stats from one snapshot of the store and one of the registry.
func (a *admin) document(now time.Time) Stats {
	s, r := a.Store.Stats(), a.Registry.Stats()
	totals := Count(s, r)
	totals.Since = a.Started.UTC().Truncate(time.Second)
	if a.Totals != nil {
		totals = a.Totals(totals)
	}
	d := Stats{
		Schema: Schema, Version: a.Version, UptimeSeconds: int64(now.Sub(a.Started).Seconds()),
		Store: Store{
			Bytes: s.Bytes, ReservedBytes: s.ReservedBytes, PinnedBytes: s.PinnedBytes, Pins: s.Pins, BudgetBytes: s.BudgetBytes,
			IndexBytes: s.IndexBytes, Blobs: s.Blobs, Manifests: s.Manifests, Tags: s.Tags,
			Evictions: s.Evictions, EvictedBytes: s.EvictedBytes, SlowReaders: s.SlowReaders + r.SlowReaders, Corrupt: s.Corrupt, WriteErrors: s.WriteErrors,
			DiskBytes: s.DiskBytes, DiskFreeBytes: s.DiskFreeBytes, Shortages: []Shortage{},
		},
		Requests: requestsOf(r), Bytes: bytesOf(r), HitRatio: Ratio(requestsOf(r), bytesOf(r)), Totals: totals,
		Upstreams: []Upstream{}, Inflight: []Inflight{}, Failures: []Failed{},
		Visibility:  Visibility{r.OverdueVisibilities, int64(r.OldestVisibility.Seconds())},
		Connections: Connections{a.Refused()},
		Warm:        a.warmStats(), Shared: a.shared(),
	}
	for _, short := range s.Shortages {
		d.Store.Shortages = append(d.Store.Shortages, Shortage{string(short.Kind), short.Image, short.Needs, short.String()})
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
		up.Credential = Credential{string(u.Credential.State), u.Credential.Detail, u.Credential.Usable, u.Credential.Exposed}
		if f := u.Failure; f != nil {
			up.Failure = &Failure{string(f.Kind), f.Host, f.Status, f.At.UTC()}
		}
		if at := u.NextAttempt.UTC(); !at.IsZero() {
			up.NextAttempt = &at
		}
		if u.ClockAhead != nil {
			seconds := int64(u.ClockAhead.Seconds())
			up.ClockAhead = &seconds
		}
		d.Upstreams = append(d.Upstreams, up)
	}
	for _, f := range r.Recent {
		d.Failures = append(d.Failures, failedOf(f))
	}
	for _, f := range r.Inflight {
		d.Inflight = append(d.Inflight, Inflight(f))
	}
	slices.SortFunc(d.Inflight, func(a, b Inflight) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Digest, b.Digest))
	})
	return d
}
