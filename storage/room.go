package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// claim makes in the one ingest of its digest.
func (s *Store) claim(in *Ingest) error {
	if !s.walked.Load() {
		s.adoptFound(in.digest) // or it would be adopted beside what comes in, or not at all
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch old := s.unlinking[in.digest]; {
		case old != nil:
			// A file of that name is about to go, and must not take the new one along.
			s.mu.Unlock()
			<-old
			s.mu.Lock()
		case s.ingests[in.digest] != nil:
			return ErrBusy
		case s.lru.Peek(in.digest) != nil:
			return fs.ErrExist
		default:
			s.ingests[in.digest] = in
			in.parked = in.room.unpark(in.digest) // at once, or it might be chosen as a victim
			return nil
		}
	}
}

// unclaim ends the claim; last is called with mu held and does the accounting.
func (s *Store) unclaim(in *Ingest, last func()) {
	s.mu.Lock()
	last()
	delete(s.ingests, in.digest)
	s.mu.Unlock()
}

// reserve adds n bytes to r, for which room is made when it can be had at once.
// Errors: ErrNoRoom.
func (s *Store) reserve(r *reservation, n int64) error {
	if n > s.Budget() {
		return ErrNoRoom // and sums of what upstream claims don't overflow
	}
	if s.shortOfSpace(n) <= 0 && s.reserveNow(r, n) {
		return nil
	}
	s.making.Lock()
	defer s.making.Unlock()
	// Measured once: some file systems count freed room only later.
	for short := s.shortOfSpace(n); ; {
		if short <= 0 && s.reserveNow(r, n) {
			return nil
		}
		s.mu.Lock()
		victims := s.pick(s.lru.Victims(n, short))
		s.mu.Unlock()
		if len(victims) == 0 {
			if short <= 0 && s.reserveNow(r, n) { // somebody has given room back meanwhile
				return nil
			}
			return ErrNoRoom
		}
		s.unlink(victims)
		for _, e := range victims {
			short -= e.Size
		}
	}
}

func (s *Store) reserveNow(r *reservation, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lru.Reserve(n) {
		return false
	}
	r.held.Add(n)
	s.reservations[r] = struct{}{}
	return true
}

// shortOfSpace returns how many bytes have to leave the file system so that n more fit
// and the free space to keep is kept; 0 or less when none.
func (s *Store) shortOfSpace(n int64) int64 {
	return s.space.short(n, s.minFree.Load()+s.promised())
}

// promised returns how many bytes are reserved that no file has yet.
func (s *Store) promised() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.lru.Usage().Reserved-s.reservedInFiles())
}

// reservedInFiles returns how many reserved bytes are in files already. mu is held.
func (s *Store) reservedInFiles() (n int64) {
	for r := range s.reservations {
		n += r.inFile.Load()
	}
	return n
}

// shrink evicts what is over the budget and what has to go for the free space to keep.
func (s *Store) shrink() {
	s.making.Lock()
	defer s.making.Unlock()
	short := s.shortOfSpace(0)
	s.mu.Lock()
	victims := s.pick(s.lru.Shed(short))
	s.mu.Unlock()
	s.unlink(victims)
}

// pick books entries as victims of eviction. mu is held.
func (s *Store) pick(victims []*entry) []*entry {
	for _, e := range victims {
		s.evictions++
		s.evicted += e.Size
		s.leave(e)
	}
	return victims
}

// leave books that e is out of the lru and about to be unlinked. mu is held.
func (s *Store) leave(e *entry) {
	if e.Value.has(isManifest) {
		s.manifests--
	}
	s.unlinking[e.Key] = make(chan struct{})
	s.lru.Hold(e) // until its file is unlinked: a reader who leaves before that is not the last
}

// unlink removes the files of entries that leave. making is held, mu is not.
func (s *Store) unlink(victims []*entry) {
	for _, e := range victims {
		s.mu.Lock()
		partial := e.Value.has(isPartial)
		s.mu.Unlock()
		if partial {
			s.removeFile(s.layout.partialState(e.Key))
			s.removeFile(s.layout.partial(e.Key))
		} else {
			s.removeFile(s.layout.blob(e.Key))
			s.index.Delete(bucketBlobs, []byte(e.Key))
			s.index.Delete(bucketUses, []byte(e.Key))
		}
		s.mu.Lock()
		close(s.unlinking[e.Key])
		delete(s.unlinking, e.Key)
		if s.lru.Release(e) {
			s.lru.Removed(e)
		}
		s.mu.Unlock()
	}
}

