package registry

import "sync/atomic"

// counters are the Registry's own; upstream counts for itself.
type counters struct {
	manifests, blobs [len(outcomes)]atomic.Int64
	served           atomic.Int64
	resumes          atomic.Int64
	mismatches       atomic.Int64
}

var outcomes = [...]Outcome{OutcomeHit, OutcomeRevalidated, OutcomeMiss, OutcomeShared, OutcomeStale, OutcomeBypass, OutcomeError}

// count counts a GET or HEAD of a manifest or blob, once.
func (c *counters) count(k kind, res result) {
	var of *[len(outcomes)]atomic.Int64
	switch k {
	case manifest:
		of = &c.manifests
	case blob:
		of = &c.blobs
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

// Stats returns a snapshot of the counters.
func (r *Registry) Stats() Stats {
	return Stats{
		Manifest: requests(&r.manifests), Blob: requests(&r.blobs),
		Served: r.served.Load(), Fetched: r.up.fetched.Load(), ReadAheadUnused: r.ahead.unusedBytes(),
		Resumes: r.resumes.Load(), DigestMismatches: r.mismatches.Load(),
		Upstreams: []UpstreamStats{r.up.stats()}, Inflight: r.inflight(),
	}
}
