package main

import "container/list"

// policy is a cache of blobs within a budget of bytes.
type policy interface {
	// get requests a blob and reports whether it is cached. If it is not, the policy may
	// cache it.
	get(b blob) bool
	// touch says that a client has requested an image that has this blob. The client may
	// have the blob already. touch caches nothing.
	touch(b blob)
}

// item is a cached blob in one of a policy's queues.
type item struct {
	blob
	in    *queue
	at    *list.Element
	freq  int
	again bool // used again since it was cached
}

// queue is a list with the youngest item in front, and the size of its items.
type queue struct {
	list  list.List
	bytes int64
}

func (q *queue) push(it *item) {
	it.in, it.at = q, q.list.PushFront(it)
	q.bytes += it.size
}

func (q *queue) remove(it *item) {
	q.list.Remove(it.at)
	q.bytes -= it.size
}

func (q *queue) refresh(it *item) { q.list.MoveToFront(it.at) }

func (q *queue) oldest() *item {
	if e := q.list.Back(); e != nil {
		return e.Value.(*item)
	}
	return nil
}

// lru evicts the least recently used blob first.
type lru struct {
	max   int64
	all   map[int]*item
	queue queue
}

func newLRU(max int64) policy { return &lru{max: max, all: map[int]*item{}} }

func (c *lru) get(b blob) bool {
	if it := c.all[b.id]; it != nil {
		c.queue.refresh(it)
		return true
	}
	if b.size > c.max {
		return false
	}
	for c.queue.bytes+b.size > c.max {
		it := c.queue.oldest()
		c.queue.remove(it)
		delete(c.all, it.id)
	}
	c.all[b.id] = &item{blob: b}
	c.queue.push(c.all[b.id])
	return false
}

func (c *lru) touch(blob) {}

// imageLRU is lru where a use of an image counts as a use of all its blobs.
type imageLRU struct{ *lru }

func newImageLRU(max int64) policy { return imageLRU{newLRU(max).(*lru)} }

func (c imageLRU) touch(b blob) {
	if it := c.all[b.id]; it != nil {
		c.queue.refresh(it)
	}
}

// segmented is imageLRU in two parts. A blob that was requested once is on probation; a second
// use moves it to the protected part. Probation is evicted first while it is larger than its
// share.
type segmented struct {
	max                  int64
	share                float64 // of the budget, above which probation is evicted first
	all                  map[int]*item
	probation, protected queue
}

func newSegmented(share float64) func(int64) policy {
	return func(max int64) policy {
		return &segmented{max: max, share: share, all: map[int]*item{}}
	}
}

func (c *segmented) use(it *item) {
	it.in.remove(it)
	c.protected.push(it)
}

func (c *segmented) get(b blob) bool {
	if it := c.all[b.id]; it != nil {
		c.use(it)
		return true
	}
	if b.size > c.max {
		return false
	}
	for c.probation.bytes+c.protected.bytes+b.size > c.max {
		q := &c.protected
		if c.probation.bytes+b.size > int64(c.share*float64(c.max)) && c.probation.oldest() != nil || c.protected.oldest() == nil {
			q = &c.probation
		}
		it := q.oldest()
		q.remove(it)
		delete(c.all, it.id)
	}
	c.all[b.id] = &item{blob: b}
	c.probation.push(c.all[b.id])
	return false
}

func (c *segmented) touch(b blob) {
	if it := c.all[b.id]; it != nil {
		c.use(it)
	}
}

// sieve is SIEVE (Zhang et al., NSDI 2024): first in, first out, but the hand passes over blobs
// that were used since it passed last.
type sieve struct {
	max   int64
	all   map[int]*item
	queue queue
	hand  *list.Element
	image bool
}

func newSieve(image bool) func(int64) policy {
	return func(max int64) policy { return &sieve{max: max, all: map[int]*item{}, image: image} }
}

func (c *sieve) get(b blob) bool {
	if it := c.all[b.id]; it != nil {
		it.again = true
		return true
	}
	if b.size > c.max {
		return false
	}
	for c.queue.bytes+b.size > c.max {
		c.evict()
	}
	c.all[b.id] = &item{blob: b}
	c.queue.push(c.all[b.id])
	return false
}

func (c *sieve) evict() {
	for {
		if c.hand == nil {
			c.hand = c.queue.list.Back()
		}
		it := c.hand.Value.(*item)
		c.hand = c.hand.Prev()
		if !it.again {
			c.queue.remove(it)
			delete(c.all, it.id)
			return
		}
		it.again = false
	}
}

