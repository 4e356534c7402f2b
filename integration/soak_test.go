//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
)

const (
	soakClients = 200
	soakSlow    = 10 // of them, how many read 10 KB/s
	soakBudget  = 64 << 20
	soakMemory  = 128 << 20 // limit for the resident set
)

// soakFor is how long the load lasts: a minute, or 10 with HUBCACHE_SOAK.
func soakFor() time.Duration {
	if os.Getenv("HUBCACHE_SOAK") != "" {
		return 10 * time.Minute
	}
	return time.Minute
}

// soak is the load and its results.
type soak struct {
	hub    *hubtest.Hub
	s      *server
	images []*hubtest.Image
	rules  []*hubtest.Rule

	pulls, requests, disconnects, ranges atomic.Int64
	unverified                           atomic.Int64 // closed ranges with wrong bytes, before their blob was verified

	mu        sync.Mutex // guards all below
	wrong     []string   // wrong bytes that were delivered
	failures  []failedRequest
	manifests []time.Duration // of the whole answer
	firsts    []time.Duration // of the first byte of a blob
}

// TestSoak has 200 clients pull from a catalogue that is ten times as large as the budget, with
// faults, moving tags, slow clients, ranges and disconnects. It checks all bytes, and that memory,
// files and goroutines stay bounded.
func TestSoak(t *testing.T) {
	k := &soak{hub: startHub(t, hubtest.Options{AccountLimit: hubtest.Unlimited, Latency: 20 * time.Millisecond, Bandwidth: 20 << 20})}
	total := int64(0)
	for i := 0; total < 10*soakBudget; i++ {
		layers := append([]hubtest.Layer{{Size: 1 << 20, Seed: uint64(1 + i%8)}}, hubtest.Layers(2, int64(128<<10)<<(i%6))...)
		for _, tag := range []string{"1", "2"} {
			img := k.hub.AddImage(fmt.Sprintf("library/app%d", i), tag, hubtest.ImageSpec{Layers: layers, Index: i%2 == 0})
			k.images = append(k.images, img)
			total += img.Size()
		}
		k.hub.Tag(fmt.Sprintf("library/app%d", i), "current", k.images[len(k.images)-2].Digest)
	}
	k.inject()
	k.s = startServer(t, serverOptions{Hub: k.hub, Args: []string{"--budget", strconv.Itoa(soakBudget), "--min-free", "1MiB", "--tag-ttl", "5s", "--log-level", "warn"}})
	before := k.process(t)
	ctx, cancel := context.WithTimeout(t.Context(), soakFor())
	defer cancel()
	start := time.Now()
	most := k.watch(ctx)
	var clients sync.WaitGroup
	for i := range soakClients {
		clients.Go(func() { k.client(ctx, i) })
	}
	clients.Go(func() { k.moveTags(ctx) })
	clients.Wait()
	took := time.Since(start).Round(time.Second)

	k.hub.ClearFaults()
	waitIdle(t, k.s)
	checkAccountedWithPartials(t, k.s)
	stats := k.s.Stats()
	if stats.Store.Bytes > soakBudget || stats.Store.ReservedBytes != 0 {
		t.Errorf("over the budget: %+v", stats.Store)
	}
	k.hub.Close() // closes the server's idle connections to it
	after := k.settle(t, before)
	checkBlobsIntact(t, k.s.Data)
	peak := most()
	peak.rss = max(peak.rss, k.highWater(t))
	t.Log("\n" + k.report(took, total, stats, before, peak, after))
	for _, w := range k.wrong {
		t.Errorf("wrong bytes: %s", w)
	}
	if peak.rss > soakMemory {
		t.Errorf("%d MiB resident", peak.rss>>20)
	}
	if k.pulls.Load() < int64(took.Seconds())*10 {
		t.Errorf("only %d pulls succeeded", k.pulls.Load())
	}
}

