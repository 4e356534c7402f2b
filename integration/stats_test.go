//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// Stats returns the server's stats document.
func (s *server) Stats() admin.Stats {
	s.t.Helper()
	var stats admin.Stats
	if err := json.Unmarshal(get(s.t, "http://"+s.Admin+"/api/v1/stats").Body, &stats); err != nil {
		s.t.Fatal(err)
	}
	return stats
}

// statsShape is the document of `hubcache stats --json` that other programs rely on: each key
// with the JSON type of its value.
const statsShape = `
bytes.fetched number
bytes.hit number
bytes.read_ahead_unused number
bytes.served number
connections.refused number
hit_ratio.bytes number
hit_ratio.requests number
inflight[].digest string
inflight[].readers number
inflight[].received number
inflight[].repository string
inflight[].size number
requests.blob.bypass number
requests.blob.error number
requests.blob.errors.client number
requests.blob.errors.disk number
requests.blob.errors.policy number
requests.blob.errors.upstream number
requests.blob.hit number
requests.blob.miss number
requests.blob.read_ahead number
requests.blob.shared number
requests.manifest.bypass number
requests.manifest.error number
requests.manifest.errors.client number
requests.manifest.errors.disk number
requests.manifest.errors.policy number
requests.manifest.errors.upstream number
requests.manifest.hit number
requests.manifest.miss number
requests.manifest.quarantine number
requests.manifest.revalidated number
requests.manifest.shared number
requests.manifest.stale number
schema number
shared.bucket string
shared.bucket_bytes number
shared.budget_bytes number
shared.bytes number
shared.evicted_bytes number
shared.eviction string
shared.evictions number
shared.hits number
shared.lease string
shared.leases number
shared.mismatches number
shared.recalls number
shared.state string
shared.uploads number
store.blobs number
store.budget_bytes number
store.bytes number
store.corrupt number
store.disk_bytes number
store.disk_free_bytes number
store.evicted_bytes number
store.evictions number
store.index_bytes number
store.manifests number
store.oldest_use string
store.pinned_bytes number
store.pins number
store.reserved_bytes number
store.slow_readers number
store.tags number
store.write_errors number
totals.bytes.fetched number
totals.bytes.hit number
totals.bytes.read_ahead_unused number
totals.bytes.served number
totals.evicted_bytes number
totals.evictions number
totals.requests.blob.bypass number
totals.requests.blob.error number
totals.requests.blob.errors.client number
totals.requests.blob.errors.disk number
totals.requests.blob.errors.policy number
totals.requests.blob.errors.upstream number
totals.requests.blob.hit number
totals.requests.blob.miss number
totals.requests.blob.read_ahead number
totals.requests.blob.shared number
totals.requests.manifest.bypass number
totals.requests.manifest.error number
totals.requests.manifest.errors.client number
totals.requests.manifest.errors.disk number
totals.requests.manifest.errors.policy number
totals.requests.manifest.errors.upstream number
totals.requests.manifest.hit number
totals.requests.manifest.miss number
totals.requests.manifest.quarantine number
totals.requests.manifest.revalidated number
totals.requests.manifest.shared number
totals.requests.manifest.stale number
totals.since string
upstreams[].authenticated bool
upstreams[].clock_ahead_seconds number
upstreams[].credential.detail string
upstreams[].credential.exposed bool
upstreams[].credential.state string
upstreams[].credential.usable bool
upstreams[].failure <nil>
upstreams[].next_attempt <nil>
upstreams[].rate_limit.limit number
upstreams[].rate_limit.observed string
upstreams[].rate_limit.remaining number
upstreams[].rate_limit.source string
upstreams[].rate_limit.window_seconds number
upstreams[].registry string
upstreams[].requests number
upstreams[].state string
upstreams[].url string
uptime_seconds number
version string
visibility.oldest_age_seconds number
visibility.overdue number
warm.last <nil>
warm.next <nil>
warm.running bool
warm.schedule string
`

// jsonShape adds the leaves of a JSON value, with their types, to shape.
func jsonShape(path string, v any, shape map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			jsonShape(strings.TrimPrefix(path+"."+key, "."), value, shape)
		}
	case []any:
		for _, value := range v {
			jsonShape(path+"[]", value, shape)
		}
	case float64:
		shape[path+" number"] = true
	default:
		shape[fmt.Sprintf("%s %T", path, v)] = true
	}
}

// TestStatsDocumentIsStable checks the keys and types of the document. It does so during a
// download, so that no list is empty and no value is null.
func TestStatsDocumentIsStable(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub, Args: []string{"--budget", "3GiB"}})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2<<20)})
	layer := img.Manifests[0].Layers[0]
	rule := hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: layer.Digest.String()}, hubtest.StallAfter(1<<20))
	get(t, s.URL+"/v2/library/app/manifests/1")
	done := make(chan error, 1)
	go func() { done <- pullBlob(t.Context(), s.URL, "library/app", layer) }()
	for deadline := time.Now().Add(10 * time.Second); len(s.Stats().Inflight) == 0 || rule.Hits() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the document does not show the download")
		}
		time.Sleep(10 * time.Millisecond)
	}
	raw := s.Command("stats", "--json")
	var document map[string]any
	if err := json.Unmarshal([]byte(raw), &document); err != nil {
		t.Fatal(err)
	}
	shape := map[string]bool{}
	jsonShape("", document, shape)
	got := slices.Sorted(maps.Keys(shape))
	if got := strings.Join(got, "\n"); got != strings.TrimSpace(statsShape) {
		t.Errorf("the document has\n%s\nwant%s", got, statsShape)
	}
	rule.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if document["schema"] != 1.0 {
		t.Errorf("schema %v", document["schema"])
	}
	if budget := s.Stats().Store.BudgetBytes; budget != 3<<30 {
		t.Errorf("budget_bytes %d, want %d", budget, 3<<30)
	}
}

