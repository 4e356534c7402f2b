package registry

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/semaphore"
)

// slots bounds how many transfers go on at once. Who waits is served in order; TryAcquire
// never overtakes them.
type slots = semaphore.Weighted

// slotDeadline is how long a request waits for a slot: containerd gives up after 30 s
// without headers, and upstream needs some of that time.
const slotDeadline = 15 * time.Second

// errTooMany: no slot came free in time.
var errTooMany = &upstreamError{cause: throttled, host: "hubcache", retryAfter: retrySoon, err: errors.New("too many downloads are under way (limits.transfers, limits.bypass)")}

// takeSlot waits for a slot. Errors: errTooMany, or ctx's.
func takeSlot(ctx context.Context, s *slots) error {
	wait, cancel := context.WithTimeout(ctx, slotDeadline)
	defer cancel()
	if s.Acquire(wait, 1) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errTooMany
}
