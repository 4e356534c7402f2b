package storage

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/disk"
)

// fakeDisk is a file system that others write to as well.
type fakeDisk struct {
	free  int64
	asked int
	err   error
}

func (d *fakeDisk) measure() (int64, error) {
	d.asked++
	return d.free, d.err
}

// TestPromisesCountAtOnce: what has been promised and isn't written yet is not promised again, however
// fast the calls come.
func TestPromisesCountAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no time passes
		const keep, n = 1 << 30, 300 << 20
		promised := int64(0)
		// What was promised has been written when the space is measured.
		f := freeSpace{measure: func() (int64, error) { return 10<<30 - promised, nil }}
		for range 1000 {
			if f.short(n, keep) > 0 {
				break
			}
			promised += n
		}
		if promised > 9<<30 || promised < 8<<30 {
			t.Errorf("%d MiB were promised of 9 GiB", promised>>20)
		}
	})
}

// TestFreeSpaceIsMeasuredSeldomButInTime: while there is plenty of space it is measured once in a
// while, and near the limit each time.
func TestFreeSpaceIsMeasuredSeldomButInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const keep = 1 << 30
		d := &fakeDisk{free: 100 << 30}
		f := freeSpace{measure: d.measure}
		for range 1000 {
			if f.short(1<<20, keep) > 0 {
				t.Fatal("short with 100 GiB")
			}
		}
		if d.asked != 1 {
			t.Errorf("asked %d times while there is plenty", d.asked)
		}
		d.free = 2 << 30 // somebody else writes
		time.Sleep(spaceFresh + 1)
		if short := f.short(2<<30, keep); short != 1<<30 {
			t.Errorf("%d short, want 1 GiB", short)
		}
		// Near the limit it is measured each time.
		for range 3 {
			d.free -= 1 << 20
			if short := f.short(0, keep); short != keep-d.free {
				t.Errorf("%d short with %d free", short, d.free)
			}
		}
		d.free = 100 << 30
		if short := f.short(0, keep); short > 0 {
			t.Errorf("%d short after there is room again", short)
		}
		// For more than there was last time it is measured again.
		if short := f.short(100<<30, keep); short != keep {
			t.Errorf("%d short, want 1 GiB", short)
		}
		d.err = errors.New("no such system call")
		if short := f.short(1<<40, keep); short > 0 {
			t.Errorf("%d short where it can't be told", short)
		}
	})
}

// TestStatsKnowTheDisk: its size and what is free of it are known from the start, and measured
// again by the work in the background, so that Stats waits for no disk.
func TestStatsKnowTheDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	want, err := disk.Measure(dir)
	if err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if st.DiskBytes != want.Total || st.DiskFreeBytes <= 0 || st.DiskFreeBytes > want.Total {
		t.Errorf("%d of %d bytes are free, the file system has %d of %d", st.DiskFreeBytes, st.DiskBytes, want.Available, want.Total)
	}
	s.room.space.free.Store(-1)
	s.room.space.mu.Lock()
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.shrink()
	if free := s.Stats().DiskFreeBytes; free <= 0 {
		t.Errorf("measured again, and %d are free", free)
	}
}

