package admin

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
	"github.com/hubcache/hubcache/warm"
)

type fakeStore storage.Stats

func (s fakeStore) Stats() storage.Stats { return storage.Stats(s) }

type fakeRegistry registry.Stats

func (r fakeRegistry) Stats() registry.Stats { return registry.Stats(r) }

var observed = time.Date(2026, 3, 4, 6, 6, 7, 0, time.FixedZone("", 3600))

// times are the buckets of requests of which first took at most the first bound, and the others the
// second.
func times(first, all int64) (b [len(registry.FirstByteBounds)]int64) {
	for i := range b {
		b[i] = all
	}
	b[0] = first
	return b
}

// busy has a different number in every field.
func busy() Options {
	return Options{
		Store: fakeStore{
			Bytes: 1, ReservedBytes: 2, PinnedBytes: 3, Pins: 29, BudgetBytes: 4, IndexBytes: 5, Blobs: 6, Manifests: 7, Tags: 8,
			Evictions: 9, EvictedBytes: 10, SlowReaders: 18, Corrupt: 19,
			EvictedFor:  map[storage.EvictionReason]storage.Evicted{storage.ForBudget: {Count: 14, Bytes: 15}, storage.ForMinFree: {Count: 16, Bytes: 28}},
			WriteErrors: 11, OldestUse: observed, DiskBytes: 13, DiskFreeBytes: 12,
			Shortages: []storage.Shortage{{Kind: storage.ImageTooLarge, Image: "docker.io/library/x:1", Has: 4, Needs: 5 << 20}},
		},
		Registry: fakeRegistry{
			Manifest: registry.Requests{Hit: 21, Revalidated: 22, Miss: 23, Shared: 24, Stale: 25, Bypass: 26, Error: 27, Sent: 37, Fetched: 38,
				Errors:    registry.Errors{Client: 3, Policy: 5, Upstream: 7, Disk: 12},
				FirstByte: map[registry.Outcome]registry.Histogram{registry.OutcomeHit: {Count: 3, Sum: 1500 * time.Millisecond, Buckets: times(1, 2)}}},
			Blob: registry.Requests{Hit: 31, Miss: 32, Shared: 33, Bypass: 34, Error: 35, ReadAhead: 36, Sent: 39, Fetched: 49,
				Errors:    registry.Errors{Client: 4, Policy: 6, Upstream: 8, Disk: 17},
				FirstByte: map[registry.Outcome]registry.Histogram{registry.OutcomeMiss: {Count: 5, Sum: time.Second, Buckets: times(2, 4)}}},
			OverdueVisibilities: 46, OldestVisibility: 47 * time.Second,
			Served: 41, Hit: 40, Fetched: 42, ReadAheadUnused: 43, Resumes: 44, DigestMismatches: 45, StaleReferrers: 48, SlowReaders: 49,
			Upstreams: []upstream.Stats{{
				Registry: "docker.io", URL: "https://registry-1.docker.io", State: "cooling", Requests: 51, Authenticated: true,
				RateLimit:     &upstream.RateLimit{Limit: 52, Remaining: 53, WindowSeconds: 54, Source: "192.0.2.1", Observed: observed},
				Responses:     map[string]int64{"2xx": 55, "error": 56},
				TokenRequests: map[string]int64{"ok": 57},
				Credential:    auth.CredentialStatus{State: auth.CredentialState(auth.FileEmpty), Detail: "is empty", Usable: true, Exposed: true},
				Failure:       &upstream.Failure{Kind: upstream.FailureBroken, Host: "auth.docker.io", Status: 503, At: observed},
				NextAttempt:   observed.Add(time.Minute),
				ClockAhead:    ptr(-58 * time.Second),
			}},
			Inflight: []fetch.Inflight{
				{Digest: "sha256:bb", Repository: "docker.io/library/redis", Size: -1, Received: 62, Readers: 63},
				{Digest: "sha256:aa", Repository: "docker.io/library/redis", Size: 64, Received: 65, Readers: 66},
			},
			Recent: []registry.Failure{
				{Cause: "client", Reason: registry.ReasonAbsent, Registry: "docker.io", Repository: "library/x", Reference: "1", Detail: "no such thing", Count: 72, First: observed, Last: observed},
			},
		},
		Refused: func() int64 { return 71 },
		Shared: func() Shared {
			return Shared{"unwell", "well", "it refuses", 81, 82, 83, 86, 84, 85, "this node", 87, 88, 89, 90}
		},
		Warm: func() warm.State {
			return warm.State{Schedule: "30 3 * * *", Next: observed.Add(time.Hour), Last: &warm.Run{Began: observed, Took: 86 * time.Second, Images: 87, Fetched: 88}, Succeeded: observed}
		},
		Totals: func(t Totals) Totals {
			t.Since, t.Bytes.Served, t.Requests.Manifest.Hit = observed.UTC(), t.Bytes.Served+1000, t.Requests.Manifest.Hit+2000
			return t
		},
		Version: "1.2.3", Started: time.Now().Add(-90*time.Second - 500*time.Millisecond),
	}
}

func ptr[T any](v T) *T { return &v }