// inject makes about one in a hundred upstream requests fail, with all kinds of faults.
func (k *soak) inject() {
	on := func(name string, face hubtest.Face, chance float64, faults ...hubtest.Fault) {
		k.rules = append(k.rules, k.hub.Inject(hubtest.Match{Name: name, Face: face, Chance: chance}, faults...))
	}
	on("body cut", hubtest.CDN, .002, hubtest.CutAfter(100<<10))
	on("body reset", hubtest.CDN, .002, hubtest.ResetAfter(64<<10))
	on("body stalls", hubtest.CDN, .001, hubtest.StallAfter(50<<10))
	on("wrong byte", hubtest.CDN, .001, hubtest.FlipByte(70<<10))
	on("body too short", hubtest.CDN, .001, hubtest.Shorter(1000), hubtest.Chunked())
	on("range ignored", hubtest.CDN, .001, hubtest.IgnoreRange())
	on("CDN 503", hubtest.CDN, .001, hubtest.Status(503, "busy"))
	on("page instead of a body", hubtest.CDN, .001, hubtest.HTML())
	on("registry 500", hubtest.Registry, .002, hubtest.Status(500, "oops"))
	on("registry reset", hubtest.Registry, .002, hubtest.Reset())
	on("expired URL", hubtest.Registry, .001, hubtest.ExpiredURL())
	on(causeSilence, hubtest.Registry, .001, hubtest.Hang())
	on("registry answer cut", hubtest.Registry, .002, hubtest.CutAfter(30))
	on(cause429, hubtest.Registry, .0002, hubtest.TooManyRequests("Retry-After: 1")) // stops all downloads for a second
	on("token reset", hubtest.Token, .01, hubtest.Reset())
}

// moveTags moves a tag every 200 ms, more often that of a popular image.
func (k *soak) moveTags(ctx context.Context) {
	for ctx.Err() == nil {
		img := k.images[int(float64(len(k.images))*rand.Float64()*rand.Float64())]
		k.hub.Tag(img.Repository, "current", img.Digest)
		time.Sleep(200 * time.Millisecond)
	}
}

// client pulls until the time is up.
func (k *soak) client(ctx context.Context, i int) {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	zipf := rand.NewZipf(r, 1.1, 4, uint64(len(k.images)-1))
	for ctx.Err() == nil {
		img := k.images[zipf.Uint64()]
		var err error
		if i < soakSlow {
			err = k.slow(ctx, img)
		} else {
			err = k.pull(ctx, r, img)
		}
		if err != nil && ctx.Err() == nil {
			k.failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.IntN(1500)) * time.Millisecond):
		}
	}
}

// failed records an error. Wrong bytes must never happen; broken connections and error statuses
// are consequences of the faults.
func (k *soak) failed(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if wrong, ok := errors.AsType[wrongBytes](err); ok {
		k.wrong = append(k.wrong, string(wrong))
		return
	}
	f, ok := errors.AsType[failedRequest](err)
	if !ok {
		f = failedRequest{err: err, ended: time.Now()}
	}
	k.failures = append(k.failures, f)
}

// wrongBytes is an error that says which bytes were wrong.
type wrongBytes string

func (w wrongBytes) Error() string { return string(w) }

// statusError is an unexpected status of 400 or more, and what the server says of it.
type statusError struct {
	status int
	cause  string
}

func (s statusError) Error() string { return http.StatusText(s.status) }

// statusErrorOf reads the cause from the body of the answer.
func statusErrorOf(status int, body []byte) statusError {
	var answer struct{ Errors []struct{ Detail string } }
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return statusError{status, "no cause"}
	}
	return statusError{status, digests.ReplaceAllString(answer.Errors[0].Detail, "…")}
}

// digests are left out of causes, so that equal ones are counted together.
var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// pull pulls an image, half of the time by its moving tag.
func (k *soak) pull(ctx context.Context, r *rand.Rand, img *hubtest.Image) error {
	reference := img.Tag
	if r.IntN(2) == 0 {
		reference = "current"
	}
	start := time.Now()
	body, h, err := k.get(ctx, img.Repository+"/manifests/"+reference)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.manifests = append(k.manifests, time.Since(start))
	k.mu.Unlock()
	if d := h.Get("Docker-Content-Digest"); digest.FromBytes(body).String() != d {
		return wrongBytes(img.Repository + ":" + reference)
	} else if d != img.Digest.String() {
		for _, other := range k.images {
			if other.Repository == img.Repository && other.Digest.String() == d {
				img = other
			}
		}
		if d != img.Digest.String() {
			return wrongBytes(img.Repository + " is unknown as " + d)
		}
	}
	for _, b := range img.Blobs() {
		if err := k.blob(ctx, r, img.Repository, b); err != nil {
			return err
		}
	}
	k.pulls.Add(1)
	return nil
}

