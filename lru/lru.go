// Package lru decides which entries leave so that the rest stays within a byte budget.
//
// It only computes: no I/O, no clock, no locks, no metrics. It names victims. The caller
// unlinks their files and then calls Removed. Until then their bytes count, so that the disk
// never holds more than is accounted for.
//
// The least recently used entry leaves first, in two segments: entries that came in and were
// not used again leave before the others while they fill more than a share of the budget. So
// a job that pulls a thousand images once does not evict those that are deployed daily
// (docs/design/eviction.md has the figures).
//
// The order of use is kept by hashicorp's simplelru; this package adds the budget.
package lru

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Cache is a byte budget and, in order of use, the entries that fill it.
//
// Used + Reserved ≤ Max holds after every call, with two exceptions that only the operator
// causes: Load at the start and SetMax may exceed Max. Then Reserve refuses, and
// Usage.Excess says how much has to leave.
//
// Pinned entries never leave but by Remove. The caller decides how many bytes may be pinned.
//
// Not safe for concurrent use.
type Cache[K comparable, V any] struct {
	max, used, reserved int64
	leaving             int64 // the part of used that is in no segment any more and not yet Removed

	fresh, proven segment[K, V] // whole entries: used once, and used again
	partial       segment[K, V] // unfinished entries that nobody works on; they leave first
	pinned        segment[K, V] // whole entries that don't leave
}

// freshShare is the share of what isn't pinned of the budget, as one part of so many, that fresh
// entries may fill before they leave ahead of the proven ones. With a tenth, a new image has too little time
// to be used again. With a half, a job that pulls many images once evicts too much.
const freshShare = 4

// segment is a list of entries in order of use.
type segment[K comparable, V any] struct {
	list      *simplelru.LRU[K, *Entry[K, V]]
	bytes     int64
	idle      int   // number of entries that nobody holds
	idleBytes int64 // their sizes
}

// Entry is one thing that takes room. Key, Size and Value belong to the caller, but Key and
// Size must not change while the entry is in a cache.
type Entry[K comparable, V any] struct {
	Key   K
	Size  int64 // bytes
	Value V

	holders  int32
	place    place
	unpinned place // of a pinned entry: the segment that it goes back to
}

// place says in which segment an entry is.
type place uint8

const (
	nowhere place = iota // not in the cache, or leaving: counted until Removed
	inFresh
	inProven
	inPartial
	inPinned
	inWork // unfinished and reserved again, so in no segment
)

// New returns an empty cache with a budget of max bytes.
func New[K comparable, V any](max int64) *Cache[K, V] {
	c := &Cache[K, V]{max: max}
	// The lists have no limit of their own: the budget is in bytes, not in entries.
	c.fresh.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.proven.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.partial.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.pinned.list, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	return c
}

// Usage is how much of the budget is in use. All but Entries are bytes.
type Usage struct {
	Max      int64 // the budget
	Used     int64 // of all entries whose files may still be on disk
	Reserved int64 // promised to entries that are coming in
	Leaving  int64 // the part of Used that goes when the readers of removed entries close them
	Excess   int64 // what is beyond the budget even when all that is leaving has gone
	Idle     int64 // the part of Used that nobody holds, and that can leave at once
	Pinned   int64 // the part of Used that never leaves by itself
	Entries  int   // number of whole entries
}

// Usage returns how much of the budget is in use.
func (c *Cache[K, V]) Usage() Usage {
	return Usage{
		Max:      c.max,
		Used:     c.used,
		Reserved: c.reserved,
		Leaving:  c.leaving,
		Excess:   max(0, c.used-c.leaving+c.reserved-c.max),
		Idle:     c.partial.idleBytes + c.fresh.idleBytes + c.proven.idleBytes,
		Pinned:   c.pinned.bytes,
		Entries:  c.fresh.list.Len() + c.proven.list.Len() + c.pinned.list.Len(),
	}
}

// SetMax changes the budget. When it shrinks, call Shed.
func (c *Cache[K, V]) SetMax(max int64) { c.max = max }

// Reserve promises n bytes and reports whether there was room. It evicts nothing: when it
// refuses, ask Victims.
func (c *Cache[K, V]) Reserve(n int64) bool {
	if n < 0 || n > c.max || c.used+c.reserved > c.max-n {
		return false
	}
	c.reserved += n
	return true
}

// Unreserve takes back n bytes of what Reserve promised.
func (c *Cache[K, V]) Unreserve(n int64) { c.reserved -= n }

