package registry

import (
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/upstream"
)

// Outcome says what a request for a manifest or a blob turned out to be.
// It is the value of the X-Hubcache header and of the requests counters.
type Outcome string

// The outcomes. OutcomeError has no header: it counts answers of 400 and above.
const (
	OutcomeHit         Outcome = "hit"         // from the store, no upstream request
	OutcomeRevalidated Outcome = "revalidated" // tag checked upstream, manifest from the store
	OutcomeMiss        Outcome = "miss"        // fetched for this request
	OutcomeShared      Outcome = "shared"      // read along with another request's download
	OutcomeStale       Outcome = "stale"       // what was cached, since upstream can't be asked
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

	Upstreams []upstream.Stats
	Inflight  []fetch.Inflight
}

// Stats returns a snapshot of the counters. It waits for no disk and for no upstream.
func (r *Registry) Stats() Stats {
	p := r.pool.Stats()
	s := Stats{
		Manifest: requests(&r.counters.manifests), Blob: requests(&r.counters.blobs),
		Served: r.counters.served.Load(), ReadAheadUnused: p.ReadAheadUnused,
		Resumes: p.Resumes, DigestMismatches: p.DigestMismatches + r.counters.mismatches.Load(), Inflight: p.Inflight,
	}
	for _, m := range r.mirrors {
		u := m.client.Stats()
		s.Fetched += u.Fetched
		s.Resumes += u.Resumes
		s.Upstreams = append(s.Upstreams, u)
	}
	return s
}
