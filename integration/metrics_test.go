//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// startMeasured starts a server with a listener for metrics alone, on which everything has
// happened that brings a metric: a pull, a limit of the Hub, a reload.
func startMeasured(t *testing.T) (s *server, metrics string) {
	t.Helper()
	hub := startHub(t, hubtest.Options{})
	addr := freeAddr(t, "127.0.0.1")
	data := t.TempDir()
	last := `{"schema": 1, "began": "2026-01-02T03:04:05Z", "took_ms": 1000, "images": 1, "failures": [], "succeeded": "2026-01-02T03:04:05Z"}`
	if err := os.WriteFile(filepath.Join(data, "warm.json"), []byte(last), 0o600); err != nil {
		t.Fatal(err)
	}
	s = startServer(t, serverOptions{Hub: hub, Data: data, Env: []string{
		"HUBCACHE_WARM_SCHEDULE=0 4 1 1 *", "HUBCACHE_WARM_REFERENCES=app:1",
		"HUBCACHE_METRICS_LISTEN=" + addr, "HUBCACHE_METRICS_COMPAT=true",
		// A shared tier that nobody answers for: its metrics are there, and the server goes on alone.
		"HUBCACHE_SHARED_BUCKET_ENDPOINT=http://127.0.0.1:1", "HUBCACHE_SHARED_BUCKET_NAME=images",
		"AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=nothing", // so that no metadata of an instance is asked
		"HUBCACHE_SHARED_LEASE_REDIS=127.0.0.1:1", "HUBCACHE_SHARED_BUDGET=1TiB", "HUBCACHE_SHARED_ADVERTISE=http://" + addr,
	}})
	if err := pullImage(t.Context(), s.URL, hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 1<<20)}), ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	url := "http://" + addr + "/metrics"
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if metrics = string(get(t, url).Body); strings.Contains(metrics, "hubcache_config_last_reload_successful 1") {
			return s, metrics
		}
		if time.Now().After(deadline) {
			t.Fatal("no reload is seen in the metrics")
		}
	}
}

var sample = regexp.MustCompile(`(?m)^([a-z_]+)[{ ]`)

// samples returns the names of the series, and of the histograms.
func samples(metrics string) map[string]bool {
	names := map[string]bool{}
	for _, m := range sample.FindAllStringSubmatch(metrics, -1) {
		names[m[1]], names[strings.TrimSuffix(m[1], "_bucket")] = true, true
	}
	return names
}

// TestMetricsOnAListenerOfTheirOwn: the listener has /metrics and nothing else, with the same
// series as the admin listener's, and Prometheus' own check finds no fault with them.
func TestMetricsOnAListenerOfTheirOwn(t *testing.T) {
	s, metrics := startMeasured(t)
	of := func(text string) []string { return slices.Sorted(maps.Keys(samples(text))) }
	if got, want := of(metrics), of(string(get(t, "http://"+s.Admin+"/metrics").Body)); !slices.Equal(got, want) {
		t.Errorf("got %v\nand the admin listener has %v", got, want)
	}
	if !strings.Contains(metrics, `registry_proxy_requests_total{type="blob"}`) {
		t.Error("metrics.compat brings no registry_proxy_requests_total")
	}
	check := exec.Command(program(t, "promtool", "prometheus"), "check", "metrics")
	check.Stdin = strings.NewReader(metrics)
	if out, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	for i := range 30 { // what clients invent makes no series
		for _, path := range []string{"/v2/library/invented-%d/manifests/1", "/v2/library/app/manifests/invented-%d", "/v2/library/app/blobs/sha256:%064d", "/invented-%d", "/v2/x/manifests/1?ns=invented-%d.example"} {
			if _, err := request(t.Context(), "GET", s.URL+fmt.Sprintf(path, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	series := func(text string) int {
		return strings.Count(text, "\nhubcache_") + strings.Count(text, "\nregistry_proxy_")
	}
	if now := string(get(t, "http://"+s.Admin+"/metrics").Body); series(now) != series(metrics) {
		t.Errorf("%d series, and %d after 150 invented requests", series(metrics), series(now))
	}
	addr := regexp.MustCompile(`"metrics":\["http://([^"]+)"`).FindStringSubmatch(s.Log())
	if addr == nil {
		t.Fatal("the log doesn't say where the metrics are")
	}
	for _, path := range []string{"/", "/api/v1/stats", "/api/v1/images", "/v2/", "/healthz"} {
		if a, err := request(t.Context(), "GET", "http://"+addr[1]+path); err != nil || a.Status != 404 {
			t.Errorf("%s: %d, %v", path, a.Status, err)
		}
	}
}
