package registry

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// observe remembers what upstream says of the pull quota. The headers are absent when
// there is no limit; then the last word, if any, is dropped once its window has passed.
func (u *upstream) observe(h http.Header) {
	limit, window, ok := parseQuota(h.Get("ratelimit-limit"))
	remaining, w, ok2 := parseQuota(h.Get("ratelimit-remaining"))
	if !ok || !ok2 {
		return
	}
	if window == 0 {
		window = w
	}
	q := &RateLimit{Limit: limit, Remaining: remaining, WindowSeconds: window, Source: h.Get("docker-ratelimit-source"), Observed: time.Now()}
	u.mu.Lock()
	u.quota = q
	u.mu.Unlock()
}

// parseQuota reads "100;w=21600" (draft-ietf-httpapi-ratelimit-headers-01, as Docker Hub
// sends it). Other parameters are passed over.
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

// scarce reports whether less than a share of the quota is left: then nothing is asked
// that no client waits for.
func (u *upstream) scarce(reserve float64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	q := u.quota
	if q == nil || time.Since(q.Observed) > time.Duration(q.WindowSeconds)*time.Second {
		return false
	}
	return float64(q.Remaining) < reserve*float64(q.Limit)
}
