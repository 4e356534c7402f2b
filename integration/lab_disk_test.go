//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// ext4Disk mounts an ext4 on a loop device over a sparse file, and returns its path. breakDisk
// can make it fail.
func ext4Disk(t *testing.T, megabytes int) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, int64(megabytes)<<20); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	runCommand(t, exec.Command(program(t, "mkfs.ext4", "e2fsprogs"), "-q", "-F", image))
	runCommand(t, exec.Command(program(t, "mount", "mount"), "-o", "loop", image, dir))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// breakDisk makes every read and write of the ext4 at dir fail with EIO from now on, as if its
// device were gone: it calls EXT4_IOC_SHUTDOWN without flushing the journal.
func breakDisk(t *testing.T, dir string) {
	t.Helper()
	const shutdown, noLogFlush = 0x8004587d, uint32(2)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags := noLogFlush
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Fatalf("EXT4_IOC_SHUTDOWN: %v", errno)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err == nil {
		t.Fatal("the disk still works")
	}
}

// readBlob reads a blob from an offset on and compares every byte with the Hub's. It calls
// progress, which may be nil, after each read with the number of bytes so far.
func readBlob(ctx context.Context, s *server, hub *hubtest.Hub, repository string, d digest.Digest, from int64, progress func(n int64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v2/"+repository+"/blobs/"+d.String(), nil)
	if err != nil {
		return err
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	resp, err := labClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("from %d: %s %s", from, resp.Status, body)
	}
	if resp.StatusCode == http.StatusOK {
		from = 0 // a range of a blob of unknown size is answered with the whole blob
	}
	b := hub.Blob(d)
	got, want := make([]byte, 256<<10), make([]byte, 256<<10)
	at := from
	for {
		n, err := resp.Body.Read(got)
		b.ReadAt(want[:n], at)
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("wrong bytes at %d of %s", at, d)
		}
		at += int64(n)
		if progress != nil {
			progress(at - from)
		}
		switch {
		case err == io.EOF && at == b.Size():
			return nil
		case err != nil:
			return fmt.Errorf("from %d: at %d of %d: %w", from, at, b.Size(), err)
		}
	}
}

// readConcurrently has 20 clients read a blob from different offsets, and calls mid once, when
// the first of them has read a third of it. All of them must get all their bytes.
func readConcurrently(t *testing.T, s *server, hub *hubtest.Hub, repository string, b ocispec.Descriptor, mid func()) {
	t.Helper()
	var once sync.Once
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			from := int64(i) * b.Size / 40
			err := readBlob(t.Context(), s, hub, repository, b.Digest, from, func(n int64) {
				if n > b.Size/3 {
					once.Do(mid)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	once.Do(mid)
	s.checkAlive()
}

// checkAlive checks that the server runs and answers.
func (s *server) checkAlive() {
	s.t.Helper()
	select {
	case <-s.exited:
		s.t.Fatal("the server has ended")
	default:
	}
	get(s.t, "http://"+s.Admin+"/healthz")
	get(s.t, s.URL+"/v2/")
}

// checkReportsDiskError checks that metrics and log report that the disk fails.
func (s *server) checkReportsDiskError() {
	s.t.Helper()
	metrics := string(get(s.t, "http://"+s.Admin+"/metrics").Body)
	_, after, _ := strings.Cut(metrics, "\nhubcache_cache_write_errors_total ")
	if n, _, _ := strings.Cut(after, "\n"); n == "" || n == "0" {
		s.t.Errorf("hubcache_cache_write_errors_total is %q", n)
	}
	if !strings.Contains(s.Log(), "the cache disk fails") {
		s.t.Error("the log does not say that the disk fails")
	}
}

// addLayerImage adds an image of one layer.
func addLayerImage(hub *hubtest.Hub, name string, size int64) (*hubtest.Image, ocispec.Descriptor) {
	img := hub.AddImage("library/"+name, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, size)})
	return img, img.Manifests[0].Layers[0]
}

// checkKeeps pulls an image twice, and checks that the second pull comes from the cache.
func checkKeeps(t *testing.T, s *server, hub *hubtest.Hub, img *hubtest.Image) {
	t.Helper()
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, s)
	hub.ResetLedger()
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Fatal(err)
	}
	if l := upstreamGETs(hub); len(l) > 0 {
		t.Errorf("the second pull reached the Hub:\n%s", l)
	}
}