// TestStatsAddUp makes requests of each kind, and compares the server's counters with the
// requests and with what the Hub sent.
func TestStatsAddUp(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	spec := hubtest.ImageSpec{Layers: hubtest.Layers(3, 3<<20), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}
	img := hub.AddImage("library/app", "1", spec)
	other := hub.AddImage("acme/tool", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)}) // TTL 0: revalidated
	var manifests, blobs, served int64
	for _, pulled := range []*hubtest.Image{img, img, other, other} {
		if err := pullImage(t.Context(), s.URL, pulled, ""); err != nil {
			t.Fatal(err)
		}
		manifests++
		served += int64(len(pulled.Bytes))
		if pulled.IsIndex {
			for _, m := range pulled.Manifests {
				manifests++
				served += m.Size
			}
		}
		blobs += int64(len(pulled.Blobs()))
		served += pulled.Size()
	}
	expect := func(method, path string, want int) {
		t.Helper()
		if a, err := request(t.Context(), method, s.URL+"/v2/"+path); err != nil || a.Status != want {
			t.Errorf("%s %s: %d, %v; want %d", method, path, a.Status, err, want)
		}
	}
	layer := img.Manifests[0].Layers[0].Digest.String()
	expect(http.MethodHead, "library/app/manifests/1", 200)
	expect(http.MethodHead, "library/app/blobs/"+layer, 200)
	expect(http.MethodGet, "library/app/manifests/none", 404)
	expect(http.MethodGet, "library/none/manifests/1", 404)
	expect(http.MethodGet, "library/app/blobs/sha256:"+strings.Repeat("0", 64), 404)
	manifests, blobs = manifests+3, blobs+2
	expect(http.MethodGet, "library/app/tags/list", 200) // counts as neither manifest nor blob
	expect(http.MethodGet, "", 200)

	stats := s.Stats()
	m, b := stats.Requests.Manifest, stats.Requests.Blob
	if got := m.Hit + m.Revalidated + m.Miss + m.Shared + m.Stale + m.Bypass + m.Quarantine + m.Error; got != manifests {
		t.Errorf("%d manifest requests counted, %d made: %+v", got, manifests, m)
	}
	if got := b.Hit + b.Miss + b.Shared + b.Bypass + b.Error; got != blobs {
		t.Errorf("%d blob requests counted, %d made: %+v", got, blobs, b)
	}
	if m.Revalidated != 1 || m.Error != 2 || b.Error != 1 || m.Stale+m.Bypass+b.Bypass != 0 {
		t.Errorf("manifests %+v, blobs %+v", m, b)
	}
	if m.Errors != (admin.Errors{Client: 2}) || b.Errors != (admin.Errors{Client: 1}) {
		t.Errorf("what doesn't exist is the client's fault: %+v, %+v", m.Errors, b.Errors)
	}
	if stats.Bytes.Served != served {
		t.Errorf("bytes.served %d, the clients received %d", stats.Bytes.Served, served)
	}
	if sent := bodyBytes(hub); stats.Bytes.Fetched != sent {
		t.Errorf("bytes.fetched %d, the Hub sent %d", stats.Bytes.Fetched, sent)
	}
	if onDisk := cacheSize(t, s.Data); stats.Store.Bytes != onDisk {
		t.Errorf("store.bytes %d, and the files have %d bytes", stats.Store.Bytes, onDisk)
	}
	quota := stats.Upstreams[0].RateLimit
	if quota == nil || quota.Limit != 200 || quota.Remaining != int64(200-hub.Used(labUser)) || quota.WindowSeconds != 6*3600 {
		t.Errorf("rate_limit %+v, the account has used %d of 200", quota, hub.Used(labUser))
	}
	table := s.Command("stats")
	t.Logf("the table:\n%s", table)
	for _, want := range []string{"hit ratio", "bytes saved", "budget", "quota", fmt.Sprintf("%d of 200", quota.Remaining)} {
		if !strings.Contains(table, want) {
			t.Errorf("the table does not contain %q:\n%s", want, table)
		}
	}
}

// bodyBytes returns how many bytes of manifests and blobs the Hub has sent, without error bodies.
func bodyBytes(hub *hubtest.Hub) (n int64) {
	for _, e := range hub.Ledger() {
		if (e.Kind == "manifests" || e.Kind == "blobs") && (e.Status == http.StatusOK || e.Status == http.StatusPartialContent) {
			n += e.BodyBytes
		}
	}
	return n
}
