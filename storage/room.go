package storage

import (
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/lru"
)

// room is the budget and what fills it: entries, reservations, and the choice and unlinking of
// victims.
type room struct {
	files     *files
	catalogue *catalogue

	minFree atomic.Int64 // bytes of the file system that are left free
	space   freeSpace

	// evicting queues those who make room, so that each sees the room that the one before has
	// left. It is held while files are unlinked, and taken before all other locks.
	evicting sync.Mutex

	// mu guards what follows, and the Value of each entry. It is taken after files.mu and
	// before Ingest.mu, and never held during I/O.
	mu           sync.Mutex
	lru          *lru.Cache[digest.Digest, info]
	reservations map[*reservation]struct{}       // those that hold something
	unlinking    map[digest.Digest]chan struct{} // closed when the old file is unlinked
	manifests    int64                           // number among the entries
	evictions    int64
	evicted      int64 // bytes
}

// claim prepares the room of an ingest: a parked partial becomes its reservation, at once, or
// it might be chosen as a victim. If an old file of that name is about to be unlinked, it
// returns a channel that is closed when that is done. Errors: fs.ErrExist.
func (r *room) claim(in *Ingest) (unlinked chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if unlinked = r.unlinking[in.digest]; unlinked != nil {
		return unlinked, nil
	}
	if r.lru.Peek(in.digest) != nil {
		return nil, fs.ErrExist
	}
	in.parked = in.room.unpark(in.digest)
	return nil, nil
}

// reserve adds n bytes to held, for which room is made when it can be had at once.
// Errors: ErrNoRoom.
func (r *room) reserve(held *reservation, n int64) error {
	if held.ended.Load() || n > r.budget() { // so sums of what upstream claims don't overflow
		return ErrNoRoom
	}
	if r.shortOfSpace(n) <= 0 && r.reserveNow(held, n) {
		return nil
	}
	r.evicting.Lock()
	defer r.evicting.Unlock()
	// Measured once: some file systems count freed room only later.
	for short := r.shortOfSpace(n); ; {
		if short <= 0 && r.reserveNow(held, n) {
			return nil
		}
		r.mu.Lock()
		victims := r.pick(r.lru.Victims(n, short))
		r.mu.Unlock()
		if len(victims) == 0 {
			if short <= 0 && r.reserveNow(held, n) { // somebody has given room back meanwhile
				return nil
			}
			return ErrNoRoom
		}
		r.unlink(victims)
		for _, e := range victims {
			short -= e.Size
		}
	}
}

func (r *room) reserveNow(held *reservation, n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if held.ended.Load() || !r.lru.Reserve(n) {
		return false
	}
	held.held.Add(n)
	r.reservations[held] = struct{}{}
	return true
}

// shortOfSpace returns how many bytes have to leave the file system so that n more fit and
// the free space to keep is kept; 0 or less when none.
func (r *room) shortOfSpace(n int64) int64 {
	r.mu.Lock()
	promised := max(0, r.lru.Usage().Reserved-r.reservedInFiles())
	r.mu.Unlock()
	return r.space.short(n, r.minFree.Load()+promised)
}

// reservedInFiles returns how many reserved bytes the files have already. mu is held.
func (r *room) reservedInFiles() (n int64) {
	for held := range r.reservations {
		n += held.inFile.Load()
	}
	return n
}

// budget returns the budget in bytes.
func (r *room) budget() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lru.Usage().Max
}

// setLimits changes the budget and the free space to keep, and evicts what is too much.
func (r *room) setLimits(budget, minFree int64) {
	r.minFree.Store(minFree)
	r.mu.Lock()
	r.lru.SetMax(budget)
	r.mu.Unlock()
	r.shrink()
}

// shrink evicts what is over the budget and what has to go for the free space to keep.
func (r *room) shrink() {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	short := r.shortOfSpace(0)
	r.mu.Lock()
	victims := r.pick(r.lru.Shed(short))
	r.mu.Unlock()
	r.unlink(victims)
}

// pick counts entries as evicted, and prepares their unlinking. mu is held.
func (r *room) pick(victims []*entry) []*entry {
	for _, e := range victims {
		r.evictions++
		r.evicted += e.Size
		r.leave(e)
	}
	return victims
}

// leave notes that e is out of the lru and about to be unlinked. mu is held.
func (r *room) leave(e *entry) {
	if e.Value.has(isManifest) {
		r.manifests--
	}
	r.unlinking[e.Key] = make(chan struct{})
	r.lru.Hold(e) // until its file is unlinked, so that a reader who leaves before is not the last
}

