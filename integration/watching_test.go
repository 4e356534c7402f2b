//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAlertRules: the rules are valid, and ring when they should, and not otherwise.
func TestAlertRules(t *testing.T) {
	promtool := program(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "rules", "hubcache.rules.yaml"}, {"test", "rules", "hubcache.rules.test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "../packaging/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	page, err := os.ReadFile("../docs/use/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../packaging/prometheus/hubcache.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains(string(page), "`"+m[1]+"`") {
			t.Errorf("docs/use/monitoring.md doesn't say what to do about %s", m[1])
		}
	}
}

// TestEveryMetricThatIsNamedExists asks a real Prometheus, which scrapes a running server. Each
// panel of the dashboard must have data, and each series that the alert rules and the documents
// name must be there, with its labels.
func TestEveryMetricThatIsNamedExists(t *testing.T) {
	s, metrics := startMeasured(t)
	ask := startPrometheus(t, s.Admin)
	for _, p := range dashboard(t) {
		for _, expr := range p.exprs {
			if n, err := ask(expr); err != nil || n == 0 {
				t.Errorf("panel %q: %s: %d series, %v", p.title, expr, n, err)
			}
		}
	}
	named := 0
	have := samples(metrics)
	for path, text := range namingFiles(t) {
		for _, m := range selector.FindAllStringSubmatch(text, -1) {
			named++
			if !have[m[1]] {
				t.Errorf("%s: there is no metric %s", path, m[1])
			} else if m[2] != "" {
				if n, err := ask(m[1] + m[2]); err != nil || n == 0 {
					t.Errorf("%s: there is no series %s%s: %v", path, m[1], m[2], err)
				}
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d metrics are named: the test doesn't find them", named)
	}
	page := namingFiles(t)["../docs/use/monitoring.md"]
	for name := range have {
		partOfHistogram := strings.HasSuffix(name, "_bucket") || strings.HasSuffix(name, "_sum") || strings.HasSuffix(name, "_count")
		if strings.HasPrefix(name, "hubcache_") && !partOfHistogram && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/use/monitoring.md doesn't name %s", name)
		}
	}
}

// selector finds names of metrics, and the matchers of their labels.
var selector = regexp.MustCompile(`\b(hubcache_[a-z_]*[a-z])(\{[a-z_]+[=!][^{}]*\})?`)

// namingFiles are the files that name metrics, with their texts.
func namingFiles(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"../README.md", "../CHANGELOG.md", "../docs/*/*.md", "../docs/*/*.yaml", "../packaging/prometheus/*.rules.yaml", "../packaging/grafana/*.json"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = filled(string(b))
		}
	}
	return texts
}

// filled is a text of the dashboard with values for Grafana's variables.
func filled(text string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$__range", "1m", "$job", "hubcache", "$instance", ".+", `\"`, `"`).Replace(text)
}

// panel is one panel of the dashboard.
type panel struct {
	title string
	exprs []string
}

// dashboard reads the dashboard and checks its form: each panel has a title of its own, the
// data source of the variable, and a place that no other panel has.
func dashboard(t *testing.T) (panels []panel) {
	t.Helper()
	b, err := os.ReadFile("../packaging/grafana/hubcache.json")
	if err != nil {
		t.Fatal(err)
	}
	type source struct{ UID string }
	var doc struct {
		Title, UID string
		Panels     []struct {
			ID          int
			Type, Title string
			Datasource  *source
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct {
				Expr       string
				Datasource source
			}
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range doc.Panels {
		if p.Title == "" || ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: no title, the number of another one, or wider than the page", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := taken[at]; ok {
					t.Fatalf("panels %q and %q overlap", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource == nil || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %q: not the data source of the variable, or nothing to show", p.Title)
		}
		shown := panel{title: p.Title}
		for _, target := range p.Targets {
			shown.exprs = append(shown.exprs, filled(target.Expr))
		}
		panels = append(panels, shown)
	}
	if doc.Title != "hubcache" || doc.UID != "hubcache" || len(panels) < 20 {
		t.Errorf("%q, %q, %d panels", doc.Title, doc.UID, len(panels))
	}
	return panels
}

// startPrometheus starts a Prometheus that scrapes the server and evaluates the alert rules. It
// returns a function that says how many series an expression has.
func startPrometheus(t *testing.T, target string) (ask func(expr string) (int, error)) {
	t.Helper()
	prometheus := program(t, "prometheus", "prometheus")
	rules, err := filepath.Abs("../packaging/prometheus/hubcache.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 5s}\nrule_files: [%s]\nscrape_configs: [{job_name: hubcache, scrape_timeout: 1s, static_configs: [{targets: [%q]}]}]\n", rules, target)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t, "127.0.0.1")
	cmd := exec.Command(prometheus, "--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--web.listen-address="+addr, "--log.level=warn")
	cmd.Dir = dir
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the log of Prometheus:\n%s", log.String())
		}
	})
	ask = func(expr string) (int, error) {
		a, err := request(t.Context(), "GET", "http://"+addr+"/api/v1/query?query="+url.QueryEscape(expr))
		if err != nil {
			return 0, err
		}
		var answer struct {
			Error string
			Data  struct{ Result []any }
		}
		if err := json.Unmarshal(a.Body, &answer); err != nil {
			return 0, err
		}
		if answer.Error != "" {
			err = fmt.Errorf("%s", answer.Error)
		}
		return len(answer.Data.Result), err
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		n, err := ask("count_over_time(hubcache_uptime_seconds[1m]) > 2") // enough for a rate
		if n > 0 {
			return ask
		}
		if time.Now().After(deadline) {
			t.Fatalf("Prometheus doesn't scrape the server: %v\n%s", err, log.String())
		}
	}
}
