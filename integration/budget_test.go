//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const budgetBytes = 32 << 20

// TestBudgetIsNeverExceeded has 16 clients pull ten times as many bytes as the budget, and
// measures the size of the cache all the time.
func TestBudgetIsNeverExceeded(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Bandwidth: 100 << 20})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "512m", 0), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
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
				again := images[rand.IntN(int(i)+1)] // partly still cached
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

// TestLeastRecentlyUsedIsEvictedFirst fills the budget, uses the oldest image again, and pulls
// another image.
func TestLeastRecentlyUsedIsEvictedFirst(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "512m", 0), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
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
	time.Sleep(1100 * time.Millisecond) // last uses have a resolution of a second
	// A client that has the image requests its tag only, and that counts as a use of all blobs.
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

// TestBlobLargerThanBudgetIsServedAndNotKept pulls a layer that does not fit into the budget. It
// must be served, not kept, and nothing may be evicted for it.
func TestBlobLargerThanBudgetIsServedAndNotKept(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Data: mountTmpfs(t, "512m", 0), Args: []string{"--budget", fmt.Sprint(budgetBytes), "--min-free", "1MiB"}})
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
