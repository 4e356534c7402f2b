package registry

import "sync/atomic"

// counters are the requests of all mirrors. Clients of upstreams and the pool count for
// themselves.
type counters struct {
	manifests, blobs [len(outcomes)]atomic.Int64
	served           atomic.Int64
	mismatches       atomic.Int64 // manifests with a wrong digest
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
