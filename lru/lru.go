// Package lru decides who leaves so that the rest stays within a byte budget.
//
// It is arithmetic: no I/O, no clock, no locks, no metrics. It names victims; the
// caller unlinks their files and says when they are gone. Until then their bytes
// count, so that the disk never holds more than the books say.
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
	leaving             int64 // the part of used that is out of the lists and not Gone

	whole   *simplelru.LRU[K, *Entry[K, V]] // committed entries, oldest first to leave
	partial *simplelru.LRU[K, *Entry[K, V]] // idle unfinished ones: they leave before any whole entry

	idle      int   // entries in whole that nobody holds
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
	out     place = iota // not in the cache, or leaving: counted until Gone
	inWhole              // committed
	inPart               // idle and unfinished
	inHand               // unfinished, and reserved again
)

// New returns an empty cache with a budget of max bytes.
func New[K comparable, V any](max int64) *Cache[K, V] {
	c := &Cache[K, V]{max: max}
	// The budget bounds the lists, not a number of entries.
	c.whole, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	c.partial, _ = simplelru.NewLRU[K, *Entry[K, V]](math.MaxInt, nil)
	return c
}

// Max returns the budget, Used the bytes of all entries that aren't gone yet,
// Reserved the bytes promised to what is on its way in.
func (c *Cache[K, V]) Max() int64      { return c.max }
func (c *Cache[K, V]) Used() int64     { return c.used }
func (c *Cache[K, V]) Reserved() int64 { return c.reserved }

// Len returns the number of whole entries.
func (c *Cache[K, V]) Len() int { return c.whole.Len() }

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

// Release takes back n bytes of what Reserve promised.
func (c *Cache[K, V]) Release(n int64) { c.reserved -= n }

// Commit turns the reservation of n bytes into a whole entry, most recently used.
// e.Size must be at most n; the rest of the reservation is released.
func (c *Cache[K, V]) Commit(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.add(c.whole, inWhole, e)
}

// Park turns the reservation of n bytes into an unfinished entry that nobody works on.
func (c *Cache[K, V]) Park(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.add(c.partial, inPart, e)
}

// Unpark takes an unfinished entry out again, to be worked on: its bytes become
// reserved. It returns nil when there is none.
func (c *Cache[K, V]) Unpark(k K) *Entry[K, V] {
	e, ok := c.partial.Peek(k)
	if !ok {
		return nil
	}
	c.drop(e)
	c.Gone(e)
	e.place = inHand
	c.reserved += e.Size
	return e
}

// Doom turns the reservation of n bytes into an entry that has left already: its file
// is unlinked, and counts until Gone.
func (c *Cache[K, V]) Doom(n int64, e *Entry[K, V]) {
	c.reserved -= n
	c.used += e.Size
	c.leaving += e.Size
}

// Load adds an entry that is on disk already, as the most recently used one.
// Call it in order of last use.
func (c *Cache[K, V]) Load(e *Entry[K, V]) { c.add(c.whole, inWhole, e) }

// LoadPartial is Load for an unfinished entry.
func (c *Cache[K, V]) LoadPartial(e *Entry[K, V]) { c.add(c.partial, inPart, e) }

func (c *Cache[K, V]) add(list *simplelru.LRU[K, *Entry[K, V]], p place, e *Entry[K, V]) {
	if old, ok := list.Peek(e.Key); ok {
		// The caller replaces the file, so the old bytes are gone with this call.
		c.drop(old)
		c.Gone(old)
	}
	e.place = p
	c.used += e.Size
	list.Add(e.Key, e)
	if p == inWhole && e.holders == 0 {
		c.idle++
		c.idleBytes += e.Size
	}
}

// Get returns the whole entry of k and makes it the most recently used, or nil.
func (c *Cache[K, V]) Get(k K) *Entry[K, V] {
	e, _ := c.whole.Get(k)
	return e
}

// Peek is Get without the use.
func (c *Cache[K, V]) Peek(k K) *Entry[K, V] {
	e, _ := c.whole.Peek(k)
	return e
}

// HasPartial reports whether k is an idle unfinished entry.
func (c *Cache[K, V]) HasPartial(k K) bool { return c.partial.Contains(k) }

// Oldest returns the entry that was used the longest ago, or nil.
func (c *Cache[K, V]) Oldest() *Entry[K, V] {
	_, e, _ := c.whole.GetOldest()
	return e
}

// All calls f for every whole entry, least recently used first.
func (c *Cache[K, V]) All(f func(*Entry[K, V])) {
	for _, e := range c.whole.Values() {
		f(e)
	}
}

// Partials calls f for every idle unfinished entry.
func (c *Cache[K, V]) Partials(f func(*Entry[K, V])) {
	for _, e := range c.partial.Values() {
		f(e)
	}
}

// Hold says that e is being read. A held entry leaves only when nothing else can,
// and its bytes count until the last holder has let go.
func (c *Cache[K, V]) Hold(e *Entry[K, V]) {
	if e.holders == 0 && e.place == inWhole {
		c.idle--
		c.idleBytes -= e.Size
	}
	e.holders++
}

// LetGo ends one Hold. It reports whether e has left the cache meanwhile and this
// was its last holder: then the caller calls Gone.
func (c *Cache[K, V]) LetGo(e *Entry[K, V]) (last bool) {
	e.holders--
	if e.holders > 0 {
		return false
	}
	if e.place == inWhole {
		c.idle++
		c.idleBytes += e.Size
	}
	return e.place == out
}

// Held reports whether somebody holds e.
func (e *Entry[K, V]) Held() bool { return e.holders > 0 }

// Victims picks entries that make room for n more bytes, and at least atLeast bytes
// of them: unfinished ones first, then those that were used the longest ago and that
// nobody holds. It returns nil when that would not be enough, for then nothing should
// leave in vain.
//
// What it returns is out of the cache, and counted until Gone.
func (c *Cache[K, V]) Victims(n, atLeast int64) []*Entry[K, V] {
	need := max(c.used+c.reserved+n-c.max, atLeast)
	partBytes := int64(0)
	for _, e := range c.partial.Values() {
		partBytes += e.Size
	}
	if n > c.max || need > partBytes+c.idleBytes {
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
	if _, e, ok := c.partial.GetOldest(); ok {
		return e
	}
	for {
		_, e, ok := c.whole.GetOldest()
		switch {
		case !ok || c.idle == 0 && !heldToo:
			return nil
		case e.holders == 0 || c.idle == 0:
			return e
		}
		c.whole.Get(e.Key) // being read is being used: it moves to the young end
	}
}

// Remove takes the entry of k out, whole or unfinished, for whatever reason, and
// returns it, or nil. It counts until Gone.
func (c *Cache[K, V]) Remove(k K) *Entry[K, V] {
	e, ok := c.whole.Peek(k)
	if !ok {
		if e, ok = c.partial.Peek(k); !ok {
			return nil
		}
	}
	c.drop(e)
	return e
}

// drop takes e off its list; its bytes stay in used.
func (c *Cache[K, V]) drop(e *Entry[K, V]) {
	if e.place == inPart {
		c.partial.Remove(e.Key)
	} else {
		c.whole.Remove(e.Key)
		if e.holders == 0 {
			c.idle--
			c.idleBytes -= e.Size
		}
	}
	e.place = out
	c.leaving += e.Size
}

// Gone says that the file of an entry that has left is unlinked and nobody reads it.
func (c *Cache[K, V]) Gone(e *Entry[K, V]) {
	c.used -= e.Size
	c.leaving -= e.Size
}
