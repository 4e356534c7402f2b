package boltfile

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the file open.
var ErrLocked = errors.New("in use by another process")

// lockRetry is the pause between two attempts, as bbolt's.
const lockRetry = 50 * time.Millisecond

// Lock takes the lock that bbolt takes, before the check: another process may still be writing.
// It waits for it at most so long. A bbolt.Open that is given the open file then gets the lock at
// once. Errors: [ErrLocked]; that the file can't be locked.
func Lock(f *os.File, wait time.Duration) error {
	for end := time.Now().Add(wait); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		case time.Now().After(end):
			return fmt.Errorf("%s is %w", f.Name(), ErrLocked)
		}
	}
}

// Recover makes [ErrDamaged] of what a damaged memory-mapped file causes, which is a panic in
// bbolt or a fault on a page beyond its end. Call it as defer Recover(&err)().
func Recover(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}
}

// SetAside renames a damaged file to path.bad, so that someone can look at it. One such file is
// kept, the newest.
func SetAside(path string) error { return os.Rename(path, path+".bad") }
