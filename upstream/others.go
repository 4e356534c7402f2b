package upstream

import (
	"context"
	"time"
)

// Others are other programs that use the same account at the same registry. All methods are safe for
// concurrent use, and take a fraction of a second at most, whatever happens.
type Others interface {
	// Limits returns what any of them was last told of the limits. whose says whose limits are meant
	// where they aren't the account's: the address that the registry sees.
	Limits(ctx context.Context, whose string) Limits

	// SetLimits tells them. It returns when they can know of a pause.
	SetLimits(ctx context.Context, whose string, l Limits)
}

// Limits is what a registry has said of its limits. Zero fields aren't known.
type Limits struct {
	Pulls, All time.Duration // how much longer to send no pulls, or no request at all

	// The quota of pulls, how old this is, and whose it is, as the registry says.
	Limit, Remaining, WindowSeconds int64
	QuotaAge                        time.Duration
	Source                          string
}

// whose returns whose limits a request runs into that is sent with this version of the credential. ok is
// false when nobody knows, so that the others can't be meant: an anonymous request is counted for an
// address, and they may have other ones.
func (c *Client) whose(version uint64) (whose string, ok bool) {
	if c.others == nil || version > 0 {
		return "", c.others != nil
	}
	if c.cred != nil { // the quota that is known is that of the account
		return "", false
	}
	q := c.quota.rateLimit()
	return sourceOf(q), sourceOf(q) != ""
}

func sourceOf(q *RateLimit) string {
	if q == nil {
		return ""
	}
	return q.Source
}

// hear takes over what others know of the limits.
func (c *Client) hear(ctx context.Context, l limit, version uint64) {
	whose, ok := c.whose(version)
	if !ok || l == cdn {
		return
	}
	known := c.others.Limits(ctx, whose)
	c.health.adopt(known.Pulls, known.All, version)
	if known.Limit > 0 {
		c.quota.adopt(&RateLimit{Limit: known.Limit, Remaining: known.Remaining, WindowSeconds: known.WindowSeconds, Source: known.Source, Observed: time.Now().Add(-known.QuotaAge)})
	}
}

// tellPause tells the others that a limit was met.
func (c *Client) tellPause(ctx context.Context, l limit, left time.Duration, version uint64) {
	whose, ok := c.whose(version)
	switch {
	case !ok || left <= 0:
	case l == pulls:
		c.others.SetLimits(ctx, whose, Limits{Pulls: left})
	default:
		c.others.SetLimits(ctx, whose, Limits{All: left})
	}
}

// tellQuota tells the others what is left, which the registry has just said.
func (c *Client) tellQuota(ctx context.Context, version uint64) {
	whose, ok := c.whose(version)
	q := c.quota.rateLimit()
	if ok && q != nil {
		c.others.SetLimits(ctx, whose, Limits{Limit: q.Limit, Remaining: q.Remaining, WindowSeconds: q.WindowSeconds, Source: q.Source, QuotaAge: time.Since(q.Observed)})
	}
}
