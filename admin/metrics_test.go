package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/hubcache/hubcache/auth"
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
	golden(t, "testdata/metrics.txt", strings.Join(ownSeries(scrape(t, o)), "\n")+"\n")
}

// The states of the access token are those that package auth knows, so that one is 1 always.
func TestMetricsKnowEveryStateOfTheToken(t *testing.T) {
	for _, state := range []any{auth.CredentialNone, auth.CredentialUntried, auth.CredentialAccepted, auth.CredentialRefused, auth.CredentialExpired,
		auth.CredentialThrottled, auth.FileMissing, auth.FileUnreadable, auth.FileEmpty, auth.FileMalformed} {
		if !slices.Contains(credentialStates, fmt.Sprint(state)) {
			t.Errorf("no metric for %s", state)
		}
	}
}

// A dashboard for distribution's registry goes on, if the settings say so: with the same names
// (registry/proxy/proxymetrics.go of v3), and every request either a hit or a miss.
func TestMetricsWithTheNamesOfDistribution(t *testing.T) {
	o := busy()
	if strings.Contains(scrape(t, o), "registry_proxy_") {
		t.Error("nobody asked for them")
	}
	o.Compat = true
	for _, body := range []string{scrape(t, o), scrapeAlone(t, o)} {
		for _, want := range []string{
			`registry_proxy_requests_total{type="manifest"} 141`, `registry_proxy_hits_total{type="manifest"} 92`,
			`registry_proxy_misses_total{type="manifest"} 49`, `registry_proxy_pulled_bytes_total{type="manifest"} 38`,
			`registry_proxy_pushed_bytes_total{type="manifest"} 37`,
			`registry_proxy_requests_total{type="blob"} 130`, `registry_proxy_hits_total{type="blob"} 28`,
			`registry_proxy_misses_total{type="blob"} 102`, `registry_proxy_pulled_bytes_total{type="blob"} 49`,
			`registry_proxy_pushed_bytes_total{type="blob"} 39`,
		} {
			if !strings.Contains(body, "\n"+want+"\n") {
				t.Errorf("%s is missing", want)
			}
		}
	}
}

// scrapeAlone scrapes the listener that has nothing else.
func scrapeAlone(t *testing.T, o Options) string {
	t.Helper()
	h := NewMetrics(o)
	for method, path := range map[string]string{http.MethodGet: "/api/v1/stats", http.MethodPost: "/metrics", http.MethodDelete: "/"} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest(method, path, nil)); w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %d", method, path, w.Code)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// The linter is Prometheus' own, for names, units and help texts.
func TestMetricsPassTheLinter(t *testing.T) {
	o := busy()
	o.Compat = true
	problems, err := promlint.New(strings.NewReader(scrape(t, o))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "hubcache_") || strings.HasPrefix(p.Metric, "registry_") {
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
