package admin

import (
	"time"

	"github.com/hubcache/hubcache/warm"
)

// WarmStats says what is kept in the cache on a schedule.
type WarmStats struct {
	Schedule string     `json:"schedule"` // the five words of warm.schedule; "": never
	Next     *time.Time `json:"next"`     // null: never
	Running  bool       `json:"running"`
	Last     *WarmRun   `json:"last"` // null: none yet
}

// WarmRun is what the last run did.
type WarmRun struct {
	Began    time.Time     `json:"began"`
	Seconds  float64       `json:"seconds"` // that it took
	Images   int           `json:"images"`  // that are cached as a whole
	Fetched  int64         `json:"fetched_bytes"`
	Failures []WarmFailure `json:"failures"` // never null; the first hundred
	Failed   int           `json:"failed"`   // how many failures there were
}

// WarmFailure is an image that isn't cached as a whole after a run, or a compose file that couldn't
// be read.
type WarmFailure struct {
	What  string `json:"what"` // whole reference, or file
	Error string `json:"error"`
}

// maxWarmFailures is how many failures are listed.
const maxWarmFailures = 100

// warm sends when images were looked at on the schedule, and will be.
func (s sender) warm(w warm.State) {
	send := func(name string, at time.Time) {
		if !at.IsZero() {
			s.gauge(name, at.Unix())
		}
	}
	if w.Last != nil {
		send("warm_last_run_timestamp_seconds", w.Last.Began)
	}
	send("warm_last_success_timestamp_seconds", w.Succeeded)
	send("warm_next_run_timestamp_seconds", w.Next)
}

// warmStats makes the document of what the Keeper does.
func (a *admin) warmStats() WarmStats {
	if a.Warm == nil {
		return WarmStats{}
	}
	s := a.Warm()
	w := WarmStats{Schedule: s.Schedule, Running: s.Running}
	if !s.Next.IsZero() {
		next := s.Next.UTC()
		w.Next = &next
	}
	if r := s.Last; r != nil {
		w.Last = &WarmRun{Began: r.Began.UTC(), Seconds: r.Took.Seconds(), Images: r.Images, Fetched: r.Fetched, Failures: []WarmFailure{}, Failed: len(r.Failures)}
		for _, f := range r.Failures[:min(len(r.Failures), maxWarmFailures)] {
			w.Last.Failures = append(w.Last.Failures, WarmFailure{f.What, f.Err.Error()})
		}
	}
	return w
}
