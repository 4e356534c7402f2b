// Package storage keeps content-addressed blobs in a directory, within a byte budget.
//
// The files are the truth. The index knows sizes, last uses, tags and which repository has
// which blob, and is rebuilt from the files when it is lost (docs/design/disk-format.md).
//
// A blob comes in through an Ingest, which many readers can follow while it grows, and is
// served from a Blob. An error for something that isn't there is fs.ErrNotExist.
package storage

import (
	"cmp"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/disk"
	"github.com/hubcache/hubcache/lru"
)

// Options is what Open needs. Dir must be set.
type Options struct {
	Dir     string       // created, with mode 0700, when missing
	Budget  int64        // bytes that blobs/ and ingest/ may hold together
	MinFree int64        // bytes of the file system that are left free, whatever the budget
	Log     *slog.Logger // nil: slog.Default

	// Patience is how long a client may take for 2 MiB while room is short (Recipient). 0: a minute.
	Patience time.Duration

	// IndexOpened is called with the open database of the index. It is for tests, which can
	// then make transactions of their own, for example one that makes readers wait.
	IndexOpened func(*bbolt.DB)
}

// Store is the cache on disk. All methods are safe for concurrent use.
//
// A crash loses at most the last uses of a minute, the pulls counted in ten seconds, the newest
// bytes of unfinished downloads, and what the index was told a moment ago: a blob that the index
// doesn't know is found by its file, and hashed before it is served; a tag or link is asked for
// again. A power cut may also lose manifests that came in within half a minute. Everything else
// that has been committed stays.
//
// The Store has seven parts, each with a mutex of its own. Locks are taken in this order:
//
//	pulls.noting, pins.changing, room.evicting, files.mu, room.mu, Ingest.mu, then one of
//	pins.mu, Recipients.mu, Recipient.mu, catalogue.mu, repositories.mu, repoWriter.mu,
//	pulls.mu, freeSpace.mu, freeInodes.mu, shortages.mu, and last those of package index.
//
// No lock that guards data is held during I/O or while the index is read: a read of the index
// can wait for a write that waits for other reads. Six locks only queue work of one kind and
// are held during it: pins.changing, room.evicting, pulls.noting, Ingest.stateFile, Ingest.rest and
// Index.writing.
type Store struct {
	files     files
	room      room
	catalogue catalogue
	repos     repositories
	pins      pins
	pulls     pulls
	house     housekeeping
}

