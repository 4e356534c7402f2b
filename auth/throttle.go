package auth

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hubcache/hubcache/cooldown"
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

// throttled remembers a host's 429.
type throttled struct {
	pause cooldown.Pause
	abuse bool // by Docker Hub's abuse limit
}

func newThrottled() throttled {
	return throttled{pause: cooldown.Pause{First: firstCooldown, Most: maxCooldown}}
}

// check returns a *ThrottledError while the pause lasts, and nil after it.
func (c *throttled) check(host string, now time.Time) error {
	left := c.pause.Left(now)
	if left == 0 {
		return nil
	}
	return &ThrottledError{Host: host, RetryAfter: left, Until: c.pause.Until(), Abuse: c.abuse}
}

// start begins a pause after a 429 with this Retry-After.
func (c *throttled) start(retryAfter string, abuse bool, now time.Time) {
	c.abuse = abuse || c.abuse && c.pause.Left(now) > 0
	wait, _ := ParseRetryAfter(retryAfter, now)
	c.pause.Begin(wait, now)
}
