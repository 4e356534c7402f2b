//go:build integration

package integration

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// mountTmpfs mounts an empty file system in memory and returns its path. The flags are those
// of unmounting it at the end of the test; without MNT_DETACH, the test fails if a process
// still uses it.
func mountTmpfs(t *testing.T, size string, unmountFlags int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a tmpfs (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unmountFlags); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// blobBytes returns the size of a server's files except the index, where the data folder is a
// file system of its own. The kernel knows this number at any moment, while a walk over a
// folder that changes can't find it. Unlinked files that are still open count. The kernel
// rounds sizes up to pages; the result is rounded down by less than a page for each file.
func blobBytes(t *testing.T, data string) int64 {
	t.Helper()
	var fs unix.Statfs_t
	var index unix.Stat_t
	if err := unix.Statfs(data, &fs); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(filepath.Join(data, "index.db"), &index); err != nil {
		t.Error(err)
	}
	files := int64(fs.Files - fs.Ffree)
	return int64(fs.Blocks-fs.Bfree)*fs.Bsize - index.Blocks*512 - files*fs.Bsize
}

// sampleBytes calls blobBytes again and again until stop is called, which returns the largest
// result and the number of samples.
func sampleBytes(t *testing.T, data string) (stop func() (most int64, samples int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var most int64
	var samples int
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			most = max(most, blobBytes(t, data))
			samples++
		}
	}()
	return func() (int64, int) {
		cancel()
		<-done
		return most, samples
	}
}

// checkAccounted compares the size that the server reports with that of the files on disk.
func checkAccounted(t *testing.T, s *server) {
	t.Helper()
	var stats, onDisk int64
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		stats, onDisk = s.Stats().Store.Bytes, cacheSize(t, s.Data)
		if stats == onDisk {
			return // not at once: files are deleted when their last reader has left
		}
	}
	t.Errorf("store.bytes is %d, and the files have %d bytes", stats, onDisk)
}

// waitIdle waits until no download is in progress. A client has the last byte of a blob a
// moment before the blob is committed.
func waitIdle(t *testing.T, s *server) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(s.Stats().Inflight) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in flight: %+v", s.Stats().Inflight)
		}
	}
}

// cacheSize returns the size of the files in blobs/ and ingest/ of a data folder, which is what
// the budget counts. A sparse file counts with its full size.
func cacheSize(t testing.TB, data string) int64 {
	t.Helper()
	var size int64
	for _, dir := range []string{"blobs", "ingest"} {
		err := filepath.WalkDir(filepath.Join(data, dir), func(_ string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the server may have deleted it meanwhile
			}
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				size += info.Size()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return size
}

// checkBlobsIntact checks that all files in blobs/ have their digest and mode, while no server
// runs.
func checkBlobsIntact(t *testing.T, data string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if got, err := digest.SHA256.FromReader(f); err != nil || got.Encoded() != d.Name() {
			t.Errorf("%s has digest %s, %v", path, got, err)
		}
		fi, err := f.Stat()
		if err == nil && fi.Mode().Perm() != 0o400 {
			t.Errorf("%s has mode %o", path, fi.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// checkAccountedWithPartials is checkAccounted where ingest/ has partial downloads. The budget
// does not count the state of a partial download, which is a file of some hundred bytes.
func checkAccountedWithPartials(t *testing.T, s *server) {
	t.Helper()
	var stats, onDisk int64
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		stats, onDisk = s.Stats().Store.Bytes, cacheSize(t, s.Data)
		states, _ := filepath.Glob(filepath.Join(s.Data, "ingest", "*.json"))
		for _, path := range states {
			if fi, err := os.Stat(path); err == nil {
				onDisk -= fi.Size()
			}
		}
		if stats == onDisk {
			return
		}
	}
	t.Errorf("store.bytes is %d, and the files have %d bytes", stats, onDisk)
}