// Open opens or creates the store in o.Dir. A damaged index is set aside and rebuilt.
//
// Errors: the directory can't be created or written; another process has it open;
// NewerFormatError when a newer hubcache has written to it what this one can't read.
func Open(o Options) (*Store, error) {
	s := newStore(o)
	l := s.files.layout
	for _, dir := range []string{o.Dir, l.blobs(), l.ingest(), l.repos()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.pins.load(); err != nil {
		return nil, err
	}
	if err := s.house.load(); err != nil {
		return nil, err
	}
	s.pins.apply()
	s.room.shrink()
	s.house.start()
	return s, nil
}

// newStore returns a Store with nothing loaded and nothing running.
func newStore(o Options) *Store {
	log := cmp.Or(o.Log, slog.Default())
	faults := &faults{log: log, dir: o.Dir, foreign: map[string]bool{}}
	s := &Store{}
	s.files = files{
		layout:    layout(o.Dir),
		faults:    faults,
		room:      &s.room,
		catalogue: &s.catalogue,
		ingests:   map[digest.Digest]*Ingest{},

		folderLost: s.house.folderLost,
	}
	s.room = room{
		evictedFor:   map[EvictionReason]Evicted{},
		files:        &s.files,
		catalogue:    &s.catalogue,
		inodes:       freeInodes{measure: func() (disk.Space, error) { return disk.Measure(o.Dir) }},
		lru:          lru.New[digest.Digest, info](o.Budget),
		kickPins:     s.pins.kick,
		reservations: map[*reservation]struct{}{},
		unlinking:    map[digest.Digest]chan struct{}{},
		recipients:   NewRecipients(o.Patience),
		isShort:      make(chan struct{}, 1),
	}
	s.room.shortages = newShortages()
	s.room.space.measure = s.room.space.measured(o.Dir)
	s.room.minFree.Store(o.MinFree)
	s.catalogue.repositories = &s.repos
	s.repos = repositories{
		catalogue: &s.catalogue,
		cached:    func(d digest.Digest) bool { return s.room.state(d).cached },
		files:     &s.house.repos,
		transient: newTransient(),
		kept:      map[string]bool{},
	}
	s.pins = pins{store: s, path: s.files.layout.pins(), faults: faults, log: log, kicked: make(chan struct{}, 1)}
	s.pulls = pulls{catalogue: &s.catalogue, has: s.hasImage, full: s.house.flushSoon, counts: map[taggedName]unnotedPulls{}}
	s.house = housekeeping{
		pulls:       &s.pulls,
		pins:        &s.pins,
		files:       &s.files,
		room:        &s.room,
		catalogue:   &s.catalogue,
		faults:      faults,
		log:         log,
		indexOpened: o.IndexOpened,
		dirty:       make(chan struct{}, 1),
		lost:        make(chan struct{}, 1),
		stop:        make(chan struct{}),
	}
	s.house.repos = repoWriter{
		layout:    layout(o.Dir),
		catalogue: &s.catalogue,
		manifest:  func(d digest.Digest) bool { return s.room.state(d).manifest },
		pinned:    s.pins.has,
		flush:     s.house.flush,
		faults:    faults,
		log:       log,
		stop:      s.house.stop,
		swept:     make(chan struct{}, 1),
		noted:     make(chan struct{}, 1),
		done:      make(chan struct{}),
		behind:    map[string]*behind{},
	}
	return s
}

// Close writes what is only in memory and closes the index. Ingests must have ended.
// Errors: that the index can't be written or closed.
func (s *Store) Close() error { return s.house.close() }

// Dir returns the data directory.
func (s *Store) Dir() string { return filepath.Clean(string(s.files.layout)) }

// SetLimits changes the budget and the free space to keep, both in bytes. When they shrink,
// entries leave before SetLimits returns; what is being read leaves when its readers close it.
// Pins that don't fit into their share of the new budget aren't protected any more.
func (s *Store) SetLimits(budget, minFree int64) {
	s.room.setLimits(budget, minFree)
	s.pins.apply()
	s.room.shrink()
}

// Budget returns the budget in bytes.
func (s *Store) Budget() int64 { return s.room.budget() }

// Unpinned returns how many bytes of the budget are not pinned.
func (s *Store) Unpinned() int64 { return s.room.budget() - s.room.pinned() }

// Has reports the size in bytes of blob d without opening it; ok is false when it isn't there.
func (s *Store) Has(d digest.Digest) (size int64, ok bool) {
	st := s.room.state(d)
	return st.size, st.cached
}

// Partial returns the size in bytes of an unfinished blob that Begin would resume, and what
// it lacks; nothing when there is none.
func (s *Store) Partial(d digest.Digest) (size int64, missing []Span) {
	if !s.room.state(d).partial {
		return 0, nil
	}
	st, ok := readState(s.files.layout.partialState(d))
	if !ok {
		return 0, nil
	}
	return st.Size, st.Ranges.missing(st.Size)
}

// Open opens the blob d. It is not a use: call Touch for that.
//
// Errors: fs.ErrNotExist with the reason when it isn't there, which includes a file that was
// deleted, truncated or replaced by someone else; another error when it can't be told.
func (s *Store) Open(d digest.Digest) (*Blob, error) { return s.files.open(d, true) }

// Touch says that blob d is used now, and, if it is a manifest, all that is cached of what it
// names, so that the layers of an image in use don't grow old when its clients have them
// already. Uses within the same second are one.
func (s *Store) Touch(d digest.Digest) { s.room.touch(d, time.Now().UnixNano(), 0) }

// ImageAsked says that a client asks for an image, of this name, manifest and size in bytes. Stats
// say if it is larger than the budget, or what pins leave of it.
func (s *Store) ImageAsked(image string, manifest digest.Digest, bytes int64) {
	s.room.shortages.asked(image, manifest, bytes)
}

// Remove drops blob d, if it is there. Its readers can read on.
func (s *Store) Remove(d digest.Digest) { s.room.remove(d, nil) }

// Link returns what links blob d to the repository. Errors: fs.ErrNotExist when nothing does.
func (s *Store) Link(repository string, d digest.Digest) (Link, error) {
	return s.catalogue.linkOf(repository, d)
}

// Confirm links blob d, of so many bytes or -1 if unknown, to the repository, because upstream
// answered for it there.
func (s *Store) Confirm(repository string, d digest.Digest, size int64) {
	if s.catalogue.link(repository, d, Link{true, size}) {
		s.house.flushSoon()
	}
}

// Tag returns what a tag last resolved to; its manifest need not be cached.
// Errors: fs.ErrNotExist.
func (s *Store) Tag(repository, tag string) (Tag, error) { return s.repos.tag(repository, tag) }

// SetTag keeps what a tag resolves to. While its manifest has never been cached, that is in
// memory only, for a bounded number of tags.
func (s *Store) SetTag(repository, tag string, t Tag) {
	if s.repos.setTag(repository, tag, t) {
		s.house.flushSoon()
		s.house.repos.changed(repository)
		s.pins.kick()
	}
}

// DeleteTag forgets a tag; its manifest stays until it is evicted.
func (s *Store) DeleteTag(repository, tag string) {
	if s.repos.deleteTag(repository, tag) {
		s.house.flushSoon()
		s.house.repos.changed(repository)
		s.pins.kick()
	}
}

// Visibility returns whether the repository is public. Errors: fs.ErrNotExist when it isn't
// known.
func (s *Store) Visibility(repository string) (Visibility, error) {
	return s.repos.visibility(repository)
}

// SetVisibility keeps whether the repository is public. While nothing of the repository is
// cached, that is in memory only, for a bounded number of repositories.
func (s *Store) SetVisibility(repository string, v Visibility) {
	s.repos.setVisibility(repository, v)
}

// Repositories returns the names, sorted, of those under a registry ("docker.io") that have a
// tag whose manifest is cached. Errors: that the index can't be read.
func (s *Store) Repositories(registry string) ([]string, error) {
	return s.repos.names(registry)
}

// Stats is a snapshot of what the store holds. Sizes are in bytes.
type Stats struct {
	Bytes         int64 // file sizes in blobs/ and ingest/
	ReservedBytes int64 // room held for downloads whose files have not grown yet
	PinnedBytes   int64 // of Bytes: what is never evicted
	BudgetBytes   int64
	IndexBytes    int64 // the index; not part of the budget
	DiskBytes     int64 // of the file system, 0 while it can't be measured
	DiskFreeBytes int64 // of it, for this process; like DiskBytes at the last measurement, within ten seconds

	Blobs     int64 // committed, without manifests
	Manifests int64
	Tags      int64
	Pins      int64 // images that are pinned, protected or not

	Evictions    int64
	EvictedBytes int64
	EvictedFor   map[EvictionReason]Evicted // the same by reason; what is absent is 0
	SlowReaders  int64                      // clients that were cut off because they kept room that others needed
	Corrupt      int64                      // blobs dropped because their bytes had changed on disk
	WriteErrors  int64                      // disk errors; the clients were served all the same
	OldestUse    time.Time                  // the oldest last use among the next victims of both segments of the lru; zero when the store is empty

	Shortages []Shortage // what the cache is too small for
}

// EvictionReason says what room was made for by an eviction.
type EvictionReason string

// The reasons.
const (
	ForBudget  EvictionReason = "budget"   // the cache would have passed its budget
	ForMinFree EvictionReason = "min_free" // the file system had too little space left
	ForInodes  EvictionReason = "inodes"   // the file system had too few inodes left
)

// Evicted counts blobs, manifests and partial downloads that were evicted, with their bytes.
type Evicted struct{ Count, Bytes int64 }

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	st := s.room.stats()
	st.IndexBytes = s.catalogue.index.Size()
	st.Pins, st.Shortages = int64(len(s.pins.pinned())), s.tooSmall()
	st.DiskBytes, st.DiskFreeBytes = s.room.space.size.Load(), s.room.space.free.Load()
	st.Tags = s.repos.tags.Load()
	st.WriteErrors = s.files.faults.writeErrors.Load()
	st.Corrupt = s.files.faults.corrupt.Load()
	return st
}

// tooSmall returns what the cache is too small for.
func (s *Store) tooSmall() []Shortage {
	all := s.room.tooSmall()
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	if s.pins.short != nil {
		all = append(all, *s.pins.short)
	}
	return all
}

// missing is a miss with its reason.
type missing struct{ why string }

func (m missing) Error() string        { return m.why }
func (m missing) Is(target error) bool { return target == fs.ErrNotExist }