// TestMinFreeEvicts: blobs leave so that the free space is kept, with budget for all of them, and what
// can't be had that way is refused.
func TestMinFreeEvicts(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	d := &fakeDisk{}
	s.room.space.mu.Lock() // the background work of the start uses it too
	s.room.space.measure = func() (int64, error) {
		d.free = 100<<20 - bytesOnDisk(t, s) // a disk of 100 MiB, with nothing else on it
		return d.measure()
	}
	s.room.space.until = time.Time{} // the start has measured the real one
	s.room.space.mu.Unlock()
	s.room.minFree.Store(90 << 20)
	for n := range 20 {
		put(t, s, noise(uint64(n), 1<<20))
		if got := s.Stats().Bytes; got > 10<<20 {
			t.Fatalf("%d bytes, and 90 of 100 MiB are to be left free", got)
		}
	}
	if st := s.Stats(); st.Bytes != 10<<20 || st.Evictions != 10 {
		t.Errorf("%+v", st)
	}
	var log bytes.Buffer
	s.files.faults.log = slog.New(slog.NewTextHandler(&log, nil))
	for range 5 {
		if err := (&reservation{room: &s.room}).grow(11 << 20); !errors.Is(err, ErrNoRoom) {
			t.Errorf("room for more than may be used: %v", err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR msg=\"the disk is full") {
		t.Errorf("the log says of a full disk: %s", got)
	}
	balanced(t, s)
}

// TestDiskThatIsTooSmallForWhatIsInUseIsSaid: when blobs go for the free space just after they came
// in, and come again, it is the disk that is too small, and not the budget.
func TestDiskThatIsTooSmallForWhatIsInUseIsSaid(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	s.room.space.mu.Lock() // the background work of the start uses it too
	s.room.space.measure = func() (int64, error) { return 100<<20 - bytesOnDisk(t, s), nil }
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(90 << 20)
	for range 3 {
		for n := range 15 {
			put(t, s, noise(uint64(n), 1<<20))
		}
	}
	short := s.Stats().Shortages
	if len(short) != 1 || short[0].Kind != DiskTooSmall || short[0].Has != 10<<20 || short[0].Needs < 15<<20 || short[0].Needs > 20<<20 {
		t.Errorf("%+v", short)
	}
	var log bytes.Buffer
	for range 5 {
		s.room.shortages.say(s.tooSmall(), slog.New(slog.NewTextHandler(&log, nil)))
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN msg=\"the disk has room for 10MiB of cache") {
		t.Errorf("the log says %s", got)
	}
}

// TestMinFreeWaitsForReaders: a file that was evicted for the free space, and that somebody still
// reads, gives its space back later. Until then no further ones are evicted in its place.
func TestMinFreeWaitsForReaders(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	for n := range 10 {
		b, err := s.Open(put(t, s, noise(uint64(n), 1<<20)))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
	}
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 90 << 20, nil } // the readers hold all of it
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(92 << 20)
	for range 3 {
		s.room.shrink()
	}
	if st := s.Stats(); st.Evictions != 2 || st.EvictedFor[ForMinFree] != (Evicted{2, 2 << 20}) {
		t.Errorf("%d blobs of 1 MiB were evicted, and 2 MiB are short", st.Evictions)
	}
}

// TestReservedSpaceIsNotPromisedAgain: space that was reserved a moment ago and isn't allocated yet is
// not there for others.
func TestReservedSpaceIsNotPromisedAgain(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 100<<20 - bytesOnDisk(t, s), nil }
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(90 << 20)
	promised := 0
	for range 5 { // as Begin does before its file is allocated, or of unknown size
		if (&reservation{room: &s.room}).grow(8<<20) == nil {
			promised += 8
		}
	}
	if promised > 10 {
		t.Errorf("%d MiB were promised of 10", promised)
	}
}

// TestHugeSizesAreRefused: a nonsense size doesn't make the computation of the free space overflow.
func TestHugeSizesAreRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 5 << 30, nil }
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.room.minFree.Store(10 << 30) // 5 GiB are missing already
	if _, err := s.Begin(Origin{Repository: repo}, digest.FromString("x"), math.MaxInt64); !errors.Is(err, ErrNoRoom) {
		t.Error(err)
	}
	if in, err := s.Begin(Origin{Repository: repo}, digest.FromString("y"), 1<<20); !errors.Is(err, ErrNoRoom) {
		in.Abort(ErrDigest)
		t.Error("room with 5 GiB free and 10 to be kept:", err)
	}
}

// TestInodesAreKeptFree: a file system that has bytes left and is short of inodes. The cache evicts,
// and goes on to keep what comes in. A share of the bytes is the same share of the inodes.
func TestInodesAreKeptFree(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=100m,nr_inodes=700"); err != nil {
		t.Fatal("mounting a tmpfs needs root, or a user namespace: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	for n := range 1500 {
		d := put(t, s, fmt.Appendf(nil, "blob %d", n))
		if _, ok := s.Has(d); !ok {
			t.Fatalf("blob %d is not kept", n)
		}
	}
	if st := s.Stats(); st.WriteErrors > 0 || st.EvictedFor[ForInodes].Count == 0 || st.Blobs < 100 {
		t.Errorf("%+v", st)
	}
	balanced(t, s)
	s.SetLimits(100<<20, 50<<20)
	if now, err := disk.Measure(dir); err != nil || now.InodesFree < 300 {
		t.Errorf("half of the bytes are to be left free: %+v, %v", now, err)
	}
}

// TestImpossibleInodesCountAsNone: file systems without a number of inodes, or with one that can't
// be, cause no eviction.
func TestImpossibleInodesCountAsNone(t *testing.T) {
	for _, s := range []disk.Space{{Total: 1 << 30}, {Total: 1 << 30, Inodes: 100, InodesFree: 200}, {Total: 1 << 30, Inodes: 100, InodesFree: -1}, {Inodes: 100}} {
		f := freeInodes{measure: func() (disk.Space, error) { return s, nil }}
		if n := f.short(1 << 20); n > 0 {
			t.Errorf("%+v: %d", s, n)
		}
	}
	f := freeInodes{measure: func() (disk.Space, error) {
		return disk.Space{Total: 1 << 30, Inodes: 1 << 20, InodesFree: 1000}, nil
	}}
	if n := f.short(0); n != inodesLeft-1000 {
		t.Errorf("%d inodes have to become free", n)
	}
}
