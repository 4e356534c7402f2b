package storage

import (
	"sync"
	"time"

	"github.com/hubcache/hubcache/disk"
)

// freeSpace is what the file system has left. To measure it takes a third of the time of an
// eviction. So while there is far more than is needed, the last answer is used for a moment,
// less what has been promised since.
type freeSpace struct {
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

func available(path string) func() (int64, error) {
	return func() (int64, error) {
		s, err := disk.Measure(path)
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
