package storage

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hubcache/hubcache/disk"
)

// freeSpace is what the file system has left. To measure it takes a third of the time of an
// eviction. So while there is far more than is needed, the last answer is used for a moment,
// less what has been promised since.
type freeSpace struct {
	size, free atomic.Int64 // bytes, at the last measurement; for Stats, which waits for no disk

	// mu guards what follows. It is never held while measure runs, and no other lock is taken
	// while it is held.
	mu       sync.Mutex
	measure  func() (bytes int64, err error)
	left     int64     // bytes
	promised int64     // bytes, since the start
	until    time.Time // when left is out of date
}

// Others write to the file system too. No disk takes more than spaceMargin bytes in spaceFresh:
// that would be 10 GiB a second.
const (
	spaceFresh  = 100 * time.Millisecond
	spaceMargin = 1 << 30
)

// measured returns a function for measure that measures the file system of path.
func (f *freeSpace) measured(path string) func() (int64, error) {
	return func() (int64, error) {
		s, err := disk.Measure(path)
		if err == nil {
			f.size.Store(s.Total)
			f.free.Store(s.Available)
		}
		return s.Available, err
	}
}

// short returns how many bytes have to leave the file system so that n more fit and keep
// are left; 0 or less when none.
func (f *freeSpace) short(n, keep int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.After(f.until) || f.left-n-keep < spaceMargin {
		measure, before := f.measure, f.promised
		f.mu.Unlock()
		free, err := measure()
		f.mu.Lock()
		if err != nil {
			return -1
		}
		// What was promised during the measurement may not be in it.
		f.left, f.until = free-(f.promised-before), now.Add(spaceFresh)
	}
	f.left -= n
	f.promised += n
	return keep - f.left
}

// freeInodes is how many files the file system has room for, where it can run out of them: ext4
// and tmpfs have a fixed number. Without one no blob comes in, however many bytes are free.
type freeInodes struct {
	// mu guards what follows. It is held during a measurement, and no other lock is taken
	// while it is held.
	mu      sync.Mutex
	measure func() (disk.Space, error)
	until   time.Time // before it there are enough
}

// At least one inode of inodeShare is left, but no more than inodesLeft for this reason alone:
// enough for what comes in within spaceFresh, three files and a folder for each blob, and for the
// files of the index and of repositories.
const (
	inodeShare = 20
	inodesLeft = 1024
	// inodeMargin is how many more have to be free for the next measurement to wait for
	// spaceFresh: no disk makes as many files in that time.
	inodeMargin = 10_000
)

// short returns how many inodes have to become free so that the file system keeps the share of
// them that minFree bytes are of its size; 0 or less when none.
func (f *freeInodes) short(minFree int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Before(f.until) {
		return 0
	}
	s, err := f.measure()
	// Some file systems have no number of inodes, and some say one that can't be.
	if err != nil || s.Inodes <= 0 || s.InodesFree < 0 || s.InodesFree > s.Inodes || s.Total <= 0 {
		f.until = now.Add(spaceFresh)
		return 0
	}
	share := int64(float64(s.Inodes) * min(float64(minFree)/float64(s.Total), 1))
	short := max(share, min(s.Inodes/inodeShare, inodesLeft)) - s.InodesFree
	if short <= -inodeMargin {
		f.until = now.Add(spaceFresh)
	}
	return short
}

// free evicts an entry of r for each inode that has to become free. If there are not enough
// entries, what comes in may still find an inode, so nothing is refused. r.evicting is held.
func (f *freeInodes) free(r *room) {
	for n := f.short(r.minFree.Load()); n > 0; n-- {
		r.mu.Lock()
		victims := r.evict(r.lru.Victims(0, 1), ForInodes)
		r.mu.Unlock()
		if len(victims) == 0 {
			return
		}
		r.unlink(victims)
	}
}
