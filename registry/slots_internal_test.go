package registry

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The more urgent need comes first, and within one who has waited longer.
func TestLanesOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLanes(1)
		if !l.tryAcquire(0) || l.tryAcquire(0) {
			t.Fatal("one lane is one")
		}
		var mu sync.Mutex
		var got []need
		asked := []need{toHasten, toBegin, toHasten, toBegin}
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
		// Who holds one and is needed less than others lends it; nobody less urgent gets it.
		if !l.yield(t.Context(), toBegin) {
			t.Error("not given back")
		}
		if want := []need{toBegin, toBegin}; !slices.Equal(got, want) {
			t.Errorf("after yielding: %v, not %v", got, want)
		}
		l.release()
		wg.Wait()
		if want := []need{toBegin, toBegin, toHasten, toHasten}; !slices.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
		if l.free != 1 {
			t.Errorf("%d lanes are free", l.free)
		}
	})
}

// Whoever gives up, at whatever moment: no lane is lost, and none is made.
func TestLanesAreConserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes = 3
		l := newLanes(lanes)
		var mu sync.Mutex
		held := 0
		hold := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			if held += n; held > lanes {
				t.Errorf("%d are held", held)
			}
		}
		var wg sync.WaitGroup
		random := rand.New(rand.NewPCG(1, 2))
		for range 500 {
			n, patience, work := need(random.IntN(int(needs))), time.Duration(random.IntN(20)), time.Duration(random.IntN(5))
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
		if l.free != lanes || slices.ContainsFunc(l.waiting[:], func(q []chan struct{}) bool { return len(q) > 0 }) {
			t.Errorf("%d of %d lanes are free, waiting: %v", l.free, lanes, l.waiting)
		}
	})
}
