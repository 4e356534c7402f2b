package storage

import (
	"cmp"
	"io/fs"
	"math"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A use mark is the last use of a blob in the access time of its file, so that a crash, or the
// loss of the index, doesn't make the blob that is used all the time the oldest. The index is
// written every ten seconds, and a process may not live that long.
//
// A mark is a whole second. An access time that the kernel sets has nanoseconds, so that a backup
// which reads all files isn't taken for a use. hubcache itself opens the files with O_NOATIME.

// markEvery is how far a use mark may be behind the last use. To write one for each use would
// be the slowest part of a hit.
const markEvery = time.Minute

// needsMark reports whether a use at the time now is to be marked, if the one before was at the
// time used. Both are in Unix nanoseconds. Each minute in which a blob is used has one mark, also
// when the uses follow each other in less than a minute.
func needsMark(used, now int64) bool { return used/int64(markEvery) != now/int64(markEvery) }

// markUse writes the use mark of the file at path. The file may be gone, and a file system
// may keep no access times: then the mark is missing, as after a restore from a backup.
func markUse(path string, at int64) {
	atime := unix.Timespec{Sec: at / int64(time.Second)}
	mtime := unix.Timespec{Nsec: unix.UTIME_OMIT}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// lastUseOf returns the last use of a blob's file as far as the file says: its use mark, or when it
// came in. A time ahead of the time now was set while the clock was wrong: ahead is true then, and
// the other one counts, or now if both are ahead. All are in Unix nanoseconds.
func lastUseOf(fi fs.FileInfo, now int64) (at int64, ahead bool) {
	times := []int64{fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Atim.Nsec == 0 {
		times = append(times, int64(st.Atim.Sec)*int64(time.Second))
	}
	at = math.MinInt64
	for _, t := range times {
		if t > now {
			ahead = true
		} else {
			at = max(at, t)
		}
	}
	if at == math.MinInt64 {
		at = now
	}
	return at, ahead
}

// lastUse is lastUseOf the file of d. It corrects a mark that is ahead of the clock, so that the
// blob grows old, and doesn't count as used when that time comes.
func (f *files) lastUse(d digest.Digest, fi fs.FileInfo, now int64) int64 {
	at, ahead := lastUseOf(fi, now)
	if ahead {
		markUse(f.layout.blob(d), at)
	}
	return at
}

// openQuietly opens the file of a blob. Reads leave its access time alone, which is its use mark.
// Errors: those of os.Open.
func openQuietly(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	if os.IsPermission(err) { // somebody else owns the file
		return os.Open(path)
	}
	return file, err
}

// maxDepth is how many levels of image indexes touch follows; real images have two.
const maxDepth = 4

// touch says that d is used at the time now, in Unix nanoseconds, and with a manifest all that
// is cached of what it names. Uses of the same second count once. Callers pass depth 0.
func (r *room) touch(d digest.Digest, now int64, depth int) {
	r.mu.Lock()
	e := r.lru.Peek(d)
	if e == nil {
		r.mu.Unlock()
		return
	}
	r.lru.Use(d, e.Value.again(now))
	recent := now >= e.Value.used && now-e.Value.used < int64(time.Second)
	mark := needsMark(e.Value.used, now)
	if !recent {
		e.Value.used = now
		// With mu held, so that unlink's forget comes after it.
		r.catalogue.setUse(d, time.Unix(0, now))
	}
	manifest := e.Value.has(isManifest)
	r.mu.Unlock()
	if mark {
		markUse(r.files.layout.blob(d), now)
	}
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
	lists, _ := r.catalogue.referrersOf(d) // as above
	for _, list := range lists {
		r.touch(list, now, maxDepth)
	}
}

// UsedAt says that manifest d was used at the time at, with all that is cached of what it names, as
// another place knows it that it was imported from. A later use stays.
func (s *Store) UsedAt(d digest.Digest, at time.Time) {
	used := map[digest.Digest]int64{}
	s.room.collect(used, d, at.UnixNano(), 0)
	s.room.recoverUses(used)
	for d, at := range used {
		markUse(s.files.layout.blob(d), at)
	}
}

// collect adds d, and what is cached of what it names, to those whose last use is before at.
func (r *room) collect(used map[digest.Digest]int64, d digest.Digest, at int64, depth int) {
	r.mu.Lock()
	e := r.lru.Peek(d)
	older := e != nil && e.Value.used < at
	manifest := e != nil && e.Value.has(isManifest)
	r.mu.Unlock()
	if older {
		used[d] = at
	}
	if !manifest || depth == maxDepth {
		return
	}
	rec, err := r.catalogue.record(d)
	if err != nil {
		return
	}
	for _, c := range rec.children {
		r.collect(used, c.Digest, at, depth+1)
	}
}

// recoverUses takes over last uses, in Unix nanoseconds, that are later than what is known of
// a blob, and puts it where it belongs in the order of last use.
func (r *room) recoverUses(later map[digest.Digest]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := int64(math.MaxInt64) // what was used before stays where it is
	for d, used := range later {
		if e := r.lru.Peek(d); e != nil && e.Value.used < used {
			e.Value.used = used
			r.catalogue.setUse(d, time.Unix(0, used))
			first = min(first, used)
		}
	}
	r.reorder(first)
}

// reorderAll puts all entries into the order of their last uses.
func (r *room) reorderAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reorder(math.MinInt64)
}

// reorder puts the entries that were last used at the time first or later into the order of their
// last uses. mu is held.
func (r *room) reorder(first int64) {
	if first == math.MaxInt64 {
		return
	}
	var move []*entry
	r.lru.All(func(e *entry) {
		if e.Value.used >= first {
			move = append(move, e)
		}
	})
	slices.SortFunc(move, func(a, b *entry) int { return cmp.Compare(a.Value.used, b.Value.used) })
	for _, e := range move {
		r.lru.Use(e.Key, e.Value.again(e.Value.used))
	}
}
