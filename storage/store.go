// Package storage keeps content-addressed blobs in a directory, within a byte budget.
//
// The directory is the truth. index.db knows sizes, uses, tags and which repository has
// what, and is rebuilt from the files when it is lost (docs/disk-format.md).
//
// A blob comes in through an Ingest, which many readers can follow while it grows, and
// is served from a Blob. What is not there is an error that is fs.ErrNotExist.
package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/index"
	"github.com/hubcache/hubcache/lru"
)

// Options is what Open needs. Dir must be set.
type Options struct {
	Dir     string // created, 0700, when missing
	Budget  int64  // bytes that blobs/ and ingest/ may hold together
	MinFree int64  // bytes of the file system that are left free, whatever the budget
	Log     *slog.Logger

	// IndexOpened is called with the open database of the index. It is for tests, which can
	// then make transactions of their own, for example one that makes readers wait.
	IndexOpened func(*bbolt.DB)
}

// Store is the cache on disk. All methods are safe for concurrent use.
//
// A crash loses at most the uses of the last seconds, unfinished downloads' newest bytes, and
// what the index was told a moment ago: a blob that it doesn't know is found by its file, and
// hashed before it is served; a tag or link is asked for again. A power cut may also lose
// manifests that came in within half a minute. What else has been committed stays.
type Store struct {
	layout      layout
	log         *slog.Logger
	index       *index.Index
	indexOpened func(*bbolt.DB)
	minFree     atomic.Int64
	space       freeSpace

	// making serializes those who make room, so that each sees the room the one before
	// left. Held during unlinks; taken before mu.
	making sync.Mutex

	// mu guards what follows. It is never held during I/O, and taken before an
	// Ingest's mu.
	mu           sync.Mutex
	lru          *lru.Cache[digest.Digest, info]
	ingests      map[digest.Digest]*Ingest
	reservations map[*reservation]struct{}       // those that hold something
	unlinking    map[digest.Digest]chan struct{} // closed when the old file is off its name
	manifests    int64                           // among the entries of lru
	evictions    int64
	evicted      int64           // bytes
	changed      map[string]bool // repositories whose file is behind the index

	tags        atomic.Int64
	writeErrors atomic.Int64
	corrupt     atomic.Int64 // blobs dropped because their bytes had changed
	diskLogged  atomic.Int64 // Unix seconds of the last log line about a failing disk

	// linking makes looking at a link and setting it one step. Taken last but for the index's.
	linking sync.Mutex
	linked  map[string]bool // keys of links that were set or seen good since a sweep began; nil: none goes on

	amending sync.Mutex // by one at a time, or one's change of a record would be lost

	walked  atomic.Bool   // all files are in the books
	dirty   chan struct{} // of one: the index has something that should be written now
	stop    chan struct{}
	stopped sync.WaitGroup
}

type entry = lru.Entry[digest.Digest, info]

// info is what is known of a committed blob without asking disk or index.
type info struct {
	ino   uint64
	mtime int64 // Unix nanoseconds
	used  int64 // the same
	bits  bits
}

type bits uint8

const (
	isManifest bits = 1 << iota
	isPartial
	isPrivate  // came through a repository that isn't public
	unverified // found on disk without a record: hashed before it is served
	onDisk     // seen by the walk of reconcile
)

func (i *info) has(b bits) bool { return i.bits&b != 0 }

// settled is how long after it came in a blob's uses still belong to the one that brought
// it: a pull asks several times, and one deployment goes to several hosts.
const settled = 10 * time.Minute

// again reports whether a use at that time, in Unix nanoseconds, is another one than the
// first. What says when a blob came in is its file's time, so that it survives a restart.
func (i *info) again(use int64) bool { return use-i.mtime >= int64(settled) }

