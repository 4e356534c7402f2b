package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// RateLimit is what the upstream last said of the pull quota.
type RateLimit struct {
	Limit, Remaining, WindowSeconds int64
	Source                          string    // whose quota it is: an account or an address
	Observed                        time.Time // when the upstream said so
}

// quota remembers what the upstream says of the pull quota.
type quota struct {
	mu   sync.Mutex // guards last
	last *RateLimit // nil: nothing said yet
}

// observe reads the headers of a response. They are absent when there is no limit; then
// the last values, if any, stop to count when their window has passed. It reports whether there were any.
func (q *quota) observe(h http.Header) bool {
	limit, window, ok := parseQuota(h.Get("ratelimit-limit"))
	remaining, w, ok2 := parseQuota(h.Get("ratelimit-remaining"))
	if !ok || !ok2 {
		return false
	}
	if window == 0 {
		window = w
	}
	r := &RateLimit{Limit: limit, Remaining: remaining, WindowSeconds: window, Source: h.Get("docker-ratelimit-source"), Observed: time.Now()}
	q.mu.Lock()
	q.last = r
	q.mu.Unlock()
	return true
}

// adopt takes over what the upstream has told others, if that is newer.
func (q *quota) adopt(r *RateLimit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil || r.Observed.After(q.last.Observed) {
		q.last = r
	}
}

// rateLimit returns a copy of the last values, or nil.
func (q *quota) rateLimit() *RateLimit {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil {
		return nil
	}
	r := *q.last
	return &r
}

// scarce reports whether less than a share of the quota is left.
func (q *quota) scarce(reserve float64) bool {
	r := q.rateLimit()
	if r == nil || time.Since(r.Observed) > time.Duration(r.WindowSeconds)*time.Second {
		return false
	}
	return float64(r.Remaining) < reserve*float64(r.Limit)
}

// parseQuota reads "100;w=21600" (draft-ietf-httpapi-ratelimit-headers-01, as Docker Hub
// sends it). It ignores other parameters.
func parseQuota(s string) (n, window int64, ok bool) {
	first, params, _ := strings.Cut(s, ";")
	n, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
	if err != nil || n < 0 {
		return 0, 0, false
	}
	for p := range strings.SplitSeq(params, ";") {
		if v, found := strings.CutPrefix(strings.TrimSpace(p), "w="); found {
			if w, err := strconv.ParseInt(v, 10, 64); err == nil && w > 0 {
				window = w
			}
		}
	}
	return n, window, true
}
