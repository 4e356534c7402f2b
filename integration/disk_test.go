//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// diskSmall is a file system in memory of a size.
func diskSmall(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a tmpfs (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// diskReal is an ext4 on a loop device over a sparse file, which can be made to fail.
func diskReal(t *testing.T, megabytes int) string {
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

// diskBreak makes every read and write of the ext4 at dir fail with EIO from now on, as
// one does whose device has gone: EXT4_IOC_SHUTDOWN without flushing its journal.
func diskBreak(t *testing.T, dir string) {
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

// diskRead reads a blob from an offset on and holds every byte against the Hub's. pause
// is called after each piece.
func diskRead(ctx context.Context, s *server, hub *hubtest.Hub, repository string, d digest.Digest, from int64, pause func(n int64)) error {
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
		from = 0 // while its size isn't known, all of it
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
		if pause != nil {
			pause(at - from)
		}
		switch {
		case err == io.EOF && at == b.Size():
			return nil
		case err != nil:
			return fmt.Errorf("from %d: at %d of %d: %w", from, at, b.Size(), err)
		}
	}
}

// diskCrowd has 20 clients read a blob from different offsets, and calls mid once when
// the first of them has got a third of it. All must get all.
func diskCrowd(t *testing.T, s *server, hub *hubtest.Hub, repository string, b ocispec.Descriptor, mid func()) {
	t.Helper()
	var once sync.Once
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			from := int64(i) * b.Size / 40
			err := diskRead(t.Context(), s, hub, repository, b.Digest, from, func(n int64) {
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
	s.diskAlive()
}

// diskAlive: the process is up and answers.
func (s *server) diskAlive() {
	s.t.Helper()
	select {
	case <-s.exited:
		s.t.Fatal("the server has ended")
	default:
	}
	get(s.t, "http://"+s.Admin+"/healthz")
	get(s.t, s.URL+"/v2/")
}

// diskSaysSo: metrics and log say that the disk fails.
func (s *server) diskSaysSo() {
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

func diskImage(hub *hubtest.Hub, name string, size int64) (*hubtest.Image, ocispec.Descriptor) {
	img := hub.AddImage("library/"+name, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, size)})
	return img, img.Manifests[0].Layers[0]
}

// TestDiskSmallerThanDemandServesAll: 100 MB of disk, a budget of 80, every blob held open by 20 readers, and
// 50 MB more are asked for; then a blob larger than the budget.
func TestDiskSmallerThanDemandServesAll(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited})
	s := startServer(t, serverOptions{Hub: hub, Data: diskSmall(t, "100m"), Args: []string{"--budget", "80MiB", "--min-free", "5MiB"}})
	held := make([]ocispec.Descriptor, 3)
	release := make(chan struct{})
	var holding, readers sync.WaitGroup
	for i := range held {
		img, layer := diskImage(hub, fmt.Sprintf("held%d", i), 24<<20)
		held[i] = layer
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			holding.Add(1)
			var first sync.Once
			readers.Go(func() {
				err := diskRead(t.Context(), s, hub, img.Repository, layer.Digest, 0, func(int64) {
					first.Do(func() { holding.Done(); <-release })
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	holding.Wait()
	for name, size := range map[string]int64{"new": 50 << 20, "huge": 120 << 20} {
		img, _ := diskImage(hub, name, size)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	close(release)
	readers.Wait()
	s.diskAlive()
	waitIdle(t, s)
	checkAccounted(t, s)
	if st := s.Stats(); st.Store.Bytes > 80<<20 || st.Store.ReservedBytes != 0 {
		t.Errorf("over the budget when idle: %+v", st.Store)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Data, &fs); err != nil {
		t.Fatal(err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < 5<<20 {
		t.Errorf("%d bytes free: less than min_free", free)
	}
	for i, b := range held { // they were not lost either
		if err := diskRead(t.Context(), s, hub, fmt.Sprintf("library/held%d", i), b.Digest, 0, nil); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(s.Log(), `"status":5`) {
		t.Error("a client was answered with 5xx")
	}
}

// TestDiskFullDuringDownloadLosesNoBytes: somebody else fills the disk while a blob of unknown size comes
// in. 20 readers at different offsets get all of it, and when there is room again the
// cache takes up its work.
func TestDiskFullDuringDownloadLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	s := startServer(t, serverOptions{Hub: hub, Data: diskSmall(t, "100m"), Args: []string{"--budget", "80MiB", "--min-free", "0"}})
	_, layer := diskImage(hub, "app", 24<<20)
	hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
	other := filepath.Join(s.Data, "somebody-elses")
	diskCrowd(t, s, hub, "library/app", layer, func() {
		f, err := os.Create(other)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		io.Copy(f, rand.NewChaCha8([32]byte{})) // until there is no more
	})
	waitIdle(t, s)
	checkAccounted(t, s)
	s.diskSaysSo()
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	hub.ClearFaults()
	img, _ := diskImage(hub, "later", 20<<20)
	diskKeeps(t, s, hub, img)
	checkAccounted(t, s)
}

// diskKeeps: an image that is pulled now is kept.
func diskKeeps(t *testing.T, s *server, hub *hubtest.Hub, img *hubtest.Image) {
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
		t.Errorf("the cache does not keep what it fetches:\n%s", l)
	}
}

// TestDiskFullAtStartServesCachedImages: a start with no byte free, index included, serves what is there.
func TestDiskFullAtStartServesCachedImages(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: diskSmall(t, "60m"), Args: []string{"--budget", "50MiB", "--min-free", "0"}})
	img, _ := diskImage(hub, "app", 10<<20)
	diskKeeps(t, s, hub, img)
	s.Stop()
	f, err := os.Create(filepath.Join(s.Data, "somebody-elses"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(f, rand.NewChaCha8([32]byte{}))
	f.Close()
	s.Start()
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	img2, _ := diskImage(hub, "new", 20<<20)
	if err := pullImage(t.Context(), s.URL, img2, ""); err != nil {
		t.Error(err)
	}
	s.diskAlive()
	s.Kill()
}

// TestDiskErrorDuringDownloadLosesNoBytes: every read and write fails with EIO from the middle of a blob
// on, for 20 readers at different offsets, for the commit, for the index, for the blobs
// that are cached. Clients get all bytes; with a disk that works the cache is whole again.
func TestDiskErrorDuringDownloadLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	data := diskReal(t, 200)
	s := startServer(t, serverOptions{Hub: hub, Data: filepath.Join(data, "cache"), Args: []string{"--budget", "150MiB", "--min-free", "1MiB"}})
	cached, _ := diskImage(hub, "cached", 5<<20)
	diskKeeps(t, s, hub, cached)
	_, layer := diskImage(hub, "app", 30<<20)
	diskCrowd(t, s, hub, "library/app", layer, func() { diskBreak(t, data) })
	for _, name := range []string{"cached", "other"} {
		img, _ := diskImage(hub, name, 5<<20)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.diskAlive()
	s.diskSaysSo()
	s.Kill() // it can't write its index, and would say so with its exit status
}

// TestDiskErrorAtCommitLosesNoBytes: all bytes are written, and the disk fails when they are to be
// made to stay. The readers have them all the same.
func TestDiskErrorAtCommitLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	data := diskReal(t, 200)
	s := startServer(t, serverOptions{Hub: hub, Data: filepath.Join(data, "cache"), Args: []string{"--budget", "150MiB", "--min-free", "1MiB"}})
	_, layer := diskImage(hub, "app", 3<<20)
	rule := hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, hubtest.StallAfter(layer.Size-1)) // all but the last byte
	var got atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- diskRead(t.Context(), s, hub, "library/app", layer.Digest, 0, func(n int64) { got.Store(n) })
	}()
	for deadline := time.Now().Add(5 * time.Second); got.Load() < layer.Size-4096 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	diskBreak(t, data)
	rule.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.diskAlive()
	s.Kill()
}
