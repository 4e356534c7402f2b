package registry

import (
	"maps"
	"slices"
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
	OutcomeQuarantine  Outcome = "quarantine"  // an older image than the tag names, since that has to wait
	OutcomeError       Outcome = "error"
)

// Requests counts the GETs and HEADs of one kind, each once.
type Requests struct {
	Hit, Revalidated, Miss, Shared, Stale, Bypass, Quarantine, Error int64

	// ReadAhead is how many of Hit and Shared were for what read-ahead had fetched for the same
	// pull: they are no hits of earlier work.
	ReadAhead int64

	Sent, Fetched int64 // bytes of bodies to clients, and from upstreams

	Errors Errors

	// FirstByte is the time to the first byte of the answer, by outcome.
	FirstByte map[Outcome]Histogram
}

// Errors are the requests that were answered with an error, by what caused it. Their sum is
// Requests.Error.
type Errors struct {
	Client   int64 // it asked for what doesn't exist, or isn't public, or made no sense
	Policy   int64 // the settings or a limit of this cache refused it
	Upstream int64 // the upstream didn't answer, limited requests, or sent what is wrong
	Disk     int64 // what is cached couldn't be read
}

// Stats is a snapshot of the registry's counters since the start.
type Stats struct {
	Manifest, Blob Requests

	// Bytes of manifest and blob bodies. Those of Hit were sent and had been brought in by
	// earlier requests; see Requests.ReadAhead.
	Served, Hit, Fetched, ReadAheadUnused int64

	// Counters that explain failures; all since the start.
	Resumes          int64 // broken or stalled upstream bodies that were continued by Range
	DigestMismatches int64 // upstream bodies whose digest or length was wrong
	SlowReaders      int64 // clients that were cut off because they read slowly what isn't kept, and others waited for their slots
	StaleReferrers   int64 // referrers of cached manifests that were answered while the upstream could not be asked

	// Public repositories whose visibility is overdue, and which were asked for in the last hour:
	// how many, and the age of the oldest visibility; 0 when there are none.
	OverdueVisibilities int
	OldestVisibility    time.Duration

	Upstreams []upstream.Stats
	Inflight  []fetch.Inflight
	Recent    []Failure // what clients have not got lately, the newest first: at most 16 of each cause, in memory alone
}

// Stats returns a snapshot of the counters. It waits for no disk and for no upstream.
func (r *Registry) Stats() Stats {
	p := r.pool.Stats()
	s := Stats{
		Manifest: requests(&r.counters.manifests), Blob: requests(&r.counters.blobs),
		ReadAheadUnused: p.ReadAheadUnused, SlowReaders: p.SlowReaders,
		Resumes: p.Resumes, DigestMismatches: p.DigestMismatches + r.counters.mismatches.Load(), StaleReferrers: r.counters.staleReferrers.Load(), Inflight: p.Inflight,
		Recent: r.recent.list(),
	}
	s.Served, s.Hit = r.counters.bytes()
	for _, c := range r.allCounters() {
		manifests, blobs := c.Bytes()
		s.Fetched += manifests + blobs
		s.Manifest.Fetched += manifests
		s.Blob.Fetched += blobs
		s.Resumes += c.Resumes()
	}
	for _, m := range r.routes.Load().mirrors {
		s.Upstreams = append(s.Upstreams, m.client.Stats())
		n, oldest := m.overdue.stats(time.Now())
		s.OverdueVisibilities += n
		s.OldestVisibility = max(s.OldestVisibility, oldest)
	}
	return s
}

// allCounters are those of all upstreams since the start.
func (r *Registry) allCounters() []*upstream.Counters {
	r.counting.Lock()
	defer r.counting.Unlock()
	return slices.Collect(maps.Values(r.counted))
}

// counters are the requests of all mirrors. Clients of upstreams and the pool count for
// themselves.
type counters struct {
	manifests, blobs tally
	mismatches       atomic.Int64 // manifests with a wrong digest
	staleReferrers   atomic.Int64
}

// tally counts the requests of one kind. An answer from memory adds to three of its numbers.
type tally struct {
	firstByte [len(outcomes)]histogram    // which also counts the requests
	sent      [len(outcomes)]atomic.Int64 // body bytes
	errors    [causes]atomic.Int64        // of OutcomeError
	ahead     atomic.Int64                // requests for what was read ahead for them
	aheadSent atomic.Int64                // and their bytes
}

// cause says whose fault an error answer is.
type cause uint8

const (
	byClient cause = iota
	byPolicy
	byUpstream
	byDisk
	causes
)

var outcomes = [...]Outcome{OutcomeHit, OutcomeRevalidated, OutcomeMiss, OutcomeShared, OutcomeStale, OutcomeBypass, OutcomeQuarantine, OutcomeError}

// count counts a GET or HEAD of a manifest or blob, once, and one of referrers that is stale.
func (c *counters) count(k kind, res *result, firstByte time.Duration) {
	var t *tally
	switch k {
	case manifest:
		t = &c.manifests
	case blob:
		t = &c.blobs
	case referrers:
		if res.outcome == OutcomeStale {
			c.staleReferrers.Add(1)
		}
		return
	default:
		return
	}
	for i, o := range outcomes {
		if o != res.outcome {
			continue
		}
		t.firstByte[i].observe(firstByte)
		if res.status < 300 {
			t.sent[i].Add(res.sent)
		}
		break
	}
	if res.outcome == OutcomeError {
		t.errors[res.cause].Add(1)
	}
	if res.ahead {
		t.ahead.Add(1)
		t.aheadSent.Add(res.aheadSent)
	}
}

// isHit reports whether an outcome means that the bytes were here, or on their way, already.
func isHit(o Outcome) bool {
	return o == OutcomeHit || o == OutcomeRevalidated || o == OutcomeShared || o == OutcomeStale
}

// bytes returns how many bytes were sent, and how many of them earlier requests had brought in.
func (c *counters) bytes() (served, hit int64) {
	for _, t := range []*tally{&c.manifests, &c.blobs} {
		hit -= t.aheadSent.Load()
		for i, o := range outcomes {
			n := t.sent[i].Load()
			served += n
			if isHit(o) {
				hit += n
			}
		}
	}
	return served, max(hit, 0) // the two are not read at the same time
}

func requests(t *tally) Requests {
	r := Requests{FirstByte: map[Outcome]Histogram{}, ReadAhead: t.ahead.Load()}
	r.Errors = Errors{Client: t.errors[byClient].Load(), Policy: t.errors[byPolicy].Load(), Upstream: t.errors[byUpstream].Load(), Disk: t.errors[byDisk].Load()}
	r.Error = r.Errors.Client + r.Errors.Policy + r.Errors.Upstream + r.Errors.Disk
	for i, n := range []*int64{&r.Hit, &r.Revalidated, &r.Miss, &r.Shared, &r.Stale, &r.Bypass, &r.Quarantine, nil} {
		h := t.firstByte[i].snapshot()
		r.FirstByte[outcomes[i]] = h
		r.Sent += t.sent[i].Load()
		if n != nil {
			*n = h.Count
		}
	}
	return r
}