func (k *soak) get(ctx context.Context, path string) ([]byte, http.Header, error) {
	k.requests.Add(1)
	began := time.Now()
	a, err := request(ctx, http.MethodGet, k.s.URL+"/v2/"+path)
	if err == nil && a.Status != http.StatusOK {
		err = statusErrorOf(a.Status, a.Body)
	}
	if err != nil {
		repository, _, _ := strings.Cut(path, "/manifests/")
		err = failedRequest{repository: repository, began: began, ended: time.Now(), err: err}
	}
	return a.Body, a.Header, err
}

// blob gets a blob, or a range of it, or a part before it disconnects, and compares the bytes.
func (k *soak) blob(ctx context.Context, r *rand.Rand, repository string, b ocispec.Descriptor) (err error) {
	began := time.Now()
	defer func() {
		if err != nil {
			err = failedRequest{repository: repository, blob: b.Digest, began: began, ended: time.Now(), err: err}
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, to := int64(0), b.Size
	leave := int64(-1)
	switch n := r.IntN(100); {
	case n < 10:
		from = r.Int64N(b.Size)
		to = from + 1 + r.Int64N(b.Size-from)
		k.ranges.Add(1)
	case n < 15:
		leave = r.Int64N(b.Size)
		k.disconnects.Add(1)
	}
	resp, err := k.open(ctx, repository, b.Digest, from, to, b.Size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return k.compare(b.Digest, resp.Body, from, to, leave)
}

func (k *soak) open(ctx context.Context, repository string, d digest.Digest, from, to, size int64) (*http.Response, error) {
	k.requests.Add(1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.s.URL+"/v2/"+repository+"/blobs/"+d.String(), nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if from > 0 || to < size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
		want = http.StatusPartialContent
	}
	start := time.Now()
	resp, err := labClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		defer resp.Body.Close()
		if resp.StatusCode < 400 {
			return nil, wrongBytes(fmt.Sprintf("%s: status %d", d, resp.StatusCode))
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, statusErrorOf(resp.StatusCode, body)
	}
	k.mu.Lock()
	k.firsts = append(k.firsts, time.Since(start))
	k.mu.Unlock()
	return resp, nil
}

// compare reads a body that must have the blob's bytes between two offsets, and compares them
// with the Hub's. If leave isn't negative, it stops at that offset.
func (k *soak) compare(d digest.Digest, body io.Reader, from, to, leave int64) error {
	b := k.hub.Blob(d)
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	wrong := int64(-1)
	for at := from; ; {
		n, err := body.Read(got)
		b.ReadAt(want[:n], at)
		if !bytes.Equal(got[:n], want[:n]) {
			wrong = at
		}
		at += int64(n)
		switch {
		case leave >= 0 && at >= leave:
			return nil
		case err == io.EOF && at == to && wrong >= 0 && to < b.Size():
			k.unverified.Add(1) // docs/use/security.md describes this for closed ranges
			return nil
		case err == io.EOF && at == to && wrong >= 0:
			return wrongBytes(fmt.Sprintf("%s near %d, in a body that ended without an error", d, wrong))
		case err == io.EOF && at == to:
			return nil
		case err == io.EOF:
			return wrongBytes(fmt.Sprintf("%s ends at %d instead of %d", d, at, to))
		case err != nil:
			return err
		}
	}
}

// slow reads a layer at 10 KB/s for half a minute, and disconnects.
func (k *soak) slow(ctx context.Context, img *hubtest.Image) error {
	if _, _, err := k.get(ctx, img.Repository+"/manifests/"+img.Tag); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	blobs := img.Blobs()
	b := blobs[len(blobs)-1]
	resp, err := k.open(ctx, img.Repository, b.Digest, 0, b.Size, b.Size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = k.compare(b.Digest, &slowReader{ctx, resp.Body}, 0, b.Size, -1)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// slowReader reads 10 KB/s.
type slowReader struct {
	ctx context.Context
	r   io.Reader
}

func (s *slowReader) Read(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, context.DeadlineExceeded
	case <-time.After(100 * time.Millisecond):
		return s.r.Read(p[:min(len(p), 1000)])
	}
}

// processState is what the server's process uses.
type processState struct {
	rss             int64 // bytes
	fds, goroutines int
}

func (k *soak) process(t *testing.T) (p processState) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", k.s.PID))
	if err != nil {
		t.Fatal(err)
	}
	p.fds = len(fds)
	p.rss = k.status(t, "VmRSS:")
	metrics := string(get(t, "http://"+k.s.Admin+"/metrics").Body)
	_, after, _ := strings.Cut(metrics, "\ngo_goroutines ")
	line, _, _ := strings.Cut(after, "\n")
	if p.goroutines, err = strconv.Atoi(line); err != nil {
		t.Fatalf("go_goroutines: %v", err)
	}
	return p
}

func (k *soak) highWater(t *testing.T) int64 { return k.status(t, "VmHWM:") }

// status reads a size from /proc/PID/status.
func (k *soak) status(t *testing.T, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(k.s.PID), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), field)
	var kib int64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatalf("%s: %v", field, err)
	}
	return kib << 10
}

