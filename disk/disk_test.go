package disk

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpaceIsCountedInFragments: the counts of statfs are in fragments, also where a block for
// transfers is larger, as with FUSE (1 MiB blocks, 4 KiB fragments, 300 MiB available).
func TestSpaceIsCountedInFragments(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		st   unix.Statfs_t
		want Space
	}{
		"fragments are smaller than blocks": {
			unix.Statfs_t{Bsize: mib, Frsize: 4096, Blocks: 1000 * 256, Bfree: 310 * 256, Bavail: 300 * 256, Files: 100, Ffree: 40},
			Space{1000 * mib, 310 * mib, 300 * mib, 100, 40},
		},
		"they are the same": {
			unix.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000 * 256, Bfree: 310 * 256, Bavail: 300 * 256},
			Space{1000 * mib, 310 * mib, 300 * mib, 0, 0},
		},
		"fragments aren't known": {
			unix.Statfs_t{Bsize: 4096, Blocks: 1000 * 256, Bfree: 310 * 256, Bavail: 300 * 256},
			Space{1000 * mib, 310 * mib, 300 * mib, 0, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := space(&c.st); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	got, err := Measure(dir)
	if err != nil || got.Total <= 0 || got.Available <= 0 || got.Available > got.Free || got.Free > got.Total {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Measure(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is missing: %v", err)
	}
}
