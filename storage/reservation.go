package storage

import (
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// reservation is the part of the budget that one ingest holds. It owns the number: only its
// methods change it. It ends with commit, park, discard or giveBack, and holds nothing then.
// All methods are safe for concurrent use, but only one caller may end it.
type reservation struct {
	s      *Store
	held   atomic.Int64 // bytes; changed only while the store's mu is held
	inFile atomic.Int64 // bytes of held that the file has already
}

// bytes returns how many bytes are held.
func (r *reservation) bytes() int64 { return r.held.Load() }

// grow reserves n more bytes, for which room is made. Errors: ErrNoRoom.
func (r *reservation) grow(n int64) error { return r.s.reserve(r, n) }

// resize reserves more bytes, or gives some back, so that n are held. Errors: ErrNoRoom.
func (r *reservation) resize(n int64) error {
	more := n - r.bytes()
	if more > 0 {
		return r.grow(more)
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.lru.Unreserve(-more)
	r.held.Add(more)
	r.inFile.Store(min(r.inFile.Load(), n)) // the file is cut to this
	return nil
}

// filled says that the file has at least n bytes now.
func (r *reservation) filled(n int64) {
	for {
		old := r.inFile.Load()
		if old >= n || r.inFile.CompareAndSwap(old, n) {
			return
		}
	}
}

// unpark makes the room of the parked partial of d its own, if there is one. It holds nothing
// else. The store's mu is held.
func (r *reservation) unpark(d digest.Digest) bool {
	e := r.s.lru.Unpark(d)
	if e == nil {
		return false
	}
	r.held.Store(e.Size)
	r.inFile.Store(e.Size)
	r.s.reservations[r] = struct{}{}
	return true
}

// commit makes the whole entry e of it. The store's mu is held.
func (r *reservation) commit(e *entry) { r.s.lru.Commit(r.end(), e) }

// park makes the partial e of it, which nobody works on. The store's mu is held.
func (r *reservation) park(e *entry) { r.s.lru.Park(r.end(), e) }

// discard makes e of it, whose file is unlinked and may still be read. The store's mu is held.
func (r *reservation) discard(e *entry) { r.s.lru.Discard(r.end(), e) }

// giveBack returns all of it. The store's mu is held.
func (r *reservation) giveBack() { r.s.lru.Unreserve(r.end()) }

// end empties it and returns what it held. The store's mu is held.
func (r *reservation) end() int64 {
	delete(r.s.reservations, r)
	r.inFile.Store(0)
	return r.held.Swap(0)
}