// watch samples the process until ctx ends. The function that it returns waits for this and
// returns the largest values.
func (k *soak) watch(ctx context.Context) func() processState {
	var most processState
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", k.s.PID))
			most.fds = max(most.fds, len(fds))
			time.Sleep(250 * time.Millisecond)
		}
	}()
	return func() processState { <-done; return most }
}

// settle waits until the process has no more file descriptors and goroutines than before.
func (k *soak) settle(t *testing.T, before processState) (p processState) {
	t.Helper()
	// Some more are no leak, as each leak would count for 200 clients.
	const slack = 8
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		p = k.process(t)
		if p.fds <= before.fds+slack && p.goroutines <= before.goroutines+slack {
			return p
		}
		if time.Now().After(deadline) {
			t.Errorf("the process still has %+v; before the load it had %+v", p, before)
			return p
		}
	}
}

func (k *soak) report(took time.Duration, catalogue int64, st admin.Stats, before, peak, after processState) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	faults := 0
	for _, r := range k.rules {
		faults += r.Hits()
	}
	upstream := len(k.hub.Ledger())
	ratio := func(hit, miss int64) float64 { return 100 * float64(hit) / float64(max(hit+miss, 1)) }
	m, b := st.Requests.Manifest, st.Requests.Blob
	var out strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&out, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&out, "| soak | |\n|---|---|\n")
	line("duration, clients", "%s, %d (%d of them at 10 KB/s)", took, soakClients, soakSlow)
	line("catalogue, budget", "%d images of %d MiB, %d MiB", len(k.images), catalogue>>20, soakBudget>>20)
	line("whole pulls, requests", "%d, %d", k.pulls.Load(), k.requests.Load())
	line("disconnects, ranges", "%d, %d", k.disconnects.Load(), k.ranges.Load())
	line("upstream requests, faults injected", "%d, %d (%.1f %%)", upstream, faults, 100*float64(faults)/float64(max(upstream, 1)))
	line("wrong bytes in bodies that ended without an error", "%d", len(k.wrong))
	line("closed ranges with a wrong byte, before their blob was verified", "%d", k.unverified.Load())
	causes := causesOf(k.failures, k.hub.Ledger())
	line("failed requests", "%d", len(k.failures))
	for _, what := range slices.Sorted(maps.Keys(causes.rows)) {
		line("failed: "+what, "%d", causes.rows[what])
	}
	line("bodies that broke once, requests refused for them", "%d, %d", causes.single, causes.refused)
	line("hit ratio of manifests", "%.1f %% (revalidated and stale included)", ratio(m.Hit+m.Revalidated+m.Stale, m.Miss+m.Shared+m.Bypass))
	line("hit ratio of blobs", "%.1f %% (%.1f %% with shared downloads)", ratio(b.Hit, b.Miss+b.Shared+b.Bypass), ratio(b.Hit+b.Shared, b.Miss+b.Bypass))
	line("bytes served, fetched", "%d MiB, %d MiB", st.Bytes.Served>>20, st.Bytes.Fetched>>20)
	line("evictions", "%d of %d MiB", st.Store.Evictions, st.Store.EvictedBytes>>20)
	line("manifest, p50 / p99", "%s / %s", soakQuantile(k.manifests, .5), soakQuantile(k.manifests, .99))
	line("first byte of a blob, p50 / p99", "%s / %s", soakQuantile(k.firsts, .5), soakQuantile(k.firsts, .99))
	line("resident memory at the peak", "%d MiB", peak.rss>>20)
	line("file descriptors before, peak, after", "%d, %d, %d", before.fds, peak.fds, after.fds)
	line("goroutines before, after", "%d, %d", before.goroutines, after.goroutines)
	return out.String()
}

func soakQuantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	return ds[int(float64(len(ds)-1)*q)].Round(100 * time.Microsecond)
}