// Open opens or creates the store in o.Dir. A damaged index is set aside and rebuilt.
// Errors: the directory can't be created or written, or another process has it open.
func Open(o Options) (*Store, error) {
	s := newStore(o)
	for _, dir := range []string{o.Dir, s.layout.blobs(), s.layout.ingest(), s.layout.repos()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.shrink()
	s.stopped.Go(s.keepHouse)
	s.stopped.Go(s.writeIndex)
	return s, nil
}

// newStore is a Store with nothing loaded and nothing running.
func newStore(o Options) *Store {
	s := &Store{
		layout:       layout(o.Dir),
		log:          cmp.Or(o.Log, slog.Default()),
		indexOpened:  o.IndexOpened,
		lru:          lru.New[digest.Digest, info](o.Budget),
		ingests:      map[digest.Digest]*Ingest{},
		reservations: map[*reservation]struct{}{},
		unlinking:    map[digest.Digest]chan struct{}{},
		changed:      map[string]bool{},
		dirty:        make(chan struct{}, 1),
		stop:         make(chan struct{}),
	}
	s.space.measure = statfs(o.Dir)
	s.minFree.Store(o.MinFree)
	return s
}

// Close writes what is only in memory and closes the index. Ingests must have ended.
func (s *Store) Close() error {
	close(s.stop)
	s.stopped.Wait()
	s.writeRepos()
	return s.index.Close()
}

// SetLimits changes the budget and the free space to keep. When they shrink, what is too
// much leaves before SetLimits returns; what is being read leaves when its readers do.
func (s *Store) SetLimits(budget, minFree int64) {
	s.minFree.Store(minFree)
	s.mu.Lock()
	s.lru.SetMax(budget)
	s.mu.Unlock()
	s.shrink()
}

// Budget returns the budget in bytes.
func (s *Store) Budget() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lru.Usage().Max
}

// Partial returns the size of an unfinished blob that Begin would take up again, and what
// it lacks; nothing when there is none.
func (s *Store) Partial(d digest.Digest) (size int64, missing []Span) {
	s.mu.Lock()
	known := s.lru.HasPartial(d)
	s.mu.Unlock()
	if !known {
		return 0, nil
	}
	st, ok := readState(s.layout.partialState(d))
	if !ok {
		return 0, nil
	}
	return st.Size, st.Ranges.missing(st.Size)
}

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	inFiles, u := s.reservedInFiles(), s.lru.Usage()
	st := Stats{
		Bytes:         u.Used + inFiles,
		ReservedBytes: u.Reserved - inFiles,
		BudgetBytes:   u.Max,
		IndexBytes:    s.index.Size(),
		Manifests:     s.manifests,
		Blobs:         int64(u.Entries) - s.manifests,
		Tags:          s.tags.Load(),
		Evictions:     s.evictions,
		EvictedBytes:  s.evicted,
		WriteErrors:   s.writeErrors.Load(),
		Corrupt:       s.corrupt.Load(),
	}
	fresh, again := s.lru.Oldest()
	for _, e := range []*entry{fresh, again} {
		if e == nil {
			continue
		}
		if t := time.Unix(0, e.Value.used); st.OldestUse.IsZero() || t.Before(st.OldestUse) {
			st.OldestUse = t
		}
	}
	return st
}

// missing is a miss with its reason.
type missing struct{ why string }

func (m missing) Error() string        { return m.why }
func (m missing) Is(target error) bool { return target == fs.ErrNotExist }

// Blob is a committed blob, open for reading. Close it.
type Blob struct {
	*os.File // for sendfile; its offset is the caller's
	Digest   digest.Digest
	Size     int64 // bytes
	Private  bool  // came through a repository that isn't public
	s        *Store
	e        *entry
}

// Close ends the reading.
func (b *Blob) Close() error {
	err := b.File.Close()
	b.s.letGo(b.e) // an unlinked file takes room until it is closed
	return err
}

// Open opens the blob d. It is not a use: Touch says that.
// Errors: fs.ErrNotExist with the reason when it isn't there, which includes a file that
// was deleted, truncated or replaced behind the store's back; others when it can't be told.
func (s *Store) Open(d digest.Digest) (*Blob, error) {
	return s.openAs(d, func(i *info) {
		if i.has(isManifest) { // which wasn't synced
			i.bits |= unverified
		}
	})
}

// openUnread is Open for those who hash what they read.
func (s *Store) openUnread(d digest.Digest) (*Blob, error) { return s.openAs(d, func(*info) {}) }

// openAs opens d as adjust has it look.
func (s *Store) openAs(d digest.Digest, adjust func(*info)) (*Blob, error) {
	s.mu.Lock()
	e := s.lru.Peek(d)
	if e == nil {
		s.mu.Unlock()
		return nil, missing{"not cached"}
	}
	s.lru.Hold(e)
	was := e.Value
	s.mu.Unlock()
	adjust(&was)
	return s.openHeld(e, was)
}

// openHeld is Open for an entry that is held; the Blob or a failure lets it go.
func (s *Store) openHeld(e *entry, was info) (*Blob, error) {
	d := e.Key
	f, why, err := s.open(e, was)
	if why == "" && err == nil {
		s.mu.Lock()
		private := e.Value.has(isPrivate)
		s.mu.Unlock()
		return &Blob{f, d, e.Size, private, s, e}, nil
	}
	if why != "" {
		s.removeIf(d, func(now *entry) bool {
			if now == e {
				s.log.Warn("a cached blob is lost and will be fetched again", "digest", d, "reason", why)
			}
			return now == e
		})
		err = missing{why}
	}
	s.letGo(e)
	return nil, err
}

