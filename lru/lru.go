// Package lru decides who leaves so that the rest stays within a byte budget.
//
// It is arithmetic: no I/O, no clock, no locks, no metrics. It names victims; the
// caller unlinks their files and says when they are gone. Until then their bytes
// count, so that the disk never holds more than the books say.
//
// Who leaves is who was used the longest ago, in two segments: what has come in and was
// not used again later leaves first, while it is more than a share of the budget. So a
// job that pulls a thousand images once does not push out those that are deployed daily
// (docs/eviction.md has the figures).
//
// Recency comes from hashicorp's simplelru; what is here is the budget around it.
package lru

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Cache is a byte budget and the order of use of what fills it.
//
// Used + Reserved ≤ Max holds after every call, with two exceptions that only the
// operator causes: Load at start and SetMax may find more than Max; then Reserve
// refuses and Excess says how much has to leave.
//
// Not safe for concurrent use.
type Cache[K comparable, V any] struct {
	max, used, reserved int64
	leaving             int64 // the part of used that is out of the lists and not Removed

	fresh, proven segment[K, V] // committed entries: used once, and used again
	partial       segment[K, V] // unfinished ones that nobody works on: they leave before any whole entry
}

// freshShare is how much of the budget, one part in so many, fresh entries may fill before
// they leave before the proven ones. With a tenth, a new image has too little time to be
// used again; with half, a scan takes too much.
const freshShare = 4

// segment is entries in order of use.
type segment[K comparable, V any] struct {
	list      *simplelru.LRU[K, *Entry[K, V]]
	bytes     int64
	idle      int   // entries that nobody holds
	idleBytes int64 // and their sizes
}

// Entry is one thing that takes room. Its fields belong to the caller, but Size
// must not change.
type Entry[K comparable, V any] struct {
	Key   K
	Size  int64 // bytes
	Value V

	holders int32
	place   place
}

type place uint8

const (
	out      place = iota // not in the cache, or leaving: counted until Removed
	inFresh               // committed
	inProven              // committed, and used again
	inPart                // idle and unfinished
	inHand                // unfinished, and reserved again
)

// New returns an empty cache with a budget of max bytes.
func New[K comparable, V any](max int64) *Cache[K, V] {
	c := &Cache[K, V]{max: max}
	// The budget bounds the lists, not a number of entries.
	c.fresh.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.proven.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.partial.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	return c
}

// Max returns the budget, Used the bytes of all entries that aren't gone yet,
// Reserved the bytes promised to what is on its way in.
func (c *Cache[K, V]) Max() int64      { return c.max }
func (c *Cache[K, V]) Used() int64     { return c.used }
func (c *Cache[K, V]) Reserved() int64 { return c.reserved }

// Len returns the number of whole entries.
func (c *Cache[K, V]) Len() int { return c.fresh.list.Len() + c.proven.list.Len() }

// SetMax changes the budget. See Excess.
func (c *Cache[K, V]) SetMax(max int64) { c.max = max }

// Excess returns by how many bytes the budget is exceeded when all that is leaving
// has gone; 0 when it isn't.
func (c *Cache[K, V]) Excess() int64 { return max(0, c.used-c.leaving+c.reserved-c.max) }

// Reserve promises n bytes and reports whether there was room. It evicts nothing:
// ask Victims when it refuses.
func (c *Cache[K, V]) Reserve(n int64) bool {
	if n < 0 || n > c.max || c.used+c.reserved > c.max-n {
		return false
	}
	c.reserved += n
	return true
}

// Unreserve takes back n bytes of what Reserve promised.
func (c *Cache[K, V]) Unreserve(n int64) { c.reserved -= n }

// Commit turns the reservation of n bytes into a whole entry, fresh and most recently
// used. e.Size must be at most n; the rest of the reservation is released.
func (c *Cache[K, V]) Commit(n int64, e *Entry[K, V]) {
	c.reserved -= n
	// The caller replaces the file, so the old one's bytes are gone with this call.
	if old := c.Peek(e.Key); old != nil {
		c.drop(old)
		c.Removed(old)
	}
	c.Load(e, false)
}

