// Package disk measures file systems.
package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// Space is the size of a file system, and what is left of it.
type Space struct {
	Total      int64 // bytes
	Free       int64 // bytes, with those that are reserved for root
	Available  int64 // bytes that others than root may write
	Inodes     int64 // 0 if the file system has no fixed number of them
	InodesFree int64
}

// Measure returns the space of the file system that path is on. Errors: *os.PathError, with
// the errors of statfs(2).
func Measure(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return space(&st), nil
}

// space converts what the kernel counts. Its counts of blocks are in fragments; f_bsize is the best
// size for a transfer, and larger on some network and FUSE file systems. See statvfs(3).
func space(st *unix.Statfs_t) Space {
	unit := st.Frsize
	if unit == 0 { // a file system that doesn't say it
		unit = st.Bsize
	}
	return Space{
		Total:      int64(st.Blocks) * unit,
		Free:       int64(st.Bfree) * unit,
		Available:  int64(st.Bavail) * unit,
		Inodes:     int64(st.Files),
		InodesFree: int64(st.Ffree),
	}
}