// open opens the file of e and compares it with what was committed. why says how it differs.
func (s *Store) open(e *entry, was info) (f *os.File, why string, err error) {
	f, err = os.Open(s.layout.blob(e.Key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "its file is gone", nil
	}
	if err != nil {
		return nil, "", err
	}
	id, err := identify(f)
	switch {
	case err != nil:
	case id.size != e.Size:
		why = fmt.Sprintf("its file has %d bytes instead of %d", id.size, e.Size)
	// Of another file the index has the record of an older one, if a crash came between.
	case id.ino != was.ino || id.mtime != was.mtime || was.has(unverified):
		why, err = s.settle(e, f, id)
	}
	if why != "" || err != nil {
		f.Close()
		return nil, why, err
	}
	return f, "", nil
}

// settle hashes a file that was found without a record, or with that of another one.
func (s *Store) settle(e *entry, f *os.File, id fileID) (why string, err error) {
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	private := fi.Mode().Perm()&privateBit != 0
	h := e.Key.Algorithm().Hash()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if digest.NewDigest(e.Key.Algorithm(), h) != e.Key {
		return "its bytes have another digest", nil
	}
	s.mu.Lock()
	if s.lru.Peek(e.Key) != e { // it has left meanwhile, and what was hashed may be another's file
		s.mu.Unlock()
		return "it was replaced", nil
	}
	e.Value.bits &^= unverified
	e.Value.ino, e.Value.mtime = id.ino, id.mtime
	if private {
		e.Value.bits |= isPrivate
	}
	s.mu.Unlock()
	s.amend(e.Key, func(r *record) {
		r.fileID, r.unverified, r.private = id, false, r.private || private
	})
	_, err = f.Seek(0, io.SeekStart)
	return "", err
}

// Has reports the size of blob d without opening it; ok is false when it isn't there.
func (s *Store) Has(d digest.Digest) (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.lru.Peek(d); e != nil {
		return e.Size, true
	}
	return 0, false
}

func (s *Store) letGo(e *entry) {
	s.mu.Lock()
	if s.lru.Release(e) {
		s.lru.Removed(e)
	}
	s.mu.Unlock()
}

// Touch says that blob d is used now; a manifest with all of its closure that is here, so
// that the layers of images in use don't age because clients have them already.
// Uses within the same second are one.
func (s *Store) Touch(d digest.Digest) { s.touch(d, time.Now().UnixNano(), 0) }

// maxDepth ends the descent into indexes that name indexes, or themselves: real ones
// are two deep.
const maxDepth = 4

func (s *Store) touch(d digest.Digest, now int64, depth int) {
	s.mu.Lock()
	e := s.lru.Peek(d)
	if e != nil {
		s.lru.Use(d, e.Value.again(now))
	}
	fresh := e != nil && now >= e.Value.used && now-e.Value.used < int64(time.Second)
	if e != nil && !fresh {
		e.Value.used = now
		s.index.Set(bucketUses, []byte(d), encodeTime(time.Unix(0, now)))
	}
	manifest := e != nil && e.Value.has(isManifest)
	s.mu.Unlock()
	if !manifest || fresh || depth == maxDepth {
		return
	}
	r, err := s.record(d)
	if err != nil {
		return // the manifest itself is younger now, and that is all that can be done
	}
	for _, c := range r.children {
		s.touch(c.Digest, now, depth+1)
	}
}

func (s *Store) record(d digest.Digest) (record, error) {
	v, err := s.index.Get(bucketBlobs, []byte(d))
	if err != nil {
		return record{}, err
	}
	if v == nil {
		return record{}, missing{"not in the index"}
	}
	return decodeRecord(v)
}

// diskFailed counts and logs, at most once a minute: a full disk fails many times a second.
func (s *Store) diskFailed(err error) {
	s.writeErrors.Add(1)
	now, last := time.Now().Unix(), s.diskLogged.Load()
	if now-last >= 60 && s.diskLogged.CompareAndSwap(last, now) {
		s.log.Error("the cache disk fails; clients are served past it", "error", err, "dir", string(s.layout))
	}
}

// identify returns what fstat says of f.
func identify(f *os.File) (fileID, error) {
	fi, err := f.Stat()
	if err != nil {
		return fileID{}, err
	}
	return fileIDOf(fi), nil
}

// Dir returns the data directory.
func (s *Store) Dir() string { return filepath.Clean(string(s.layout)) }