// idle is a server that nobody has used yet.
func idle() Options {
	return Options{
		Store:    fakeStore{},
		Registry: fakeRegistry{Upstreams: []upstream.Stats{{Registry: "docker.io", URL: "https://registry-1.docker.io", State: "ok", Credential: auth.CredentialStatus{State: auth.CredentialNone}}}},
		Version:  "1.2.3", Started: time.Now(), Totals: func(t Totals) Totals { t.Since = observed.UTC(); return t },
	}
}

func ask(t *testing.T, o Options, req *http.Request) *http.Response {
	t.Helper()
	w := httptest.NewRecorder()
	New(o).ServeHTTP(w, req)
	return w.Result()
}

func get(t *testing.T, o Options, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, path, nil)
	req.Host = "localhost:5001"
	New(o).ServeHTTP(w, req)
	return w.Result(), w.Body.String()
}

// golden compares got with a file; HUBCACHE_UPDATE=1 writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("HUBCACHE_UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// Other programs rely on the whole document: names, order, nulls and empty lists.
func TestStatsDocumentKeepsItsForm(t *testing.T) {
	for name, o := range map[string]Options{"busy": busy(), "idle": idle()} {
		resp, body := get(t, o, "/api/v1/stats")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s, %s", name, resp.Status, resp.Header.Get("Content-Type"))
		}
		golden(t, "testdata/stats-"+name+".json", body)
	}
}

// The command line reads the document into Stats.
func TestStatsHasEveryFieldOfTheDocument(t *testing.T) {
	_, body := get(t, busy(), "/api/v1/stats")
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	var s Stats
	if err := dec.Decode(&s); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if string(again)+"\n" != body {
		t.Errorf("got\n%s\nwant\n%s", again, body)
	}
}

func TestUnknownPathsAndMethodsGetJSONErrors(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/healthz", 200}, {"HEAD", "/healthz", 200}, {"GET", "/readyz", 200}, {"GET", "/metrics", 200},
		{"GET", "/api/v1/stats", 200}, {"HEAD", "/api/v1/stats", 200},
		{"GET", "/v2/", 404}, {"GET", "/nothing", 404}, {"GET", "/api/v1/", 404}, {"GET", "/debug/pprof/", 404},
		{"POST", "/api/v1/stats", 405}, {"DELETE", "/healthz", 405}, {"PUT", "/metrics", 405},
	} {
		req := httptest.NewRequest(c.method, c.path, nil)
		req.Host = "localhost"
		resp := ask(t, idle(), req)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %s, want %d", c.method, c.path, resp.Status, c.status)
		}
		if c.status < 400 {
			continue
		}
		var e struct{ Error string }
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
			t.Errorf("%s %s: no JSON error: %v", c.method, c.path, err)
		}
		if allow := resp.Header.Get("Allow"); (c.status == 405) != (allow == "GET, HEAD") {
			t.Errorf("%s %s: Allow is %q", c.method, c.path, allow)
		}
	}
}

// A web page whose name resolves to this listener must not read its answers.
func TestForeignHostsAreRefused(t *testing.T) {
	o := idle()
	o.Hosts = []string{"Cache.example:5001", "", "0.0.0.0", "2001:db8::1"}
	for _, c := range []struct {
		host string
		ok   bool
	}{
		{"localhost", true}, {"LOCALHOST:5001", true}, {"localhost:80", true},
		{"127.0.0.1:5001", true}, {"[::1]:5001", true}, {"[::1]", true},
		{"192.0.2.5:5001", true}, {"192.0.2.5", true}, // the address of the connection
		{"cache.example", true}, {"CACHE.example:5001", true}, {"[2001:db8::1]:5001", true},
		{"", false}, {":5001", false}, {"evil.example", false}, {"evil.example:5001", false},
		{"192.0.2.6:5001", false}, {"localhost.evil.example", false}, {"127.0.0.1.evil.example", false},
		{"localhost@evil.example", false}, {"xlocalhost", false},
	} {
		for _, path := range []string{"/api/v1/stats", "/nothing", "/metrics", "/healthz", "/readyz"} {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.Host = c.host
			local := &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.5"), Port: 5001}
			req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, local))
			got := ask(t, o, req).StatusCode != http.StatusForbidden
			open := path == "/metrics" || path == "/healthz" || path == "/readyz"
			if want := c.ok || open; got != want {
				t.Errorf("Host %q on %s: accepted is %v, want %v", c.host, path, got, want)
			}
		}
	}
}

func TestStoppingServerIsHealthyAndNotReady(t *testing.T) {
	o := idle()
	o.Ready = func() bool { return false }
	if resp, _ := get(t, o, "/readyz"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("readyz: %s", resp.Status)
	}
	if resp, _ := get(t, o, "/healthz"); resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %s", resp.Status)
	}
}

// Cached images can be pulled while the upstream is down.
func TestReadyWithoutUpstream(t *testing.T) {
	o := idle()
	o.Registry = fakeRegistry{Upstreams: []upstream.Stats{{Registry: "docker.io", State: "down"}}}
	if resp, _ := get(t, o, "/readyz"); resp.StatusCode != http.StatusOK {
		t.Errorf("readyz: %s", resp.Status)
	}
}