// Park turns the reservation of n bytes into an unfinished entry that nobody works on.
func (c *Cache[K, V]) Park(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.LoadPartial(e)
}

// Unpark takes an unfinished entry out again, to be worked on: its bytes become
// reserved. It returns nil when there is none.
func (c *Cache[K, V]) Unpark(k K) *Entry[K, V] {
	e, ok := c.partial.list.Peek(k)
	if !ok {
		return nil
	}
	c.drop(e)
	c.Removed(e)
	e.place = inHand
	c.reserved += e.Size
	return e
}

// Discard turns the reservation of n bytes into an entry that has left already: its file
// is unlinked, and counts until Removed.
func (c *Cache[K, V]) Discard(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.used += e.Size
	c.leaving += e.Size
}

// Load adds an entry that is on disk already, as the most recently used one, which has
// been used again or not. Call it in order of last use, and with no key twice: a million
// of them are loaded at a start, and looking for each first would take as long again.
func (c *Cache[K, V]) Load(e *Entry[K, V], usedAgain bool) {
	c.used += e.Size
	e.place = inFresh
	if usedAgain {
		e.place = inProven
	}
	c.segment(e).add(e)
}

// LoadPartial is Load for an unfinished entry.
func (c *Cache[K, V]) LoadPartial(e *Entry[K, V]) {
	if old, ok := c.partial.list.Peek(e.Key); ok {
		c.drop(old)
		c.Removed(old)
	}
	c.used += e.Size
	e.place = inPart
	c.partial.add(e)
}

// segment returns the one that e is in, or nil.
func (c *Cache[K, V]) segment(e *Entry[K, V]) *segment[K, V] {
	switch e.place {
	case inFresh:
		return &c.fresh
	case inProven:
		return &c.proven
	case inPart:
		return &c.partial
	}
	return nil
}

func (s *segment[K, V]) add(e *Entry[K, V]) {
	s.list.Add(e.Key, e)
	s.bytes += e.Size
	if e.holders == 0 {
		s.rest(e, 1)
	}
}

func (s *segment[K, V]) remove(e *Entry[K, V]) {
	s.list.Remove(e.Key)
	s.bytes -= e.Size
	if e.holders == 0 {
		s.rest(e, -1)
	}
}

// rest counts e among the idle, or, with -1, no more.
func (s *segment[K, V]) rest(e *Entry[K, V], sign int) {
	s.idle += sign
	s.idleBytes += int64(sign) * e.Size
}

// Get returns the whole entry of k and makes it the most recently used, or nil. It counts
// as used again from then on.
func (c *Cache[K, V]) Get(k K) *Entry[K, V] {
	if e, ok := c.fresh.list.Peek(k); ok {
		c.fresh.remove(e)
		e.place = inProven
		c.proven.add(e)
		return e
	}
	e, _ := c.proven.list.Get(k)
	return e
}

// Refresh is Get for a use that is part of the one that brought k in: it makes k the most
// recently used of its kind.
func (c *Cache[K, V]) Refresh(k K) *Entry[K, V] {
	e, ok := c.fresh.list.Get(k)
	if !ok {
		e, _ = c.proven.list.Get(k)
	}
	return e
}

// Peek is Get without the use.
func (c *Cache[K, V]) Peek(k K) *Entry[K, V] {
	e, ok := c.proven.list.Peek(k)
	if !ok {
		e, _ = c.fresh.list.Peek(k)
	}
	return e
}

// HasPartial reports whether k is an idle unfinished entry.
func (c *Cache[K, V]) HasPartial(k K) bool { return c.partial.list.Contains(k) }

// Oldest returns the entries that were used the longest ago: among those that are fresh
// and among those that were used again. Either may be nil.
func (c *Cache[K, V]) Oldest() (fresh, again *Entry[K, V]) {
	_, fresh, _ = c.fresh.list.GetOldest()
	_, again, _ = c.proven.list.GetOldest()
	return fresh, again
}

