package fetch

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestMoreUrgentWaiterGetsTheSlot: the more urgent priority comes first, and within one the
// caller who has waited longer.
func TestMoreUrgentWaiterGetsTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newSlots(1)
		if !l.tryAcquire(0) || l.tryAcquire(0) {
			t.Fatal("one slot is one")
		}
		var mu sync.Mutex
		var got []priority
		asked := []priority{toHasten, toBegin, toHasten, toBegin}
		var wg sync.WaitGroup
		for _, n := range asked {
			wg.Go(func() {
				if err := l.acquire(t.Context(), n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, n)
				mu.Unlock()
				l.release()
			})
			synctest.Wait()
		}
		// A holder lends its slot to more urgent waiters; a less urgent one doesn't get it.
		if !l.yield(t.Context(), toBegin) {
			t.Error("not given back")
		}
		if want := []priority{toBegin, toBegin}; !slices.Equal(got, want) {
			t.Errorf("after yielding: %v, not %v", got, want)
		}
		l.release()
		wg.Wait()
		if want := []priority{toBegin, toBegin, toHasten, toHasten}; !slices.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
		if l.free != 1 {
			t.Errorf("%d slots are free", l.free)
		}
	})
}

// TestSlotsAreConserved: whoever gives up, at whatever moment, no slot is lost and none is made.
func TestSlotsAreConserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 3
		l := newSlots(slots)
		var mu sync.Mutex
		held := 0
		hold := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			if held += n; held > slots {
				t.Errorf("%d are held", held)
			}
		}
		var wg sync.WaitGroup
		random := rand.New(rand.NewPCG(1, 2))
		for range 500 {
			n, patience, work := priority(random.IntN(int(priorities))), time.Duration(random.IntN(20)), time.Duration(random.IntN(5))
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience*time.Millisecond)
				defer cancel()
				if l.acquire(ctx, n) != nil {
					return
				}
				hold(1)
				time.Sleep(work * time.Millisecond)
				hold(-1)
				if l.yield(ctx, n) {
					l.release()
				}
			})
		}
		wg.Wait()
		if l.free != slots || slices.ContainsFunc(l.waiting[:], func(q []chan struct{}) bool { return len(q) > 0 }) {
			t.Errorf("%d of %d slots are free, waiting: %v", l.free, slots, l.waiting)
		}
	})
}
