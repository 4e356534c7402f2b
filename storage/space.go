package storage

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// freeSpace is what the file system has left. To ask for it is a third of an eviction, so
// while there is far more than is needed, the last answer is believed for a moment, less
// what has been asked for since.
type freeSpace struct {
	mu      sync.Mutex // guards what follows; taken last
	measure func() (bytes int64, err error)
	left    int64     // bytes
	until   time.Time // when left is out of date
}

// Others write to the file system too. No disk takes more than spaceMargin in spaceFresh:
// that would be 10 GiB a second.
const (
	spaceFresh  = 100 * time.Millisecond
	spaceMargin = 1 << 30
)

func statfs(path string) func() (int64, error) {
	return func() (int64, error) {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		return int64(st.Bavail) * st.Bsize, err
	}
}

// short returns how many bytes have to leave the file system so that n more fit and keep
// are left; 0 or less when none.
func (f *freeSpace) short(n, keep int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.After(f.until) || f.left-n-keep < spaceMargin {
		free, err := f.measure()
		if err != nil {
			return -1
		}
		f.left, f.until = free, now.Add(spaceFresh)
	}
	f.left -= n
	return keep - f.left
}
