//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/storage"
)

// TestManyImages: a cache of many images is listed as a whole, in pages, and by two who ask at once.
// HUBCACHE_IMAGES is how many; with 100,000 the figures in docs/evidence/performance.md are logged.
func TestManyImages(t *testing.T) {
	images := 300
	if text := os.Getenv("HUBCACHE_IMAGES"); text != "" {
		var err error
		if images, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	data := t.TempDir()
	if err := hubtest.FillDataDir(data, images); err != nil {
		t.Fatal(err)
	}
	store, err := storage.Open(storage.Options{Dir: data, Budget: 1 << 40}) // makes the index
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, serverOptions{Hub: startHub(t, hubtest.Options{}), Data: data, Args: []string{"--budget", "1TiB", "--min-free", "0"}})
	s.settle()
	before := s.memory("RssAnon")
	t.Logf("%d images: the server has %d MiB before the first list, and %d MiB of files mapped", images, before>>20, s.memory("RssFile")>>20)
	list := func(what, query string, want int) {
		t.Helper()
		s.resetPeak()
		cpu, start := s.cpu(), time.Now()
		doc, size := s.images(query)
		took := time.Since(start)
		t.Logf("%-22s %5d ms, %4d ms of CPU, %5.1f MB, memory %+d MiB, peak with mapped files %d MiB", what, took.Milliseconds(), (s.cpu() - cpu).Milliseconds(), float64(size)/1e6, (s.memory("RssAnon")-before)>>20, s.memory("VmHWM")>>20)
		if doc.Total != images || len(doc.Images) != want {
			t.Errorf("%s: %d images of %d; want %d of %d", what, len(doc.Images), doc.Total, want, images)
		}
	}
	list("the first page", "sort=size&limit=20", 20)
	list("the first page again", "sort=size&limit=20", 20)
	list("all", "", images)
	s.settle()
	list("all, later", "", images)
	s.settle()
	s.resetPeak()
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { s.images("") })
	}
	both.Wait()
	t.Logf("two at once: memory %+d MiB, peak with mapped files %d MiB", (s.memory("RssAnon")-before)>>20, s.memory("VmHWM")>>20)
	start := time.Now()
	page, err := s.adminBody("/")
	if rows := strings.Count(string(page), `<span class="name" title="`); err != nil || rows > 50 {
		t.Errorf("%d images are on a page, %v", rows, err)
	}
	t.Logf("the dashboard          %5d ms", time.Since(start).Milliseconds())
	start = time.Now()
	if out := s.Command("ls"); !strings.Contains(out, fmt.Sprintf("\n%d images;", images)) {
		t.Error("hubcache ls doesn't list all")
	}
	t.Logf("hubcache ls            %5d ms", time.Since(start).Milliseconds())
	if os.Getenv("HUBCACHE_IMAGES") != "" {
		time.Sleep(3 * time.Minute) // within which Go collects garbage and gives memory back
		t.Logf("three minutes later: memory %+d MiB", (s.memory("RssAnon")-before)>>20)
	}
}

// images asks for the list, and returns it and its size in bytes.
func (s *server) images(query string) (doc admin.Images, size int) {
	b, err := s.adminBody("/api/v1/images?" + query)
	if err != nil {
		s.t.Error(err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		s.t.Error(err)
	}
	return doc, len(b)
}

// adminBody asks the admin listener.
func (s *server) adminBody(path string) ([]byte, error) {
	resp, err := http.Get("http://" + s.Admin + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// memory is a figure of the process in /proc, in bytes.
func (s *server) memory(field string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10
		}
	}
	s.t.Fatalf("the process has no %s", field)
	return 0
}

// cpu is the CPU time that the process has used.
func (s *server) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold blanks
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ, the same on every Linux
}

// settle waits until the server has nothing left to do, if it is measured.
func (s *server) settle() {
	if os.Getenv("HUBCACHE_IMAGES") == "" {
		return
	}
	for range 60 {
		before := s.cpu()
		time.Sleep(500 * time.Millisecond)
		if s.cpu() == before {
			return
		}
	}
}

func (s *server) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.PID), []byte("5"), 0)
}