func (c *sieve) touch(b blob) {
	if it := c.all[b.id]; it != nil && c.image {
		it.again = true
	}
}

// s3fifo is S3-FIFO (Yang et al., SOSP 2023). New blobs enter a small queue, from which those
// that are used again move to a main queue with second chances. A ghost queue remembers blobs
// that were evicted from the small queue.
type s3fifo struct {
	max         int64
	all         map[int]*item
	small, main queue
	ghost       *ghost
}

func newS3FIFO(max int64) policy {
	return &s3fifo{max: max, all: map[int]*item{}, ghost: &ghost{max: max, in: map[int]*list.Element{}}}
}

func (c *s3fifo) get(b blob) bool {
	if it := c.all[b.id]; it != nil {
		it.freq = min(it.freq+1, 3)
		return true
	}
	if b.size > c.max {
		return false
	}
	for c.small.bytes+c.main.bytes+b.size > c.max {
		c.evict()
	}
	it := &item{blob: b}
	c.all[b.id] = it
	if c.ghost.take(b) {
		c.main.push(it)
	} else {
		c.small.push(it)
	}
	return false
}

func (c *s3fifo) evict() {
	if c.small.bytes > c.max/10 || c.main.oldest() == nil {
		it := c.small.oldest()
		c.small.remove(it)
		if it.freq > 0 {
			it.freq = 0
			c.main.push(it)
			return
		}
		delete(c.all, it.id)
		c.ghost.add(it.blob)
		return
	}
	it := c.main.oldest()
	c.main.remove(it)
	if it.freq > 0 {
		it.freq--
		c.main.push(it)
		return
	}
	delete(c.all, it.id)
}

func (c *s3fifo) touch(blob) {}

// ghost remembers evicted blobs, up to as many bytes as the cache holds.
type ghost struct {
	max, bytes int64
	list       list.List
	in         map[int]*list.Element
}

func (g *ghost) add(b blob) {
	g.in[b.id] = g.list.PushFront(b)
	for g.bytes += b.size; g.bytes > g.max; {
		old := g.list.Back()
		g.take(old.Value.(blob))
	}
}

// take forgets b and reports whether it was remembered.
func (g *ghost) take(b blob) bool {
	e := g.in[b.id]
	if e == nil {
		return false
	}
	g.list.Remove(e)
	g.bytes -= b.size
	delete(g.in, b.id)
	return true
}

// tinyLFU is W-TinyLFU (Einziger et al., 2017): a small window, and a main part that admits only
// blobs that are requested more often than those that would be evicted for them. The counts are
// exact and not a sketch, since their memory does not matter here.
type tinyLFU struct {
	max                          int64
	all                          map[int]*item
	window, probation, protected queue
	counts                       map[int]int
	requests                     int
}

func newTinyLFU(max int64) policy {
	return &tinyLFU{max: max, all: map[int]*item{}, counts: map[int]int{}}
}

func (c *tinyLFU) get(b blob) bool {
	c.counts[b.id]++
	if c.requests++; c.requests > 10*max(len(c.all), 1000) { // halve the counts
		c.requests = 0
		for id, n := range c.counts {
			if c.counts[id] = n / 2; n < 2 {
				delete(c.counts, id)
			}
		}
	}
	if it := c.all[b.id]; it != nil {
		c.hit(it)
		return true
	}
	if b.size > c.max {
		return false
	}
	it := &item{blob: b}
	c.all[b.id] = it
	c.window.push(it)
	for c.window.bytes > c.max/100 {
		c.admit(c.window.oldest())
	}
	return false
}

func (c *tinyLFU) hit(it *item) {
	if it.in != &c.probation {
		it.in.refresh(it)
		return
	}
	c.probation.remove(it)
	c.protected.push(it)
	for c.protected.bytes > c.max*8/10 {
		old := c.protected.oldest()
		c.protected.remove(old)
		c.probation.push(old)
	}
}

// admit moves the candidate into the main part if it is requested more often than each blob
// that must be evicted for it.
func (c *tinyLFU) admit(it *item) {
	c.window.remove(it)
	room := c.max - c.max/100
	for c.probation.bytes+c.protected.bytes+it.size > room {
		victim := c.probation.oldest()
		if victim == nil {
			victim = c.protected.oldest()
		}
		if victim == nil || c.counts[it.id] <= c.counts[victim.id] {
			delete(c.all, it.id)
			return
		}
		victim.in.remove(victim)
		delete(c.all, victim.id)
	}
	c.probation.push(it)
}

func (c *tinyLFU) touch(blob) {}
