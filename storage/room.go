package storage

import (
	"io/fs"
	"maps"
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

	minFree   atomic.Int64 // bytes of the file system that are left free
	space     freeSpace
	inodes    freeInodes
	shortages shortages
	kickPins  func() // says that something may have changed which pins cover

	recipients *Recipients   // who reads
	isShort    chan struct{} // of one: room was refused

	// evicting queues those who evict, so that each sees the room that the one before has
	// left. It is held while files are unlinked, and taken before all other locks.
	evicting sync.Mutex

	// mu guards what follows, and the Value of each entry. It is taken after files.mu and
	// before Ingest.mu, and never held during I/O.
	//
	// A digest is at most one of these: a whole entry, a parked partial, a reservation, or in
	// unlinking.
	mu           sync.Mutex
	lru          *lru.Cache[digest.Digest, info]
	reservations map[*reservation]struct{}       // those that hold something
	unlinking    map[digest.Digest]chan struct{} // closed when the old file is unlinked
	wanted       map[digest.Digest]int64         // see protect
	short        shortage
	manifests    int64 // number among the entries
	evictions    int64
	evictedBytes int64
	evictedFor   map[EvictionReason]Evicted // the same by reason
}

// claim checks that in may begin, and takes over a parked partial of its digest in the same
// step, so that it can't be evicted in between. If an older file of the digest is being
// unlinked, nothing is claimed: wait for the channel and call again. files.mu is held.
// Errors: fs.ErrExist when the blob is committed.
func (r *room) claim(in *Ingest) (unlinked chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if unlinked = r.unlinking[in.digest]; unlinked != nil {
		return unlinked, nil
	}
	if r.lru.Peek(in.digest) != nil {
		return nil, fs.ErrExist
	}
	in.parked = in.reservation.unpark(in.digest)
	return nil, nil
}

// reserve adds n bytes to v, and evicts for them what can be evicted at once.
// Errors: ErrNoRoom.
func (r *room) reserve(v *reservation, n int64) error {
	// A size that upstream claims may be huge: refuse it before anything is added to it.
	r.mu.Lock()
	refuse := v.ended.Load() || n > r.lru.Usage().Max || r.keptOut(v.digest, n)
	r.mu.Unlock()
	if refuse {
		return ErrNoRoom
	}
	if r.inodes.short(r.minFree.Load()) > 0 {
		r.evicting.Lock()
		r.inodes.free(r)
		r.evicting.Unlock()
	}
	if r.shortOfSpace(n) <= 0 && r.reserveNow(v, n) {
		return nil
	}
	r.evicting.Lock()
	defer r.evicting.Unlock()
	// Measured once: some file systems count freed room only later.
	for short := r.shortOfSpace(n); ; {
		if short <= 0 && r.reserveNow(v, n) {
			return nil
		}
		r.mu.Lock()
		victims := r.evict(r.lru.Victims(n, short), because(short))
		r.mu.Unlock()
		if len(victims) == 0 {
			if short <= 0 && r.reserveNow(v, n) { // somebody has given room back meanwhile
				return nil
			}
			if short > 0 {
				r.files.faults.full(short)
			}
			r.refused(v.digest, n, short)
			return ErrNoRoom
		}
		r.unlink(victims)
		for _, e := range victims {
			short -= e.Size
		}
	}
}

// reserveNow is reserve without evicting. It reports whether there was room.
func (r *room) reserveNow(v *reservation, n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.ended.Load() || !r.lru.Reserve(n) {
		return false
	}
	v.reserved.Add(n)
	r.reservations[v] = struct{}{}
	delete(r.short.wants, v.digest)
	return true
}

// shortOfSpace returns how many bytes have to leave the file system so that n more fit and
// the free space to keep is kept; 0 or less when none. It also books n with freeSpace.
// Booking twice is harmless: the space is measured again when it gets tight.
func (r *room) shortOfSpace(n int64) int64 {
	return r.space.short(n, r.keepFree())
}

// keepFree returns how many bytes of the file system are to be left for others, and for what is
// reserved and not yet written.
func (r *room) keepFree() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.minFree.Load() + max(0, r.lru.Usage().Reserved-r.reservedInFiles())
}

// reservedInFiles returns how many reserved bytes the files have already. mu is held.
func (r *room) reservedInFiles() (n int64) {
	for v := range r.reservations {
		n += v.inFile.Load()
	}
	return n
}

// budget returns the budget in bytes.
func (r *room) budget() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lru.Usage().Max
}

