package admin

import (
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func scrape(t *testing.T, o Options) string {
	t.Helper()
	resp, body := get(t, o, "/metrics")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	return body
}

// ownSeries returns the lines of our own series, in order.
func ownSeries(body string) []string {
	lines := slices.DeleteFunc(strings.Split(body, "\n"), func(l string) bool { return !strings.HasPrefix(l, "hubcache_") })
	for i, l := range lines { // values that depend on the time and the toolchain
		for _, changing := range []string{"hubcache_uptime_seconds", "hubcache_cache_longest_idle_seconds"} {
			if strings.HasPrefix(l, changing+" ") {
				lines[i] = changing + " N"
			}
		}
		lines[i] = regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(lines[i], `goversion="N"`)
	}
	return lines
}

// Dashboards rely on the name of every series.
func TestNamesOfMetricsStay(t *testing.T) {
	o := busy()
	o.LastReload = func() LastReload { return LastReload{Time: time.Unix(1700000000, 0), OK: true} }
	got := strings.Join(ownSeries(scrape(t, o)), "\n") + "\n"
	want, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// The linter is Prometheus' own, for names, units and help texts.
func TestMetricsPassTheLinter(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t, busy()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "hubcache_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// The number of series must not grow with the number of images.
func TestMetricLabelsNameNoImage(t *testing.T) {
	for _, word := range []string{"redis", "sha256:", "library/"} {
		if body := scrape(t, busy()); strings.Contains(body, word) {
			t.Errorf("%q is in the metrics", word)
		}
	}
}

// Before the first request, counters are 0, and what isn't known is left out.
func TestIdleServerHasCountersAtZero(t *testing.T) {
	body := scrape(t, idle())
	for _, want := range []string{
		`hubcache_requests_total{kind="blob",result="hit"} 0`, `hubcache_requests_total{kind="manifest",result="stale"} 0`,
		"hubcache_upstream_bytes_total 0", "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, not := range []string{"ratelimit_remaining{", "longest_idle_seconds ", "config_last_reload_successful "} {
		if strings.Contains(body, not) {
			t.Errorf("%q is there", not)
		}
	}
}
