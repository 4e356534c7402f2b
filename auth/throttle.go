package auth

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hubcache/hubcache/cooldown"
)

const (
	// firstPause follows a 429 without Retry-After. It is what Docker Hub sends when it sends one.
	firstPause = time.Minute
	// maxPause keeps a mistaken Retry-After from stopping pulls for a day.
	maxPause = 15 * time.Minute
	// minPause replaces "Retry-After: 0", which would make a loop without a pause.
	minPause = time.Second
)

// ParseRetryAfter returns how long to wait from now after an answer with this value of
// Retry-After, in seconds or as an HTTP date (RFC 9110 §10.2.3). wait is at least 1 s and at
// most 15 min. ok is false, and wait 0, if the value is neither.
func ParseRetryAfter(value string, now time.Time) (wait time.Duration, ok bool) {
	value = strings.TrimSpace(value)
	if value != "" && strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.Atoi(value)
		if err != nil || seconds > int(maxPause/time.Second) {
			return maxPause, true
		}
		return max(time.Duration(seconds)*time.Second, minPause), true
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return min(max(date.Sub(now), minPause), maxPause), true
}

// throttled remembers the last 429 of a host. Make one with newThrottled. Not safe for
// concurrent use.
type throttled struct {
	pause cooldown.Pause
	abuse bool // the 429 was that of Docker Hub's abuse limit
}

func newThrottled() throttled {
	return throttled{pause: cooldown.Pause{First: firstPause, Most: maxPause}}
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