// setLimits changes the budget and the free space to keep. When they shrink, the pins have to be
// applied anew, and then call shrink.
func (r *room) setLimits(budget, minFree int64) {
	r.minFree.Store(minFree)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lru.SetMax(budget)
}

// shrink evicts what is over the budget and what has to go for the free space to keep.
func (r *room) shrink() {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	short := r.shortOfSpace(0)
	r.mu.Lock()
	// Files that were evicted already and are still read give their space back by themselves.
	short -= r.lru.Usage().Leaving
	victims := r.evict(r.lru.Shed(short), because(short))
	r.mu.Unlock()
	r.unlink(victims)
	r.inodes.free(r)
}

// because is why something is evicted while short more bytes have to become free on the disk.
func because(short int64) EvictionReason {
	if short > 0 {
		return ForMinFree
	}
	return ForBudget
}

// evict counts victims, which are out of the lru, as evicted, and prepares their unlinking. mu is
// held.
func (r *room) evict(victims []*entry, why EvictionReason) []*entry {
	for _, e := range victims {
		if !e.Value.has(isPartial) {
			r.shortages.evicted(e.Key, r.evictedBytes, why != ForBudget)
		}
		r.evictions++
		r.evictedBytes += e.Size
		was := r.evictedFor[why]
		r.evictedFor[why] = Evicted{was.Count + 1, was.Bytes + e.Size}
		r.beginUnlink(e)
	}
	return victims
}

// beginUnlink notes that e is out of the lru and about to be unlinked. mu is held.
func (r *room) beginUnlink(e *entry) {
	if e.Value.has(isManifest) {
		r.manifests--
	}
	r.unlinking[e.Key] = make(chan struct{})
	// One holder for unlink itself: else the last reader to close would free the bytes while
	// the file is still there.
	r.lru.Hold(e)
}

// unlink removes the files of victims. evicting is held, mu is not.
func (r *room) unlink(victims []*entry) {
	for _, e := range victims {
		r.mu.Lock()
		partial, manifest := e.Value.has(isPartial), e.Value.has(isManifest)
		r.mu.Unlock()
		if partial {
			r.files.removePartial(e.Key)
		} else {
			r.files.remove(r.files.layout.blob(e.Key))
			r.catalogue.forget(e.Key)
		}
		if manifest {
			r.catalogue.forgetReferrers(e.Key)
		}
		r.mu.Lock()
		close(r.unlinking[e.Key])
		delete(r.unlinking, e.Key)
		r.mu.Unlock()
		r.release(e)
	}
}

// remove removes what there is of d, whole or unfinished, without counting an eviction; its
// readers can read on. If only isn't nil, it removes that entry and no successor of it.
func (r *room) remove(d digest.Digest, only *entry) (removed bool) {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	r.mu.Lock()
	var e *entry
	if only == nil || r.lru.Peek(d) == only {
		e = r.lru.Remove(d)
	}
	if e != nil {
		r.beginUnlink(e)
	}
	r.mu.Unlock()
	if e == nil {
		return false
	}
	r.unlink([]*entry{e})
	return true
}

// hold returns the entry of d and a copy of its info; nil when there is none. The entry can
// still be evicted, but its bytes count until release.
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

// release ends one hold. The last release of an evicted entry frees its bytes.
func (r *room) release(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lru.Release(e) {
		r.lru.Removed(e)
	}
}

// state is what the room knows of a blob.
type state struct {
	size     int64 // bytes
	cached   bool
	manifest bool // it is cached, and a manifest
	partial  bool // there is a parked partial: an unfinished one that nobody works on
}

// state returns what the room knows of d. The zero value is an unknown blob.
func (r *room) state(d digest.Digest) state {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e == nil {
		return state{partial: r.lru.HasPartial(d)}
	}
	return state{size: e.Size, cached: true, manifest: e.Value.has(isManifest)}
}

// count returns the number of whole entries.
func (r *room) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lru.Usage().Entries
}

func (r *room) isPrivate(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.Value.has(isPrivate)
}

// verified notes that the file of e has been hashed and is right. It reports false when e has
// been removed meanwhile: then what was hashed may have been the file of another entry. A
// blob that once came through a private repository stays private.
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

// markManifest notes that blob d is a manifest. If hashed is set, its bytes have been hashed
// and are right. It returns a copy of the entry, empty when d isn't cached, and whether it has
// become a manifest by this.
func (r *room) markManifest(d digest.Digest, hashed bool) (e entry, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.lru.Peek(d)
	if now == nil {
		return entry{}, false
	}
	if changed = !now.Value.has(isManifest); changed {
		now.Value.bits |= isManifest
		r.manifests++
		r.kickPins()
	}
	if hashed {
		now.Value.bits &^= unverified
	}
	return *now, changed
}

