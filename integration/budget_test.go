//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const budgetBytes = 32 << 20

// ownFileSystem is an empty file system in memory, so that the kernel says at any instant
// what all files in it take together; a walk over a directory that changes can't.
func ownFileSystem(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m"); err != nil {
		t.Fatalf("mount a tmpfs (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// blobBytes is what a server's files on a file system of their own take, but for the index.
// Unlinked files that are still open count. The sizes are rounded down by less than a page
// a file, as the kernel rounds them up.
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

// sampleBytes measures until stop is called, which returns the most bytes seen and how often
// it looked.
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

// TestBudgetIsNeverExceeded has 16 clients pull ten times what the budget holds.
func TestBudgetIsNeverExceeded(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 100 << 20})
	s := startServer(t, serverOptions{Hub: hub, Data: ownFileSystem(t), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
	var images []*hubtest.Image
	var total int64
	for i := 0; total < 10*budgetBytes; i++ {
		size := int64(100<<10) << (i % 7) // to 6.4 MiB
		img := hub.AddImage(fmt.Sprintf("library/app%d", i), "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, size)})
		images = append(images, img)
		total += img.Size()
	}
	stop := sampleBytes(t, s.Data)
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(images); i = next.Add(1) - 1 {
				if err := pullImage(t.Context(), s.URL, images[i], ""); err != nil {
					t.Error(err)
				}
				again := images[rand.IntN(int(i)+1)] // some of it is still there, some is not
				if err := pullImage(t.Context(), s.URL, again, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	most, samples := stop()
	t.Logf("%d images of %d MiB; %d samples, at most %.1f of %d MiB", len(images), total>>20, samples, float64(most)/(1<<20), budgetBytes>>20)
	if most > budgetBytes {
		t.Errorf("the cache held %d bytes, the budget is %d", most, budgetBytes)
	}
	if samples < 50 {
		t.Errorf("only %d samples", samples)
	}
	stats := s.Stats()
	if stats.Store.Evictions == 0 || most < budgetBytes/2 {
		t.Errorf("the budget was no constraint: %+v", stats.Store)
	}
	checkAccounted(t, s)
	s.Restart()
	checkAccounted(t, s)
}

// checkAccounted compares what the server thinks it keeps with what lies there.
func checkAccounted(t *testing.T, s *server) {
	t.Helper()
	var stats, onDisk int64
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		stats, onDisk = s.Stats().Store.Bytes, cacheSize(t, s.Data)
		if stats == onDisk {
			return // it may take a moment until the last reader has left
		}
	}
	t.Errorf("store.bytes is %d, on disk are %d", stats, onDisk)
}

// waitIdle waits until nothing is being fetched; a client has the last byte a moment before
// the blob is committed.
func waitIdle(t *testing.T, s *server) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(s.Stats().Inflight) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in flight: %+v", s.Stats().Inflight)
		}
	}
}

// TestLeastRecentlyUsedIsEvictedFirst fills the budget, uses the oldest image again, and needs room.
func TestLeastRecentlyUsedIsEvictedFirst(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: ownFileSystem(t), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
	pull := func(img *hubtest.Image) {
		t.Helper()
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Fatal(err)
		}
	}
	add := func(tag string) *hubtest.Image {
		return hub.AddImage("library/app", tag, hubtest.ImageSpec{Layers: hubtest.Layers(1, 9<<20)})
	}
	first, second, third, fourth := add("1"), add("2"), add("3"), add("4")
	pull(first)
	pull(second)
	pull(third)
	waitIdle(t, s)
	time.Sleep(1100 * time.Millisecond) // uses within a second are one
	// A client that has the image asks for its tag only; that is a use of all of it.
	if a, err := request(t.Context(), http.MethodHead, s.URL+"/v2/library/app/manifests/1"); err != nil || a.Status != http.StatusOK {
		t.Fatal(a.Status, err)
	}
	pull(fourth)
	waitIdle(t, s)
	for img, kept := range map[*hubtest.Image]bool{first: true, second: false, third: true, fourth: true} {
		layer := img.Manifests[0].Layers[0].Digest.String()
		a, err := request(t.Context(), http.MethodHead, s.URL+"/v2/library/app/blobs/"+layer)
		if err != nil || a.Status != http.StatusOK {
			t.Fatal(a.Status, err)
		}
		if got := a.Header.Get("X-Hubcache") == "hit"; got != kept {
			t.Errorf("layer of tag %s: kept is %v, want %v", img.Tag, got, kept)
		}
	}
}

// TestBlobLargerThanBudgetIsServedAndNotKept pulls what does not fit: it is delivered, and not kept, and
// nothing leaves for it.
func TestBlobLargerThanBudgetIsServedAndNotKept(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: ownFileSystem(t), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
	small := hub.AddImage("library/small", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 4<<20)})
	huge := hub.AddImage("library/huge", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, budgetBytes+1)})
	stop := sampleBytes(t, s.Data)
	for range 2 {
		for _, img := range []*hubtest.Image{small, huge} {
			if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
				t.Error(err)
			}
		}
	}
	if most, _ := stop(); most > 6<<20 {
		t.Errorf("the cache held %d bytes", most)
	}
	stats := s.Stats()
	if b := stats.Requests.Blob; b.Bypass != 2 || b.Hit < 2 || b.Error != 0 {
		t.Errorf("blobs %+v", b)
	}
	checkAccounted(t, s)
}
