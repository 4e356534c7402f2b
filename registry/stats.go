package registry

import (
	"sync/atomic"
	"time"

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
	StaleReferrers   int64 // referrers of cached manifests that were answered while the upstream could not be asked

	// Public repositories whose visibility is overdue, and which were asked for in the last hour:
	// how many, and the age of the oldest visibility; 0 when there are none.
	OverdueVisibilities int
	OldestVisibility    time.Duration

	Upstreams []upstream.Stats
	Inflight  []fetch.Inflight
}

// Stats returns a snapshot of the counters. It waits for no disk and for no upstream.
func (r *Registry) Stats() Stats {
	p := r.pool.Stats()
	s := Stats{
		Manifest: requests(&r.counters.manifests), Blob: requests(&r.counters.blobs),
		Served: r.counters.served.Load(), ReadAheadUnused: p.ReadAheadUnused,
		Resumes: p.Resumes, DigestMismatches: p.DigestMismatches + r.counters.mismatches.Load(), StaleReferrers: r.counters.staleReferrers.Load(), Inflight: p.Inflight,
	}
	for _, m := range r.mirrors {
		u := m.client.Stats()
		s.Fetched += u.Fetched
		s.Resumes += u.Resumes
		s.Upstreams = append(s.Upstreams, u)
		n, oldest := m.overdue.stats(time.Now())
		s.OverdueVisibilities += n
		s.OldestVisibility = max(s.OldestVisibility, oldest)
	}
	return s
}

// counters are the requests of all mirrors. Clients of upstreams and the pool count for
// themselves.
type counters struct {
	manifests, blobs [len(outcomes)]atomic.Int64
	served           atomic.Int64
	mismatches       atomic.Int64 // manifests with a wrong digest
	staleReferrers   atomic.Int64
}

var outcomes = [...]Outcome{OutcomeHit, OutcomeRevalidated, OutcomeMiss, OutcomeShared, OutcomeStale, OutcomeBypass, OutcomeError}

// count counts a GET or HEAD of a manifest or blob, once, and one of referrers that is stale.
func (c *counters) count(k kind, res result) {
	var of *[len(outcomes)]atomic.Int64
	switch k {
	case manifest:
		of = &c.manifests
	case blob:
		of = &c.blobs
	case referrers:
		if res.outcome == OutcomeStale {
			c.staleReferrers.Add(1)
		}
		return
	default:
		return
	}
	for i, o := range outcomes {
		if o == res.outcome {
			of[i].Add(1)
		}
	}
	if res.status < 300 {
		c.served.Add(res.sent)
	}
}

func requests(of *[len(outcomes)]atomic.Int64) Requests {
	n := func(i int) int64 { return of[i].Load() }
	return Requests{Hit: n(0), Revalidated: n(1), Miss: n(2), Shared: n(3), Stale: n(4), Bypass: n(5), Error: n(6)}
}
