package lru

import (
	"math/rand/v2"
	"slices"
	"testing"
)

type cache = Cache[int, struct{}]
type entry = Entry[int, struct{}]

// model is the budget written the slow and obvious way.
type model struct {
	max, reserved int64
	whole, part   []*entry        // oldest first
	again         map[*entry]bool // those of whole that were used again
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

// idle is what may leave without anybody noticing.
func (m *model) idle() (n int64) {
	for _, e := range append(slices.Clone(m.whole), m.part...) {
		if m.held[e] == 0 {
			n += e.Size
		}
	}
	return n
}

func find(list []*entry, k int) int {
	return slices.IndexFunc(list, func(e *entry) bool { return e.Key == k })
}

// run plays ops, which any bytes are, on a Cache and on the model and compares.
func run(t *testing.T, ops []byte) {
	const max = 100
	c, m := New[int, struct{}](max), &model{max: max, held: map[*entry]int{}, again: map[*entry]bool{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	open := []int64{} // reservations
	for i := 0; i+1 < len(ops); i += 2 {
		k, n := int(ops[i+1]%16), int64(ops[i+1]%40)
		switch ops[i] % 10 {
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
			if ops[i]%10 == 1 {
				c.Commit(r, e)
				m.whole = append(m.whole, e)
			} else {
				c.Park(r, e)
				m.part = append(m.part, e)
			}
		case 3: // use
			e := c.Get(k)
			if j := find(m.whole, k); (j >= 0) != (e != nil) {
				t.Fatalf("Get(%d) = %v, model at %d", k, e, j)
			} else if j >= 0 {
				m.whole = append(slices.Delete(m.whole, j, j+1), e)
				m.again[e] = true
			}
		case 9: // use that is part of the first
			e := c.Refresh(k)
			if j := find(m.whole, k); (j >= 0) != (e != nil) {
				t.Fatalf("Refresh(%d) = %v, model at %d", k, e, j)
			} else if j >= 0 {
				m.whole = append(slices.Delete(m.whole, j, j+1), e)
			}
		case 4: // hold
			if e := c.Peek(k); e != nil {
				c.Hold(e)
				m.held[e]++
			}
		case 5: // let go of one
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
		case 6: // take an unfinished one up again
			if e := c.Unpark(k); e != nil {
				j := find(m.part, k)
				m.part = slices.Delete(m.part, j, j+1)
				m.reserved += e.Size
				open = append(open, e.Size)
			} else if find(m.part, k) >= 0 {
				t.Fatal("Unpark lost an entry")
			}
		case 7:
			if e := c.Remove(k); e != nil {
				leave(t, m, e, removed)
				m.sweep(c)
			}
		case 8: // the operator shrinks and grows the budget
			m.max = max - n
			c.SetMax(m.max)
			for _, e := range c.Shed(c.Excess()) {
				leave(t, m, e, shed)
			}
			m.sweep(c)
			if c.Excess() > 0 && (len(m.whole) > 0 || len(m.part) > 0) {
				t.Fatalf("%d too many, and yet something stayed", c.Excess())
			}
			m.max = max
			c.SetMax(max)
		}
		if c.Used() != m.used() || c.Reserved() != m.reserved || c.Used()+c.Reserved() > max || c.Len() != len(m.whole) {
			t.Fatalf("op %d: used %d (model %d), reserved %d (%d), len %d (%d)",
				i/2, c.Used(), m.used(), c.Reserved(), m.reserved, c.Len(), len(m.whole))
		}
	}
	for _, n := range open {
		c.Unreserve(n)
	}
	if c.Reserved() != 0 {
		t.Fatalf("%d bytes stay reserved", c.Reserved())
	}
}

// reason is why an entry leaves: to make room, because the budget shrank, by name.
type reason int

const (
	evicted reason = iota
	shed
	removed
)

// leave checks that e was the right one to leave, and moves it.
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
	}
	m.leaving = append(m.leaving, e)
}

// mayLeave checks that no other whole entry should have left instead of e.
func (m *model) mayLeave(t *testing.T, e *entry, why reason) {
	t.Helper()
	idle := func(e *entry) bool { return m.held[e] == 0 }
	if !idle(e) && (why == evicted || slices.ContainsFunc(m.whole, idle)) {
		t.Fatal("a held entry left before one that nobody holds")
	}
	fresh := int64(0)
	for _, o := range m.whole {
		if !m.again[o] {
			fresh += o.Size
		}
	}
	freshFirst := fresh > m.max/freshShare
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

// passOver makes the held entries of e's kind that are older count as used now.
func (m *model) passOver(e *entry) {
	var older, rest []*entry
	at := find(m.whole, e.Key)
	for i, o := range m.whole {
		if i < at && m.again[o] == m.again[e] {
			older = append(older, o)
		} else {
			rest = append(rest, o)
		}
	}
	m.whole = append(rest, older...)
}

// sweep ends those that have left and that nobody holds.
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

func TestVictimsRefusesInVain(t *testing.T) {
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

// TestScan: what was used again outlives any number of entries that are used once, which
// have their share of the budget among themselves.
func TestScan(t *testing.T) {
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
		c.Get(k)
	}
	for k := range 1000 {
		add(1000 + k)
		c.Refresh(1000 + k)
	}
	for k := range 50 {
		if c.Peek(k) == nil {
			t.Errorf("the scan pushed %d out", k)
		}
	}
	if c.Len() != 100 {
		t.Errorf("%d entries", c.Len())
	}
	// And what was used again long ago has to go for what is used now.
	for k := range 1000 {
		add(5000 + k)
		c.Get(5000 + k)
	}
	if c.Peek(0) != nil {
		t.Error("an entry that nobody uses any more stays for ever")
	}
}
