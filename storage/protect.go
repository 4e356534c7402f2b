package storage

import (
	"math"

	"github.com/opencontainers/go-digest"
)

// protect pins what is wanted, and unpins all else. wanted has how many bytes each blob takes of
// what may be pinned, also of those that are still to come: they are pinned when they come in. -1
// says that a blob belongs to a pin and isn't protected: the pins have to be applied anew when it
// comes in.
func (r *room) protect(wanted map[digest.Digest]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = wanted
	first := int64(math.MaxInt64) // of the last uses of what is unpinned
	for _, e := range r.lru.Pinned() {
		if n, ok := wanted[e.Key]; !ok || e.Size > n {
			r.lru.Unpin(e.Key)
			first = min(first, e.Value.used)
		}
	}
	r.reorder(first)
	for d, n := range wanted {
		if e := r.lru.Peek(d); e != nil && e.Size <= n {
			r.lru.Pin(d)
		}
	}
}

// arrived pins e if it is wanted, now that it has come in. mu is held.
func (r *room) arrived(e *entry) {
	n, ok := r.wanted[e.Key]
	switch {
	case ok && e.Size <= n:
		r.lru.Pin(e.Key)
	case ok, e.Value.has(isManifest):
		r.kickPins()
	}
}

// pinned returns how many bytes are pinned.
func (r *room) pinned() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lru.Usage().Pinned
}

// isPinned reports whether blob d is pinned.
func (r *room) isPinned(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lru.IsPinned(d)
}

// tooSmall returns what the cache is too small for.
func (r *room) tooSmall() []Shortage {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.lru.Usage()
	return r.shortages.now(u.Max, u.Pinned, r.lru.IsPinned)
}