// load adds an entry that is on disk, as the most recently used one. mu is held, or nobody
// else is there yet.
func (r *room) load(e *entry) {
	r.lru.Load(e, e.Value.again(e.Value.used)) // proven if its last use wasn't the first
	if e.Value.has(isManifest) {
		r.manifests++
	}
	r.arrived(e)
}

// adopt adds e, unless there is an entry or a partial already, or its file is about to be unlinked.
func (r *room) adopt(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lru.Peek(e.Key) != nil || r.unlinking[e.Key] != nil || r.lru.HasPartial(e.Key) {
		return false
	}
	r.load(e)
	return true
}

// found notes that the walk of reconcile has found the file of d, and returns its last use, in
// Unix nanoseconds. ok is false when there is no entry of it.
func (r *room) found(d digest.Digest) (used int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e == nil {
		return 0, false
	}
	e.Value.bits |= onDisk
	return e.Value.used, true
}

// notFound returns the blobs that the walk of reconcile has not found, and clears the marks of
// the walk. They are lost, or came in during the walk.
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

// stats returns what the room knows of Stats.
func (r *room) stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, inFiles := r.lru.Usage(), r.reservedInFiles()
	st := Stats{
		Bytes:         u.Used + inFiles,
		ReservedBytes: u.Reserved - inFiles,
		BudgetBytes:   u.Max,
		PinnedBytes:   u.Pinned,
		Manifests:     r.manifests,
		Blobs:         int64(u.Entries) - r.manifests,
		Evictions:     r.evictions,
		EvictedBytes:  r.evictedBytes,
		EvictedFor:    maps.Clone(r.evictedFor),
		SlowReaders:   r.recipients.Cut(),
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

// reservation is the part of the budget that one ingest has reserved. It owns the number: only
// its methods and room.reserveNow change it. It ends with commit, park, discard or giveBack;
// then it is empty and can't grow again. Its methods are safe for concurrent use, but only one
// caller, the ingest's owner, may resize or end it.
type reservation struct {
	room     *room
	digest   digest.Digest
	reserved atomic.Int64 // bytes; changed only while room.mu is held
	inFile   atomic.Int64 // bytes of reserved by which the file has grown; on disk only where fallocate works
	ended    atomic.Bool  // changed only while room.mu is held
}

// bytes returns how many bytes are reserved.
func (v *reservation) bytes() int64 { return v.reserved.Load() }

// grow reserves n more bytes, for which room is made. Errors: ErrNoRoom, also when it has ended.
func (v *reservation) grow(n int64) error { return v.room.reserve(v, n) }

// resize reserves more bytes, or gives some back, so that n are reserved. Errors: ErrNoRoom.
func (v *reservation) resize(n int64) error {
	more := n - v.bytes()
	if more > 0 {
		return v.grow(more)
	}
	v.room.mu.Lock()
	defer v.room.mu.Unlock()
	v.room.lru.Unreserve(-more)
	v.reserved.Add(more)
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
	v.reserved.Store(e.Size)
	v.inFile.Store(e.Size)
	v.room.reservations[v] = struct{}{}
	return true
}

// commit turns it into the whole entry e. room.mu is held.
func (v *reservation) commit(e *entry) {
	v.room.lru.Commit(v.end(), e)
	u := v.room.lru.Usage()
	v.room.shortages.fetched(e.Key, e.Size, v.room.evictedBytes, u.Used-u.Leaving+u.Reserved)
	if e.Value.has(isManifest) {
		v.room.manifests++
	}
	v.room.arrived(e)
}

// park turns it into the partial e, which nobody works on. room.mu is held.
func (v *reservation) park(e *entry) { v.room.lru.Park(v.end(), e) }

// discard turns it into e, whose file is unlinked and may still be read. room.mu is held.
func (v *reservation) discard(e *entry) { v.room.lru.Discard(v.end(), e) }

// giveBack gives all of it back. room.mu is held.
func (v *reservation) giveBack() { v.room.lru.Unreserve(v.end()) }

// end empties it and returns what it held. room.mu is held.
func (v *reservation) end() int64 {
	delete(v.room.reservations, v)
	v.ended.Store(true)
	v.inFile.Store(0)
	return v.reserved.Swap(0)
}