func (s *Store) removeFile(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.diskFailed(err)
	}
}

// Remove drops blob d, if it is there. Its readers go on.
func (s *Store) Remove(d digest.Digest) { s.removeIf(d, func(*entry) bool { return true }) }

// removeIf is Remove for the entry that is meant, which may have been replaced meanwhile.
func (s *Store) removeIf(d digest.Digest, meant func(*entry) bool) {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	e := s.lru.Peek(d)
	if meant(e) {
		e = s.lru.Remove(d)
	} else {
		e = nil
	}
	if e != nil {
		s.leave(e)
	}
	s.mu.Unlock()
	if e != nil {
		s.unlink([]*entry{e})
	}
}

// The modes of blobs' files. That one came through a private repository is in the file's
// own mode, the owner's x, because it must not be forgotten with the index.
const (
	modePublic  = 0o400
	modePrivate = 0o500
	privateBit  = 0o100
)

// commit makes a verified ingest a blob: fsync, chmod, rename, fsync of the folder, index.
//
// A client waits for the commit of a manifest, and so it isn't synced: whoever reads one
// from disk hashes it (Open), so that a power cut costs a fetch and nothing worse. What must
// outlive the index, that it is private, is still made sure of.
func (s *Store) commit(in *Ingest) error {
	synced := in.manifest == nil || in.from.Private
	if synced {
		if err := in.f.Sync(); err != nil {
			return err
		}
	}
	// Not before the long part: a partial that a crash leaves must be open to writing.
	mode := fs.FileMode(modePublic)
	if in.from.Private {
		mode = modePrivate
	}
	if err := in.f.Chmod(mode); err != nil {
		return err
	}
	id, err := identify(in.f)
	if err != nil {
		return err
	}
	if err := place(s.layout.partial(in.digest), s.layout.blob(in.digest), synced); err != nil {
		return err
	}
	os.Remove(s.layout.partialState(in.digest))
	r := record{fileID: id, private: in.from.Private}
	if in.manifest != nil {
		r.manifest, r.mediaType, r.children = true, in.manifest.MediaType, in.manifest.Children
	}
	s.admit(in, r)
	s.link(in.from.Repository, in.digest, Link{true, id.size})
	s.flushSoon()
	return nil
}

// admit books a committed ingest as an entry, under one lock, so that it is never neither.
func (s *Store) admit(in *Ingest, r record) {
	now := time.Now()
	s.index.Set(bucketBlobs, []byte(in.digest), r.encode())
	s.index.Set(bucketUses, []byte(in.digest), encodeTime(now))
	e := r.entry(in.digest, now.UnixNano())
	s.unclaim(in, func() {
		in.room.commit(e)
		if r.manifest {
			s.manifests++
		}
		in.become(e)
	})
}

// entry returns what the lru keeps of r.
func (r *record) entry(d digest.Digest, used int64) *entry {
	e := &entry{Key: d, Size: r.size, Value: info{ino: r.ino, mtime: r.mtime, used: used}}
	if r.manifest {
		e.Value.bits |= isManifest
	}
	if r.private {
		e.Value.bits |= isPrivate
	}
	if r.unverified {
		e.Value.bits |= unverified
	}
	return e
}

// flush writes the index; when that fails it is tried again by keepHouse.
func (s *Store) flush() {
	if err := s.index.Flush(); err != nil {
		s.diskFailed(err)
	}
}

// flushSoon has the index written at once, without waiting for it: those who come meanwhile
// share one synced transaction, where each had one of its own and waited for those before.
func (s *Store) flushSoon() {
	select {
	case s.dirty <- struct{}{}:
	default: // it's going to be
	}
}

// writeIndex writes the index whenever flushSoon asks.
func (s *Store) writeIndex() {
	for {
		select {
		case <-s.dirty:
			s.flush()
		case <-s.stop:
			return
		}
	}
}

// place renames a finished file to where it belongs, durably if it shall be synced.
func place(from, to string, synced bool) error {
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if !synced {
		return nil
	}
	// Some file systems can't sync a folder, and need it no more than that.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		os.Remove(to) // it isn't booked
		return err
	}
	return nil
}