// unlink removes the files of entries that leave. evicting is held, mu is not.
func (r *room) unlink(victims []*entry) {
	for _, e := range victims {
		r.mu.Lock()
		partial := e.Value.has(isPartial)
		r.mu.Unlock()
		if partial {
			r.files.removePartial(e.Key)
		} else {
			r.files.remove(r.files.layout.blob(e.Key))
			r.catalogue.forget(e.Key)
		}
		r.mu.Lock()
		close(r.unlinking[e.Key])
		delete(r.unlinking, e.Key)
		r.drop(e)
		r.mu.Unlock()
	}
}

// remove drops what there is of d, whole or unfinished; its readers can read on. If only isn't
// nil, it drops that entry and no successor of it.
func (r *room) remove(d digest.Digest, only *entry) (removed bool) {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	r.mu.Lock()
	var e *entry
	if only == nil || r.lru.Peek(d) == only {
		e = r.lru.Remove(d)
	}
	if e != nil {
		r.leave(e)
	}
	r.mu.Unlock()
	if e == nil {
		return false
	}
	r.unlink([]*entry{e})
	return true
}

// hold returns the entry of d, which cannot go away until release, and what is known of it; nil
// when there is none.
func (r *room) hold(d digest.Digest) (*entry, info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e == nil {
		return nil, info{}
	}
	r.lru.Hold(e)
	return e, e.Value
}

// release ends one hold.
func (r *room) release(e *entry) {
	r.mu.Lock()
	r.drop(e)
	r.mu.Unlock()
}

// drop ends one hold, after which the room of an entry that has left is free if it was the
// last one. mu is held.
func (r *room) drop(e *entry) {
	if r.lru.Release(e) {
		r.lru.Removed(e)
	}
}

// state is what the room knows of a blob.
type state struct {
	size     int64 // bytes
	cached   bool
	manifest bool // it is cached, and a manifest
	partial  bool // there is an unfinished one that nobody works on
}

func (r *room) state(d digest.Digest) state {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e == nil {
		return state{partial: r.lru.HasPartial(d)}
	}
	return state{size: e.Size, cached: true, manifest: e.Value.has(isManifest)}
}

func (r *room) isPrivate(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.Value.has(isPrivate)
}

// verified notes that the file of e has been hashed and is right. It reports false when e has
// left meanwhile: then what was hashed may have been the file of another entry.
func (r *room) verified(e *entry, id fileID, private bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lru.Peek(e.Key) != e {
		return false
	}
	e.Value.bits &^= unverified
	e.Value.ino, e.Value.mtime = id.ino, id.mtime
	if private {
		e.Value.bits |= isPrivate
	}
	return true
}

// makeManifest notes that blob d is a manifest. If hashed is set, its bytes have been hashed
// and are right. It returns a copy of the entry, empty when d isn't cached, and whether it has
// become a manifest by this.
func (r *room) makeManifest(d digest.Digest, hashed bool) (e entry, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.lru.Peek(d)
	if now == nil {
		return entry{}, false
	}
	if changed = !now.Value.has(isManifest); changed {
		now.Value.bits |= isManifest
		r.manifests++
	}
	if hashed {
		now.Value.bits &^= unverified
	}
	return *now, changed
}

// load adds an entry that is on disk. mu is held, or nobody else is there yet.
func (r *room) load(e *entry) {
	r.lru.Load(e, e.Value.again(e.Value.used))
	if e.Value.has(isManifest) {
		r.manifests++
	}
}

// adopt adds e, unless there is an entry already or its file is about to be unlinked.
func (r *room) adopt(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lru.Peek(e.Key) != nil || r.unlinking[e.Key] != nil {
		return false
	}
	r.load(e)
	return true
}

// found notes that the walk of reconcile has found the file of d, and reports whether there is
// an entry of it.
func (r *room) found(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e != nil {
		e.Value.bits |= onDisk
	}
	return e != nil
}

// notFound returns the blobs that the walk of reconcile has not found. They are lost, or came
// in during the walk.
func (r *room) notFound() (ds []digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lru.All(func(e *entry) {
		if !e.Value.has(onDisk) {
			ds = append(ds, e.Key)
		}
		e.Value.bits &^= onDisk
	})
	return ds
}

// maxDepth ends the descent into indexes that name indexes, or themselves: real ones are two
// deep.
const maxDepth = 4

