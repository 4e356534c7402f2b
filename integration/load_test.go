//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const (
	loadEach    = 50_000 // requests of each kind
	loadClients = 64     // connections that ask at once
	loadCold    = 20     // images that are pulled cold beside the requests, in each half
)

// loadKinds are what a client can invent, and what it can find in a list: request number i, the
// status that it gets, and how many requests go upstream for it at most. A repository needs two
// tokens, one of them without the account to see whether it is public, and the question itself.
// docs/evidence/reliability.md has these numbers.
var loadKinds = []struct {
	method   string
	path     func(i int) string
	status   int
	upstream int
}{
	{http.MethodGet, func(i int) string { return fmt.Sprintf("invented/name%d/manifests/1", i) }, http.StatusNotFound, 3},
	{http.MethodGet, func(i int) string { return fmt.Sprintf("library/many/manifests/invented%d", i) }, http.StatusNotFound, 1},
	{http.MethodGet, func(i int) string {
		return fmt.Sprintf("library/many/%s/sha256:%x", []string{"blobs", "manifests"}[i%2], sha256.Sum256(fmt.Append(nil, i)))
	}, http.StatusNotFound, 1},
	{http.MethodHead, func(i int) string { return fmt.Sprintf("library/many/manifests/t%d", i) }, http.StatusOK, 1},
}

// loadUse is what the server uses.
type loadUse struct {
	processState
	index, files, folders int64
}

// TestInventedNamesLeaveNothing asks for invented repositories, tags and digests, and for existing
// tags, with an account. The second half of the requests must not make the server larger.
func TestInventedNamesLeaveNothing(t *testing.T) {
	hub := startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited})
	spec := hubtest.ImageSpec{Layers: hubtest.Layers(2, 64<<10)}
	many := hub.AddImage("library/many", "1", spec)
	for i := range loadEach {
		hub.Tag("library/many", fmt.Sprintf("t%d", i), many.Digest)
	}
	k := &soak{hub: hub, s: startServer(t, serverOptions{Hub: hub, Args: []string{"--log-level", "warn"}})}
	if err := pullImage(t.Context(), k.s.URL, many, ""); err != nil {
		t.Fatal(err)
	}
	quiet := cachedPulls(t, k.s, many, func(n int) bool { return n < 200 })
	before := loadMeasure(t, k)
	var upstream int
	var uses []loadUse
	var beside []time.Duration
	start := time.Now()
	for half := range 2 {
		var done atomic.Bool
		var others sync.WaitGroup
		others.Go(func() {
			beside = append(beside, cachedPulls(t, k.s, many, func(int) bool { return !done.Load() })...)
		})
		others.Go(func() {
			for i := range loadCold {
				img := hub.AddImage(fmt.Sprintf("library/cold%d", half*loadCold+i), "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 64<<10)})
				if err := pullImage(t.Context(), k.s.URL, img, ""); err != nil {
					t.Errorf("cold pull %d: %v", i, err)
				}
			}
		})
		statuses := loadHalf(t, k.s, half)
		done.Store(true)
		others.Wait()
		upstream += len(hub.Ledger())
		hub.ResetLedger()
		waitIdle(t, k.s)
		use := loadMeasure(t, k)
		// The memory goes up and down by some MB: the first half counts with the most of some seconds.
		for range 5 {
			if half == 0 {
				time.Sleep(time.Second)
				use.rss = max(use.rss, loadMeasure(t, k).rss)
			}
		}
		// The process gives connections back some time after the requests, and memory once it has
		// collected garbage, which an idle process does after two minutes.
		for range 180 {
			if half == 0 || use.grownFrom(uses[0]) == "" {
				break
			}
			time.Sleep(time.Second)
			use = loadMeasure(t, k)
		}
		uses = append(uses, use)
		for kind, got := range statuses {
			if n := got[loadKinds[kind].status]; n != loadEach/2 {
				t.Errorf("%d of %d requests like %s got %d: %v", n, loadEach/2, loadKinds[kind].path(0), loadKinds[kind].status, got)
			}
		}
		t.Logf("half %d after %v: %+v; statuses by kind %v", half, time.Since(start).Round(time.Second), uses[half], statuses)
	}
	t.Logf("before %+v; %d requests upstream; cached pulls, p99: %v quiet, %v beside", before, upstream, p99(quiet), p99(beside))
	// A cold image leaves its manifest, config, layer and repository, and blobs are in 256 folders.
	// The totals and the history have a file each, which are there after a minute.
	if grown := uses[1].files - before.files; grown > 2*loadCold*4+2 {
		t.Errorf("%d more files", grown)
	}
	if uses[1].folders > 256+20 {
		t.Errorf("%d folders", uses[1].folders)
	}
	if grown := uses[1].grownFrom(uses[0]); grown != "" {
		t.Error("in the second half:", grown)
	}
	if before.index == 0 || before.rss == 0 || before.fds == 0 {
		t.Errorf("nothing was measured: %+v", before)
	}
	most := 20 * (2*loadCold + len(quiet) + len(beside)) // for the pulls
	for _, kind := range loadKinds {
		most += loadEach * kind.upstream
	}
	if upstream > most {
		t.Errorf("%d requests upstream, and %d is the most", upstream, most)
	}
}

// grownFrom says what has become more than 5 % larger, or "".
func (u loadUse) grownFrom(old loadUse) string {
	for _, v := range []struct {
		what     string
		now, old int64
	}{{"index", u.index, old.index}, {"memory", u.rss, old.rss}, {"descriptors", int64(u.fds), int64(old.fds)}} {
		if v.now > v.old+v.old/20 {
			return fmt.Sprintf("%s grew from %d to %d", v.what, v.old, v.now)
		}
	}
	return ""
}

// loadHalf sends half of the requests, and returns how often which status came, by kind.
func loadHalf(t *testing.T, s *server, half int) []map[int]int {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: loadClients, DialContext: labDial}}
	defer client.CloseIdleConnections()
	statuses := make([]map[int]int, len(loadKinds))
	for kind := range statuses {
		statuses[kind] = map[int]int{}
	}
	var mu sync.Mutex // guards statuses
	var next atomic.Int64
	var clients sync.WaitGroup
	count := int64(loadEach / 2 * len(loadKinds))
	for range loadClients {
		clients.Go(func() {
			for n := next.Add(1) - 1; n < count; n = next.Add(1) - 1 {
				kind := int(n) % len(loadKinds)
				path := loadKinds[kind].path(half*loadEach/2 + int(n)/len(loadKinds))
				status, err := loadAsk(t.Context(), client, loadKinds[kind].method, s.URL+"/v2/"+path)
				if err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
				mu.Lock()
				statuses[kind][status]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return statuses
}

func loadAsk(ctx context.Context, client *http.Client, method, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// cachedPulls pulls a cached image while more says so, and returns how long each pull took.
func cachedPulls(t *testing.T, s *server, img *hubtest.Image, more func(n int) bool) (took []time.Duration) {
	for more(len(took)) {
		start := time.Now()
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Errorf("cached pull: %v", err)
			return took
		}
		took = append(took, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
	return took
}

func p99(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[len(d)*99/100]
}

func loadMeasure(t *testing.T, k *soak) (u loadUse) {
	t.Helper()
	u.processState = k.process(t)
	err := filepath.WalkDir(k.s.Data, func(path string, file fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // a temporary file
		}
		if err == nil && file.IsDir() {
			u.folders++
		} else {
			u.files++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(k.s.Data, "index.db")); err == nil {
		u.index = info.Size()
	}
	return u
}