// Commit turns a reservation of n bytes into the whole entry e, fresh and most recently used.
// e.Size must be at most n; the rest of the reservation is released.
func (c *Cache[K, V]) Commit(n int64, e *Entry[K, V]) {
	c.reserved -= n
	// The caller has replaced the file, so the bytes of an older entry are gone already.
	if old := c.Peek(e.Key); old != nil {
		c.drop(old)
		c.Removed(old)
	}
	c.Load(e, false)
}

// Park turns a reservation of n bytes into the unfinished entry e that nobody works on.
func (c *Cache[K, V]) Park(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.LoadPartial(e)
}

// Unpark takes an unfinished entry out, so that somebody works on it again: its bytes become
// reserved. It returns nil when there is none.
func (c *Cache[K, V]) Unpark(k K) *Entry[K, V] {
	e, ok := c.partial.list.Peek(k)
	if !ok {
		return nil
	}
	c.drop(e)
	c.Removed(e)
	e.place = inWork
	c.reserved += e.Size
	return e
}

// Discard turns a reservation of n bytes into the entry e that leaves at once: its file is
// unlinked, and it counts until Removed.
func (c *Cache[K, V]) Discard(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.used += e.Size
	c.leaving += e.Size
}

// Load adds an entry that is on disk already as the most recently used one; again says
// whether it was used again. Call it in order of last use, and never twice for a key: at a
// start a million entries are loaded, and to look for each first would take as long again.
func (c *Cache[K, V]) Load(e *Entry[K, V], again bool) {
	c.used += e.Size
	e.place = inFresh
	if again {
		e.place = inProven
	}
	c.segment(e).add(e)
}

// LoadPartial adds an unfinished entry that is on disk already. It replaces an older one.
func (c *Cache[K, V]) LoadPartial(e *Entry[K, V]) {
	if old, ok := c.partial.list.Peek(e.Key); ok {
		c.drop(old)
		c.Removed(old)
	}
	c.used += e.Size
	e.place = inPartial
	c.partial.add(e)
}

// segment returns the segment that e is in, or nil.
func (c *Cache[K, V]) segment(e *Entry[K, V]) *segment[K, V] {
	switch e.place {
	case inFresh:
		return &c.fresh
	case inProven:
		return &c.proven
	case inPartial:
		return &c.partial
	case inPinned:
		return &c.pinned
	}
	return nil
}

// Pin keeps the whole entry of k from leaving, and returns it, or nil when there is none.
func (c *Cache[K, V]) Pin(k K) *Entry[K, V] {
	e := c.Peek(k)
	if e != nil && e.place != inPinned {
		home := e.place
		c.move(e, inPinned)
		e.unpinned = home
	}
	return e
}

// Unpin takes back Pin, if k is pinned. The entry becomes the most recently used of the segment
// that it was in, or of that to which its uses since would have taken it.
func (c *Cache[K, V]) Unpin(k K) {
	if e, ok := c.pinned.list.Peek(k); ok {
		c.move(e, e.unpinned)
	}
}

// IsPinned reports whether k is pinned.
func (c *Cache[K, V]) IsPinned(k K) bool { return c.pinned.list.Contains(k) }

// Pinned returns the pinned entries.
func (c *Cache[K, V]) Pinned() []*Entry[K, V] { return c.pinned.list.Values() }

// move makes e the most recently used entry of another segment.
func (c *Cache[K, V]) move(e *Entry[K, V], to place) {
	c.segment(e).remove(e)
	e.place = to
	c.segment(e).add(e)
}

func (s *segment[K, V]) add(e *Entry[K, V]) {
	s.list.Add(e.Key, e)
	s.bytes += e.Size
	if e.holders == 0 {
		s.countIdle(e, 1)
	}
}

func (s *segment[K, V]) remove(e *Entry[K, V]) {
	s.list.Remove(e.Key)
	s.bytes -= e.Size
	if e.holders == 0 {
		s.countIdle(e, -1)
	}
}

// countIdle adds e to the idle entries (sign 1) or takes it from them (sign -1).
func (s *segment[K, V]) countIdle(e *Entry[K, V], sign int) {
	s.idle += sign
	s.idleBytes += int64(sign) * e.Size
}

// Use makes the whole entry of k the most recently used of its segment and returns it, or nil
// when there is none. again says that this is another use than the one that brought it in:
// from then on the entry counts as proven.
func (c *Cache[K, V]) Use(k K, again bool) *Entry[K, V] {
	e := c.Peek(k)
	if e == nil {
		return nil
	}
	switch {
	case !again || e.place == inProven:
	case e.place == inPinned:
		e.unpinned = inProven
	default:
		c.move(e, inProven)
	}
	c.segment(e).list.Get(k)
	return e
}

