package fetch

import (
	"context"
	"time"

	"github.com/hubcache/hubcache/slots"
)

// slotDeadline is how long a request waits for a slot: containerd gives up after 30 s
// without headers, and the source needs some of that time.
const slotDeadline = 15 * time.Second

// What a connection that carries a blob is wanted for.
const (
	toBegin  = slots.Urgent // a client has nothing of the blob yet
	toHasten = slots.Later  // one more for a blob that is on its way
)

// waitForSlot waits for a slot for a client that has nothing yet. Errors: ErrBusy, ctx's cause.
func waitForSlot(ctx context.Context, s *slots.Slots, client string) error {
	wait, cancel := context.WithTimeout(ctx, slotDeadline)
	defer cancel()
	if s.Acquire(wait, client, toBegin) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrBusy
}