// All calls f for every whole entry.
func (c *Cache[K, V]) All(f func(*Entry[K, V])) {
	for _, s := range []*segment[K, V]{&c.fresh, &c.proven} {
		for _, e := range s.list.Values() {
			f(e)
		}
	}
}

// Hold says that e is being read. A held entry leaves only when nothing else can,
// and its bytes count until the last holder has let go.
func (c *Cache[K, V]) Hold(e *Entry[K, V]) {
	if s := c.segment(e); s != nil && e.holders == 0 {
		s.rest(e, -1)
	}
	e.holders++
}

// Release ends one Hold. It reports whether e has left the cache meanwhile and this
// was its last holder: then the caller calls Removed.
func (c *Cache[K, V]) Release(e *Entry[K, V]) (last bool) {
	e.holders--
	if e.holders > 0 {
		return false
	}
	if s := c.segment(e); s != nil {
		s.rest(e, 1)
	}
	return e.place == out
}

// Held reports whether somebody holds e.
func (e *Entry[K, V]) Held() bool { return e.holders > 0 }

// Victims picks entries that make room for n more bytes, and at least atLeast bytes
// of them: unfinished ones first, then those that were used the longest ago and that
// nobody holds, fresh ones before the others while they are more than their share. It
// returns nil when that would not be enough, for then nothing should leave in vain.
//
// What it returns is out of the cache, and counted until Removed.
func (c *Cache[K, V]) Victims(n, atLeast int64) []*Entry[K, V] {
	need := max(c.used+c.reserved+n-c.max, atLeast)
	if n > c.max || need > c.partial.idleBytes+c.fresh.idleBytes+c.proven.idleBytes {
		return nil
	}
	return c.take(need, false)
}

// Shed picks entries of at least n bytes in all, as Victims does, and held ones when
// nothing else is left: their room comes back when their holders let go.
func (c *Cache[K, V]) Shed(n int64) []*Entry[K, V] { return c.take(n, true) }

func (c *Cache[K, V]) take(need int64, heldToo bool) (victims []*Entry[K, V]) {
	for need > 0 {
		e := c.next(heldToo)
		if e == nil {
			break
		}
		c.drop(e)
		need -= e.Size
		victims = append(victims, e)
	}
	return victims
}

func (c *Cache[K, V]) next(heldToo bool) *Entry[K, V] {
	if c.partial.idle > 0 {
		return c.partial.oldest()
	}
	first, second := &c.proven, &c.fresh
	if c.fresh.bytes > c.max/freshShare {
		first, second = second, first
	}
	for _, s := range []*segment[K, V]{first, second} {
		if s.idle > 0 {
			return s.oldest()
		}
	}
	if !heldToo {
		return nil
	}
	for _, s := range []*segment[K, V]{&c.partial, first, second} {
		if _, e, ok := s.list.GetOldest(); ok {
			return e
		}
	}
	return nil
}

// oldest returns the idle entry that was used the longest ago. There must be one.
func (s *segment[K, V]) oldest() *Entry[K, V] {
	for {
		_, e, _ := s.list.GetOldest()
		if e.holders == 0 {
			return e
		}
		s.list.Get(e.Key) // being read is being used: it moves to the young end
	}
}

// Remove takes the entry of k out, whole or unfinished, for whatever reason, and
// returns it, or nil. It counts until Removed.
func (c *Cache[K, V]) Remove(k K) *Entry[K, V] {
	e := c.Peek(k)
	if e == nil {
		var ok bool
		if e, ok = c.partial.list.Peek(k); !ok {
			return nil
		}
	}
	c.drop(e)
	return e
}

// drop takes e off its list; its bytes stay in used.
func (c *Cache[K, V]) drop(e *Entry[K, V]) {
	c.segment(e).remove(e)
	e.place = out
	c.leaving += e.Size
}

// Removed says that the file of an entry that has left is unlinked and nobody reads it.
func (c *Cache[K, V]) Removed(e *Entry[K, V]) {
	c.used -= e.Size
	c.leaving -= e.Size
}