// Peek returns the whole entry of k, or nil. It is not a use.
func (c *Cache[K, V]) Peek(k K) *Entry[K, V] {
	e, ok := c.proven.list.Peek(k)
	if !ok {
		e, ok = c.fresh.list.Peek(k)
	}
	if !ok {
		e, _ = c.pinned.list.Peek(k)
	}
	return e
}

// HasPartial reports whether k is an unfinished entry that nobody works on.
func (c *Cache[K, V]) HasPartial(k K) bool { return c.partial.list.Contains(k) }

// Oldest returns the least recently used fresh entry and the least recently used proven one,
// without those that are pinned. Either may be nil.
func (c *Cache[K, V]) Oldest() (fresh, proven *Entry[K, V]) {
	_, fresh, _ = c.fresh.list.GetOldest()
	_, proven, _ = c.proven.list.GetOldest()
	return fresh, proven
}

// All calls f for every whole entry.
func (c *Cache[K, V]) All(f func(*Entry[K, V])) {
	for _, s := range []*segment[K, V]{&c.fresh, &c.proven, &c.pinned} {
		for _, e := range s.list.Values() {
			f(e)
		}
	}
}

// Hold says that somebody reads e. A held entry leaves only when nothing else can, and its
// bytes count until the last holder has released it.
func (c *Cache[K, V]) Hold(e *Entry[K, V]) {
	if s := c.segment(e); s != nil && e.holders == 0 {
		s.countIdle(e, -1)
	}
	e.holders++
}

// Release ends one Hold. It reports whether e has left the cache in the meantime and this was
// its last holder: then the caller calls Removed.
func (c *Cache[K, V]) Release(e *Entry[K, V]) (last bool) {
	e.holders--
	if e.holders > 0 {
		return false
	}
	if s := c.segment(e); s != nil {
		s.countIdle(e, 1)
	}
	return e.place == nowhere
}

// Held returns how many hold e, whose bytes come back when all have released it, and whether e
// has left the cache already. It returns 0 when e is unfinished and reserved again: its bytes
// don't come back then.
func (c *Cache[K, V]) Held(e *Entry[K, V]) (holders int, leaving bool) {
	if e.place == inWork {
		return 0, false
	}
	return int(e.holders), e.place == nowhere
}

// Victims picks entries that make room for n more bytes, of at least atLeast bytes in all:
// unfinished ones first, then the least recently used that nobody holds, fresh ones before
// the others while they fill more than their share. It returns nil when all of them would not
// be enough, so that nothing leaves in vain.
//
// The entries it returns are out of the cache, and count until Removed.
func (c *Cache[K, V]) Victims(n, atLeast int64) []*Entry[K, V] {
	need := max(c.used+c.reserved+n-c.max, atLeast)
	if n > c.max || need > c.Usage().Idle {
		return nil
	}
	return c.take(need, false)
}

// Shed picks entries that bring the cache back within its budget, of at least atLeast bytes
// in all. It picks as Victims does, and held entries when there are no others: their room
// comes back when their holders release them. Pinned ones stay.
func (c *Cache[K, V]) Shed(atLeast int64) []*Entry[K, V] {
	return c.take(max(c.Usage().Excess, atLeast), true)
}

// take drops entries of at least need bytes and returns them.
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

// next returns the entry that leaves next, or nil.
func (c *Cache[K, V]) next(heldToo bool) *Entry[K, V] {
	if c.partial.idle > 0 {
		return c.partial.oldest()
	}
	first, second := &c.proven, &c.fresh
	if c.fresh.bytes > (c.max-c.pinned.bytes)/freshShare {
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

// oldest returns the least recently used idle entry. There must be one.
func (s *segment[K, V]) oldest() *Entry[K, V] {
	for {
		_, e, _ := s.list.GetOldest()
		if e.holders == 0 {
			return e
		}
		s.list.Get(e.Key) // it is being read, which is a use: make it the most recently used
	}
}

// Remove takes the entry of k, whole or unfinished, pinned or not, out and returns it, or nil when
// there is none. It counts until Removed.
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

// drop takes e out of its segment; it still counts as used.
func (c *Cache[K, V]) drop(e *Entry[K, V]) {
	c.segment(e).remove(e)
	e.place = nowhere
	c.leaving += e.Size
}

// Removed says that the file of an entry that has left is unlinked and nobody reads it.
func (c *Cache[K, V]) Removed(e *Entry[K, V]) {
	c.used -= e.Size
	c.leaving -= e.Size
}
