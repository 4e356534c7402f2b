package auth

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// firstCooldown is Docker Hub's own Retry-After where it sends one.
	firstCooldown = time.Minute
	// maxCooldown keeps a mistaken Retry-After from stopping pulls for a day.
	maxCooldown = 15 * time.Minute
	// minCooldown stands in for "Retry-After: 0", which would be a loop.
	minCooldown = time.Second
)

// ParseRetryAfter reads the value of a Retry-After field, seconds or an HTTP date
// (RFC 9110 §10.2.3), as a time to wait from now: 1 s to 15 min. ok is false when there
// is nothing to read.
func ParseRetryAfter(value string, now time.Time) (wait time.Duration, ok bool) {
	value = strings.TrimSpace(value)
	if value != "" && strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.Atoi(value)
		if err != nil || seconds > int(maxCooldown/time.Second) {
			return maxCooldown, true
		}
		return max(time.Duration(seconds)*time.Second, minCooldown), true
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return min(max(date.Sub(now), minCooldown), maxCooldown), true
}

// cooldown is the token service's 429. The Transport's mutex guards it.
type cooldown struct {
	until time.Time
	next  time.Duration // for a 429 without Retry-After; 0: firstCooldown
	abuse bool
}

// check returns the error to answer with while the cool-down lasts.
func (c *cooldown) check(host string, now time.Time) error {
	if !now.Before(c.until) {
		return nil
	}
	return &ThrottledError{Host: host, RetryAfter: c.until.Sub(now), Until: c.until, Abuse: c.abuse}
}

// start begins a cool-down. The 429s of requests that were under way together are one.
func (c *cooldown) start(retryAfter string, abuse bool, now time.Time) {
	c.abuse = abuse || c.abuse && now.Before(c.until)
	wait, given := ParseRetryAfter(retryAfter, now)
	if !given {
		if now.Before(c.until) {
			return
		}
		wait = max(c.next, firstCooldown)
		c.next = min(2*wait, maxCooldown)
	}
	if until := now.Add(wait); until.After(c.until) {
		c.until = until
	}
}
