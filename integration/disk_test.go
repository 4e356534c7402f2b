//go:build integration

package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestDiskSmallerThanDemandServesAll has a disk of 100 MB, a budget of 80 MB, and 20 readers
// that hold every cached blob open. Then clients pull 50 MB more, and a blob that is larger than
// the budget. All must be served.
func TestDiskSmallerThanDemandServesAll(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "100m", unix.MNT_DETACH), Args: []string{"--budget", "80MiB", "--min-free", "5MiB"}})
	held := make([]ocispec.Descriptor, 3)
	release := make(chan struct{})
	var holding, readers sync.WaitGroup
	for i := range held {
		img, layer := addLayerImage(hub, fmt.Sprintf("held%d", i), 24<<20)
		held[i] = layer
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			holding.Add(1)
			var first sync.Once
			readers.Go(func() {
				err := readBlob(t.Context(), s, hub, img.Repository, layer.Digest, 0, func(int64) {
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
		img, _ := addLayerImage(hub, name, size)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	close(release)
	readers.Wait()
	s.checkAlive()
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
	for i, b := range held { // clients can still read them
		if err := readBlob(t.Context(), s, hub, fmt.Sprintf("library/held%d", i), b.Digest, 0, nil); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(s.Log(), `"status":5`) {
		t.Error("a client was answered with 5xx")
	}
}

// TestDiskFullDuringDownloadLosesNoBytes fills the disk with a file that is not the cache's while
// a blob of unknown size is downloaded. All 20 readers at different offsets must get all bytes,
// and with free space again the cache must work as before.
func TestDiskFullDuringDownloadLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "100m", unix.MNT_DETACH), Args: []string{"--budget", "80MiB", "--min-free", "0"}})
	_, layer := addLayerImage(hub, "app", 24<<20)
	hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Chunked())
	other := filepath.Join(s.Data, "not-ours")
	readConcurrently(t, s, hub, "library/app", layer, func() {
		f, err := os.Create(other)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		io.Copy(f, rand.NewChaCha8([32]byte{})) // until the disk is full
	})
	waitIdle(t, s)
	checkAccounted(t, s)
	// On a busy machine the server sees that the disk is full before it writes the next byte.
	if !strings.Contains(s.Log(), "the disk is full (min_free)") {
		s.checkReportsDiskError()
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	hub.ClearFaults()
	img, _ := addLayerImage(hub, "later", 20<<20)
	checkKeeps(t, s, hub, img)
	checkAccounted(t, s)
}

// TestDiskFullAtStartServesCachedImages starts a server on a full disk, where it can't write even
// the index. Cached and new images must be served.
func TestDiskFullAtStartServesCachedImages(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "60m", unix.MNT_DETACH), Args: []string{"--budget", "50MiB", "--min-free", "0"}})
	img, _ := addLayerImage(hub, "app", 10<<20)
	checkKeeps(t, s, hub, img)
	s.Stop()
	f, err := os.Create(filepath.Join(s.Data, "not-ours"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(f, rand.NewChaCha8([32]byte{}))
	f.Close()
	s.Start()
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	img2, _ := addLayerImage(hub, "new", 20<<20)
	if err := pullImage(t.Context(), s.URL, img2, ""); err != nil {
		t.Error(err)
	}
	s.checkAlive()
	s.Kill()
}

// TestDiskErrorDuringDownloadLosesNoBytes makes all reads and writes fail with EIO from the middle
// of a download on: those of 20 readers at different offsets, of the commit, of the index and of
// cached blobs. Clients must get all bytes.
func TestDiskErrorDuringDownloadLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	data := ext4Disk(t, 200)
	s := startServer(t, serverOptions{Hub: hub, Data: filepath.Join(data, "cache"), Args: []string{"--budget", "150MiB", "--min-free", "1MiB"}})
	cached, _ := addLayerImage(hub, "cached", 5<<20)
	checkKeeps(t, s, hub, cached)
	_, layer := addLayerImage(hub, "app", 30<<20)
	readConcurrently(t, s, hub, "library/app", layer, func() { breakDisk(t, data) })
	for _, name := range []string{"cached", "other"} {
		img, _ := addLayerImage(hub, name, 5<<20)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.checkAlive()
	s.checkReportsDiskError()
	s.Kill() // after SIGTERM its exit status would report that it can't write the index
}

// TestDiskErrorAtCommitLosesNoBytes makes the disk fail when all bytes of a blob are written and
// it is to be committed. The reader must get all bytes.
func TestDiskErrorAtCommitLosesNoBytes(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 20 << 20})
	data := ext4Disk(t, 200)
	s := startServer(t, serverOptions{Hub: hub, Data: filepath.Join(data, "cache"), Args: []string{"--budget", "150MiB", "--min-free", "1MiB"}})
	_, layer := addLayerImage(hub, "app", 3<<20)
	rule := hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 1}, hubtest.StallAfter(layer.Size-1)) // all but the last byte
	var got atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- readBlob(t.Context(), s, hub, "library/app", layer.Digest, 0, func(n int64) { got.Store(n) })
	}()
	for deadline := time.Now().Add(5 * time.Second); got.Load() < layer.Size-4096 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	breakDisk(t, data)
	rule.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.checkAlive()
	s.Kill()
}
