package slots

import (
	"context"
	"maps"
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
		l := New(1, 0)
		if !l.TryAcquire("", 0) || l.TryAcquire("", 0) {
			t.Fatal("one slot is one")
		}
		var mu sync.Mutex
		var got []Priority
		asked := []Priority{Later, Urgent, Later, Urgent}
		var wg sync.WaitGroup
		for _, n := range asked {
			wg.Go(func() {
				if err := l.Acquire(t.Context(), "", n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, n)
				mu.Unlock()
				l.Release("")
			})
			synctest.Wait()
		}
		// A holder lends its slot to more urgent waiters; a less urgent one doesn't get it.
		if !l.Yield(t.Context(), "", Urgent) {
			t.Error("not given back")
		}
		if want := []Priority{Urgent, Urgent}; !slices.Equal(got, want) {
			t.Errorf("after yielding: %v, not %v", got, want)
		}
		l.Release("")
		wg.Wait()
		if want := []Priority{Urgent, Urgent, Later, Later}; !slices.Equal(got, want) {
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
		l := New(slots, 100)
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
			client := []string{"", "a", "b", "c"}[random.IntN(4)]
			n, patience, work := Priority(random.IntN(int(priorities))), time.Duration(random.IntN(20)), time.Duration(random.IntN(5))
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience*time.Millisecond)
				defer cancel()
				if l.Acquire(ctx, client, n) != nil {
					return
				}
				hold(1)
				time.Sleep(work * time.Millisecond)
				hold(-1)
				if l.Yield(ctx, client, n) {
					l.Release(client)
				}
			})
		}
		wg.Wait()
		empty := func(l line) bool { return len(l.turns)+len(l.of) == 0 }
		if l.free != slots || len(l.held) > 0 || l.waiting != 0 || !empty(l.lines[Urgent]) || !empty(l.lines[Later]) {
			t.Errorf("%d of %d slots are free: %+v", l.free, slots, l)
		}
	})
}

// TestClientsTakeTurns: a client that wants many slots delays another by one turn.
func TestClientsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(2, 0)
		var mu sync.Mutex
		var got []string
		var wg sync.WaitGroup
		want := func(client string, n int) {
			for range n {
				wg.Go(func() {
					if err := l.Acquire(t.Context(), client, Urgent); err != nil {
						t.Error(err)
					}
					mu.Lock()
					got = append(got, client)
					mu.Unlock()
					time.Sleep(time.Second)
					l.Release(client)
				})
			}
			synctest.Wait()
		}
		want("many", 20)
		want("one", 1)
		want("few", 2)
		want("", 1)
		wg.Wait()
		// Two hold the slots when the others come.
		if first := got[2:7]; len(got) != 24 || slices.Index(first, "one") < 0 || slices.Index(first, "few") < 0 || slices.Index(first, "") < 0 {
			t.Errorf("the order is %q", got)
		}
	})
}

// TestNextClientFindsAFreeSlot: a client leaves slots free for the next, though nobody waits
// for them; who has no name may hold all.
func TestNextClientFindsAFreeSlot(t *testing.T) {
	for n := 1; n <= 64; n++ {
		l := New(n, 0)
		have := 0
		for l.TryAcquire("a", 0) {
			have++
		}
		if n > 3 && (have < n/2 || n-have < n/4) || have == 0 {
			t.Errorf("one client has %d of %d", have, n)
		}
		for c := range n / 8 {
			if !l.TryAcquire(string(rune('b'+c)), 0) {
				t.Errorf("client %d finds none of %d free", c+2, n)
			}
		}
		for l.TryAcquire("", 0) {
		}
		if l.free != 0 {
			t.Errorf("%d of %d stay free", l.free, n)
		}
	}
}

// TestLongestLineGivesWay: when too many wait, the client with the most waiters loses one to a
// client that has fewer, and gets no further ones.
func TestLongestLineGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		l := New(1, 10)
		l.TryAcquire("", 0)
		full := map[string]int{}
		var mu sync.Mutex
		wait := func(client string, n int) {
			for range n {
				go func() {
					if l.Acquire(ctx, client, Urgent) == ErrFull {
						mu.Lock()
						full[client]++
						mu.Unlock()
					}
				}()
				synctest.Wait()
			}
		}
		wait("a", 12)
		if full["a"] != 2 {
			t.Errorf("%v", full)
		}
		wait("b", 7)
		if full["a"] != 7 || full["b"] != 2 || l.waiting != 10 {
			t.Errorf("%v, %d wait", full, l.waiting)
		}
	})
}

// TestOnlyWhoLacksItsShareTakesFromOthers: a client that has its share of the slots wants no slot of
// others.
func TestOnlyWhoLacksItsShareTakesFromOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		s := New(5, 0)
		ask := func(client string, p Priority) {
			wg.Go(func() {
				if s.Acquire(ctx, client, p) == nil {
					<-ctx.Done()
				}
			})
			synctest.Wait()
		}
		check := func(when string, wantAnyone int, wantOwn map[string]int) {
			t.Helper()
			if anyone, own := s.Lacking(Urgent); anyone != wantAnyone || !maps.Equal(own, wantOwn) {
				t.Errorf("%s: %d, %v", when, anyone, own)
			}
		}
		check("nobody waits", 0, map[string]int{})
		for range 6 {
			ask("a", Urgent) // it gets four: the last one with two free
		}
		check("one slot is free", 0, map[string]int{"a": 2})
		ask("b", Urgent)
		check("all are taken", 0, map[string]int{"a": 2})
		for _, client := range []string{"b", "b", "c", "c", "c", "", "", ""} {
			ask(client, Urgent)
		}
		ask("d", Later)
		check("others wait", 6, map[string]int{"a": 2, "b": 1, "c": 1}) // b has one and may have two
	})
}
