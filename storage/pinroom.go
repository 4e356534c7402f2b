package storage

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// pinned is what decide has found.
type pinned struct {
	states  []PinState
	protect map[digest.Digest]int64 // bytes of what is protected, here or not; -1: what belongs to a pin and isn't
	taken   int64                   // the sum of those
	before  int64                   // taken, without the last pin
	more    int64                   // what the last pin would take besides
	needs   int64                   // what all pins would take
}

// decide finds out what each of the pins covers, and which of them can be protected.
// Errors: that the index or a manifest can't be read.
func (p *pins) decide(list []Pin) (*pinned, error) {
	limit := pinnable(p.store.room.budget())
	f := &pinned{protect: map[digest.Digest]int64{}}
	all := map[digest.Digest]bool{}
	for _, pin := range list {
		if pin.Tag != "" {
			t, err := p.store.repos.tag(pin.Repository, pin.Tag)
			if err == nil && p.store.room.state(t.Digest).manifest {
				pin.Digest = t.Digest
			}
		}
		c, err := p.store.closure(pin.Repository, pin.Digest)
		if err != nil {
			return nil, err
		}
		f.add(pin, c, limit, all)
	}
	return f, nil
}

// add finds out whether a pin, which covers c, can be protected beside those before it. all is what
// those cover.
func (f *pinned) add(pin Pin, c *closure, limit int64, all map[digest.Digest]bool) {
	st, more := PinState{Pin: pin}, int64(0)
	parts := maps.Clone(c.cached)
	maps.Copy(parts, c.missing)
	for d, n := range parts {
		if _, ok := c.cached[d]; ok {
			st.Cached += n
		} else {
			st.Missing = addUp(st.Missing, n)
		}
		if !all[d] {
			all[d] = true
			f.needs = addUp(f.needs, n)
		}
		if f.protect[d] <= 0 {
			more = addUp(more, n)
		}
	}
	st.Protected = st.Cached > 0 && more <= limit-f.taken
	f.before, f.more = f.taken, more
	f.states = append(f.states, st)
	if !st.Protected { // but its manifests, so that what it would take is known for as long as it is pinned
		maps.DeleteFunc(parts, func(d digest.Digest, _ int64) bool { return !slices.Contains(c.manifests, d) })
	}
	for d, n := range parts {
		if f.protect[d] <= 0 && n <= limit-f.taken {
			f.protect[d] = n
			f.taken += n
		}
	}
	for d := range c.idle {
		if f.protect[d] == 0 {
			f.protect[d] = -1
		}
	}
}

// shortage says which pins can't be protected with this budget; nil if all are.
func (f *pinned) shortage(budget int64) *Shortage {
	var s *Shortage
	for _, st := range f.states {
		switch {
		case st.Protected || st.Cached == 0:
		case s == nil:
			s = &Shortage{Kind: PinsTooLarge, Image: st.Reference(), Has: pinnable(budget), Needs: enoughFor(f.needs), Pinned: f.needs}
		default:
			s.More++
		}
	}
	return s
}

// enoughFor returns a budget, in whole MiB, of which pins may take that many bytes.
func enoughFor(pins int64) int64 {
	if pins > 1<<60 { // no disk is as large; it is what a manifest claims
		return pins
	}
	return ((pins+pinShare-1)/pinShare*100 + 1<<20 - 1) >> 20 << 20
}

// addUp adds two sizes. The sum of what manifests claim may be too large for an int64.
func addUp(a, b int64) int64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<63 - 1
}
