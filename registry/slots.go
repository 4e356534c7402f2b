package registry

import (
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
