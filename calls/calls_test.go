package calls

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWorkIsShared: all who ask at the same time get what one run of the work returns.
func TestWorkIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int32]
		var runs atomic.Int32
		work := func(context.Context) (int32, error) {
			time.Sleep(time.Second)
			return runs.Add(1), nil
		}
		for want := int32(1); want <= 2; want++ {
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					if n, err := g.Do(t.Context(), "key", work); n != want || err != nil {
						t.Errorf("%d, %v, not %d", n, err, want)
					}
				})
			}
			wg.Wait()
		}
		if len(g.running) > 0 {
			t.Errorf("%d are kept", len(g.running))
		}
	})
}

// TestWorkEndsWhenNobodyWaits: work goes on while one waits for it, ends with the last, and
// is begun anew for the next one, although the old one has not returned yet.
func TestWorkEndsWhenNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string]
		ended := make(chan error, 1)
		work := func(ctx context.Context) (string, error) {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			time.Sleep(time.Second) // it tidies up
			return "", ctx.Err()
		}
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(i+1)*time.Minute, errors.New("enough"))
				defer cancel()
				if _, err := g.Do(ctx, "key", work); err == nil || err.Error() != "enough" {
					t.Error(err)
				}
			})
		}
		start := time.Now()
		if err := <-ended; err != ErrNobody || time.Since(start) != 3*time.Minute {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if s, err := g.Do(t.Context(), "key", func(context.Context) (string, error) { return "new", nil }); s != "new" || err != nil {
			t.Error(s, err)
		}
		wg.Wait()
		time.Sleep(2 * time.Second)
	})
}