// touch says that d is used at that time, in Unix nanoseconds, and with a manifest all that is
// cached of what it names.
func (r *room) touch(d digest.Digest, now int64, depth int) {
	r.mu.Lock()
	e := r.lru.Peek(d)
	if e == nil {
		r.mu.Unlock()
		return
	}
	r.lru.Use(d, e.Value.again(now))
	recent := now >= e.Value.used && now-e.Value.used < int64(time.Second)
	if !recent {
		e.Value.used = now
		r.catalogue.setUse(d, time.Unix(0, now))
	}
	manifest := e.Value.has(isManifest)
	r.mu.Unlock()
	if !manifest || recent || depth == maxDepth {
		return
	}
	rec, err := r.catalogue.record(d)
	if err != nil {
		return // at least the manifest itself counts as used
	}
	for _, c := range rec.children {
		r.touch(c.Digest, now, depth+1)
	}
}

// stats returns what the room knows of Stats.
func (r *room) stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, inFiles := r.lru.Usage(), r.reservedInFiles()
	st := Stats{
		Bytes:         u.Used + inFiles,
		ReservedBytes: u.Reserved - inFiles,
		BudgetBytes:   u.Max,
		Manifests:     r.manifests,
		Blobs:         int64(u.Entries) - r.manifests,
		Evictions:     r.evictions,
		EvictedBytes:  r.evicted,
	}
	fresh, proven := r.lru.Oldest()
	for _, e := range []*entry{fresh, proven} {
		if e == nil {
			continue
		}
		if t := time.Unix(0, e.Value.used); st.OldestUse.IsZero() || t.Before(st.OldestUse) {
			st.OldestUse = t
		}
	}
	return st
}

// reservation is the part of the budget that one ingest holds. It owns the number: only its
// methods and room.reserve change it. It ends with commit, park, discard or giveBack; then it
// holds nothing and can't grow again. Its methods are safe for concurrent use, but only one
// caller may end it.
type reservation struct {
	room   *room
	held   atomic.Int64 // bytes; changed only while room.mu is held
	inFile atomic.Int64 // bytes of held that the file has already
	ended  atomic.Bool  // changed only while room.mu is held
}

// bytes returns how many bytes are held.
func (v *reservation) bytes() int64 { return v.held.Load() }

// grow reserves n more bytes, for which room is made. Errors: ErrNoRoom, also when it has ended.
func (v *reservation) grow(n int64) error { return v.room.reserve(v, n) }

// resize reserves more bytes, or gives some back, so that n are held. Errors: ErrNoRoom.
func (v *reservation) resize(n int64) error {
	more := n - v.bytes()
	if more > 0 {
		return v.grow(more)
	}
	v.room.mu.Lock()
	defer v.room.mu.Unlock()
	v.room.lru.Unreserve(-more)
	v.held.Add(more)
	v.inFile.Store(min(v.inFile.Load(), n)) // the file is cut to this
	return nil
}

// filled says that the file has at least n bytes now.
func (v *reservation) filled(n int64) {
	for {
		old := v.inFile.Load()
		if old >= n || v.inFile.CompareAndSwap(old, n) {
			return
		}
	}
}

// unpark makes the room of the parked partial of d its own, if there is one. room.mu is held.
func (v *reservation) unpark(d digest.Digest) bool {
	e := v.room.lru.Unpark(d)
	if e == nil {
		return false
	}
	v.held.Store(e.Size)
	v.inFile.Store(e.Size)
	v.room.reservations[v] = struct{}{}
	return true
}

// commit turns it into the whole entry e. room.mu is held.
func (v *reservation) commit(e *entry) {
	v.room.lru.Commit(v.end(), e)
	if e.Value.has(isManifest) {
		v.room.manifests++
	}
}

// park turns it into the partial e, which nobody works on. room.mu is held.
func (v *reservation) park(e *entry) { v.room.lru.Park(v.end(), e) }

// discard turns it into e, whose file is unlinked and may still be read. room.mu is held.
func (v *reservation) discard(e *entry) { v.room.lru.Discard(v.end(), e) }

// giveBack returns all of it. room.mu is held.
func (v *reservation) giveBack() { v.room.lru.Unreserve(v.end()) }

// end empties it and returns what it held. room.mu is held.
func (v *reservation) end() int64 {
	delete(v.room.reservations, v)
	v.ended.Store(true)
	v.inFile.Store(0)
	return v.held.Swap(0)
}
