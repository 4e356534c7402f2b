package lru

import (
	"math/rand/v2"
	"slices"
	"testing"
)

type cache = Cache[int, struct{}]
type entry = Entry[int, struct{}]

// model is the same budget, written in the slow and obvious way.
type model struct {
	max, reserved int64
	whole, part   []*entry        // oldest first
	again         map[*entry]bool // those of whole that were used again
	pinned        map[*entry]bool // those of whole that are pinned
	leaving       []*entry
	held          map[*entry]int
}

func (m *model) used() (n int64) {
	for _, list := range [][]*entry{m.whole, m.part, m.leaving} {
		for _, e := range list {
			n += e.Size
		}
	}
	return n
}

// idle returns the bytes of the entries that nobody holds, and that aren't pinned.
func (m *model) idle() (n int64) {
	for _, e := range append(slices.Clone(m.whole), m.part...) {
		if m.held[e] == 0 && !m.pinned[e] {
			n += e.Size
		}
	}
	return n
}

func find(list []*entry, k int) int {
	return slices.IndexFunc(list, func(e *entry) bool { return e.Key == k })
}

// run does what ops say (any bytes are valid) to a Cache and to the model, and compares them.
func run(t *testing.T, ops []byte) {
	const max = 100
	c, m := New[int, struct{}](max), &model{max: max, held: map[*entry]int{}, again: map[*entry]bool{}, pinned: map[*entry]bool{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	open := []int64{} // reservations
	for i := 0; i+1 < len(ops); i += 2 {
		k, n := int(ops[i+1]%16), int64(ops[i+1]%40)
		switch ops[i] % 12 {
		case 0: // reserve, evicting when needed
			ok := c.Reserve(n)
			if want := m.used()+m.reserved+n <= m.max; ok != want {
				t.Fatalf("Reserve(%d) = %v, model says %v", n, ok, want)
			}
			if !ok {
				idle, need := m.idle(), m.used()+m.reserved+n-m.max
				victims := c.Victims(n, 0)
				if (len(victims) > 0) != (idle >= need) {
					t.Fatalf("%d victims, with %d idle bytes for %d", len(victims), idle, need)
				}
				for _, e := range victims {
					leave(t, m, e, evicted)
				}
				m.sweep(c)
				ok = c.Reserve(n)
			}
			if ok {
				m.reserved += n
				open = append(open, n)
			}
		case 1, 2: // commit or park a reservation
			if len(open) == 0 || find(m.whole, k) >= 0 || find(m.part, k) >= 0 {
				continue
			}
			r := open[0]
			open = open[1:]
			m.reserved -= r
			e := &entry{Key: k, Size: r - rnd.Int64N(r/2+1)}
			if ops[i]%12 == 1 {
				c.Commit(r, e)
				m.whole = append(m.whole, e)
			} else {
				c.Park(r, e)
				m.part = append(m.part, e)
			}
		case 3, 9: // use again, or a use that is part of the first
			again := ops[i]%12 == 3
			e := c.Use(k, again)
			if j := find(m.whole, k); (j >= 0) != (e != nil) {
				t.Fatalf("Use(%d, %v) = %v, model at %d", k, again, e, j)
			} else if j >= 0 {
				m.whole = append(slices.Delete(m.whole, j, j+1), e)
				if again {
					m.again[e] = true
				}
			}
		case 4: // hold
			if e := c.Peek(k); e != nil {
				c.Hold(e)
				m.held[e]++
			}
		case 5: // release one
			for e := range m.held {
				m.held[e]--
				left := slices.Contains(m.leaving, e)
				if last := c.Release(e); last != (left && m.held[e] == 0) {
					t.Fatalf("Release = %v", last)
				}
				if m.held[e] == 0 {
					delete(m.held, e)
				}
				m.sweep(c)
				break
			}
		case 6: // resume an unfinished entry
			if e := c.Unpark(k); e != nil {
				j := find(m.part, k)
				m.part = slices.Delete(m.part, j, j+1)
				m.reserved += e.Size
				open = append(open, e.Size)
			} else if find(m.part, k) >= 0 {
				t.Fatal("Unpark lost an entry")
			}
		case 7: // remove by name
			if e := c.Remove(k); e != nil {
				leave(t, m, e, removed)
				m.sweep(c)
			}
		case 8: // the operator shrinks and grows the budget
			m.max = max - n
			c.SetMax(m.max)
			for _, e := range c.Shed(0) {
				leave(t, m, e, shed)
			}
			m.sweep(c)
			if n := c.Usage().Excess; n > 0 && (len(m.whole) > len(m.pinned) || len(m.part) > 0) {
				t.Fatalf("%d bytes too many, and yet something stayed", n)
			}
			m.max = max
			c.SetMax(max)
		case 10: // pin
			if e := c.Pin(k); e != nil {
				m.pinned[e] = true
			}
		case 11: // unpin; the entry is then the most recently used
			c.Unpin(k)
			if j := find(m.whole, k); j >= 0 && m.pinned[m.whole[j]] {
				e := m.whole[j]
				delete(m.pinned, e)
				m.whole = append(slices.Delete(m.whole, j, j+1), e)
			}
		}
		m.samePins(t, c)
		if u := c.Usage(); u.Used != m.used() || u.Reserved != m.reserved || u.Used+u.Reserved > max || u.Entries != len(m.whole) {
			t.Fatalf("op %d: %+v, model used %d, reserved %d, %d entries", i/2, u, m.used(), m.reserved, len(m.whole))
		}
	}
	for _, n := range open {
		c.Unreserve(n)
	}
	if n := c.Usage().Reserved; n != 0 {
		t.Fatalf("%d bytes stay reserved", n)
	}
}

// samePins compares what is pinned.
func (m *model) samePins(t *testing.T, c *cache) {
	t.Helper()
	bytes := int64(0)
	for _, e := range c.Pinned() {
		bytes += e.Size
		if !m.pinned[e] || !c.IsPinned(e.Key) || c.Peek(e.Key) != e {
			t.Fatalf("%d is pinned", e.Key)
		}
	}
	if n := len(c.Pinned()); n != len(m.pinned) || c.Usage().Pinned != bytes {
		t.Fatalf("%d entries of %d bytes are pinned, %d by the model", n, c.Usage().Pinned, len(m.pinned))
	}
}

// reason is why an entry leaves: to make room, because the budget shrank, or by name.
type reason int

const (
	evicted reason = iota
	shed
	removed
)

// leave checks that e was the right entry to leave, and moves it to the leaving ones.
func leave(t *testing.T, m *model, e *entry, why reason) {
	t.Helper()
	if j := find(m.part, e.Key); j >= 0 && m.part[j] == e {
		m.part = slices.Delete(m.part, j, j+1)
	} else {
		j := find(m.whole, e.Key)
		if why != removed {
			if len(m.part) > 0 {
				t.Fatal("a whole entry left before an unfinished one")
			}
			m.mayLeave(t, e, why)
			if m.held[e] == 0 {
				m.passOver(e)
				j = find(m.whole, e.Key)
			}
		}
		m.whole = slices.Delete(m.whole, j, j+1)
		delete(m.pinned, e)
	}
	m.leaving = append(m.leaving, e)
}

// mayLeave checks that no other whole entry should have left instead of e.
func (m *model) mayLeave(t *testing.T, e *entry, why reason) {
	t.Helper()
	if m.pinned[e] {
		t.Fatal("a pinned entry left")
	}
	idle := func(e *entry) bool { return m.held[e] == 0 && !m.pinned[e] }
	if !idle(e) && (why == evicted || slices.ContainsFunc(m.whole, idle)) {
		t.Fatal("a held entry left before one that nobody holds")
	}
	fresh, pinned := int64(0), int64(0)
	for _, o := range m.whole {
		if m.pinned[o] {
			pinned += o.Size
		} else if !m.again[o] {
			fresh += o.Size
		}
	}
	freshFirst := fresh > (m.max-pinned)/freshShare
	for _, o := range m.whole {
		if !idle(o) || o == e {
			continue
		}
		switch {
		case m.again[o] == m.again[e] && find(m.whole, o.Key) < find(m.whole, e.Key):
			t.Fatalf("%d left before one of its kind that was used longer ago", e.Key)
		case m.again[o] != m.again[e] && m.again[e] == freshFirst:
			t.Fatalf("%d left, of the wrong kind: %d bytes of %d are fresh", e.Key, fresh, m.max)
		}
	}
}

// passOver makes the older held entries of e's segment the most recently used: being read is
// a use.
func (m *model) passOver(e *entry) {
	var older, rest []*entry
	at := find(m.whole, e.Key)
	for i, o := range m.whole {
		if i < at && m.again[o] == m.again[e] && !m.pinned[o] {
			older = append(older, o)
		} else {
			rest = append(rest, o)
		}
	}
	m.whole = append(rest, older...)
}

// sweep removes those that have left and that nobody holds.
func (m *model) sweep(c *cache) {
	m.leaving = slices.DeleteFunc(m.leaving, func(e *entry) bool {
		if m.held[e] > 0 {
			return false
		}
		c.Removed(e)
		return true
	})
}

func FuzzBudget(f *testing.F) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		ops := make([]byte, 400)
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(run)
}

// TestNothingLeavesInVain: there are no victims when all of them would not be enough.
func TestNothingLeavesInVain(t *testing.T) {
	c := New[int, struct{}](10)
	for k := range 2 {
		c.Reserve(4)
		c.Commit(4, &entry{Key: k, Size: 4})
	}
	c.Hold(c.Peek(0))
	if v := c.Victims(8, 0); v != nil {
		t.Errorf("Victims(8) = %d entries although only 6 bytes can be had", len(v))
	}
	if v := c.Victims(11, 0); v != nil {
		t.Error("victims for something larger than the budget")
	}
	if v := c.Victims(6, 0); len(v) != 1 || v[0].Key != 1 {
		t.Errorf("Victims(6) = %v", v)
	}
}

func BenchmarkEvict(b *testing.B) {
	c := New[int, struct{}](1 << 20)
	for k := range 1 << 20 {
		c.Load(&entry{Key: k, Size: 1}, k%2 == 0)
	}
	k := 1 << 20
	for b.Loop() {
		for _, e := range c.Victims(1, 0) {
			c.Removed(e)
		}
		c.Reserve(1)
		c.Commit(1, &entry{Key: k, Size: 1})
		k++
	}
}

// TestEntriesUsedOnceDoNotEvictProvenOnes: entries that were used again stay while any number
// of entries that are used once comes in, which share the rest of the budget. But those that
// nobody uses any more leave in the end.
func TestEntriesUsedOnceDoNotEvictProvenOnes(t *testing.T) {
	c := New[int, struct{}](100)
	add := func(k int) {
		for _, e := range c.Victims(1, 0) {
			c.Removed(e)
		}
		c.Reserve(1)
		c.Commit(1, &entry{Key: k, Size: 1})
	}
	for k := range 50 {
		add(k)
		c.Use(k, true)
	}
	for k := range 1000 {
		add(1000 + k)
		c.Use(1000+k, false)
	}
	for k := range 50 {
		if c.Peek(k) == nil {
			t.Errorf("%d was evicted", k)
		}
	}
	if n := c.Usage().Entries; n != 100 {
		t.Errorf("%d entries", n)
	}
	// Entries that were used again long ago leave for those that are used now.
	for k := range 1000 {
		add(5000 + k)
		c.Use(5000+k, true)
	}
	if c.Peek(0) != nil {
		t.Error("an entry that nobody uses any more stays for ever")
	}
}
