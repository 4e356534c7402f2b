package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hubcache/hubcache/admin"
)

func (p *process) stats() (s admin.Stats) {
	p.t.Helper()
	_, body := p.get(p.admin + "/api/v1/stats")
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// reload changes the settings file, sends SIGHUP, and waits until the log has a new line
// with the text says.
func (p *process) reload(config, says string) {
	p.t.Helper()
	before := len(p.logged())
	p.configure(config)
	p.signal(syscall.SIGHUP)
	eventually(p.t, "log: "+says, func() bool {
		return strings.Contains(strings.Join(p.logged()[before:], "\n"), says)
	})
}

// TestReloadTakesOverWhatCanChange: SIGHUP puts into effect what can change, and
// logs what can't.
func TestReloadTakesOverWhatCanChange(t *testing.T) {
	p := startServer(t, "budget: 1GiB\ndeny: [library/evil]\n")
	denied := func(name string) bool {
		_, body := p.get(p.pull + "/v2/" + name + "/manifests/1")
		return strings.Contains(body, "not allowed by this cache's settings")
	}
	if !denied("library/evil") || denied("library/good") {
		t.Error("deny isn't in force at the start")
	}
	p.reload("budget: 2GiB\nlog: {level: info}\ndeny: [library/good]\nmetrics: {compat: true}\n", "settings read again")
	if got := p.stats().Store.BudgetBytes; got != 2<<30 {
		t.Errorf("the budget is %d", got)
	}
	if denied("library/evil") || !denied("library/good") {
		t.Error("the new deny isn't in force")
	}
	if line := p.awaitLog("changes with the next start only"); !strings.Contains(line, `"metrics.compat"`) {
		t.Errorf("what can't change: %s", line)
	}
	p.reload("budget: 2GiB\nlog: {level: info}\nlisten_allow: [127.0.0.2]\n", "settings read again")
	if _, err := http.Get(p.pull + "/v2/"); err == nil { // an open connection is there from above
		t.Error("listen_allow isn't in force")
	}
	p.reload("budget: 3GiB\n", "settings read again")
	if status, _ := p.get(p.pull + "/v2/"); status != http.StatusOK {
		t.Errorf("after listen_allow is gone: %d", status)
	}
	p.configure("budget: 4GiB\nlog: {level: warn}\ndeny: [library/quiet]\n")
	p.signal(syscall.SIGHUP)
	eventually(t, "the next budget", func() bool { return p.stats().Store.BudgetBytes == 4<<30 })
	if !denied("library/quiet") {
		t.Error("the last deny isn't in force")
	}
	p.signal(syscall.SIGTERM)
	p.ends(0)
	if log := strings.Join(p.logged(), "\n"); strings.Contains(log, "library/quiet") {
		t.Errorf("at level warn it logs a request:\n%s", log)
	}
}

// TestFaultySettingsChangeNothing: with a faulty file all old settings stay. A metric shows
// it, because systemctl reload can't.
func TestFaultySettingsChangeNothing(t *testing.T) {
	p := startServer(t, "budget: 1GiB\n")
	if _, m := p.get(p.admin + "/metrics"); strings.Contains(m, "hubcache_config_last_reload_successful") {
		t.Error("a reload before there was one")
	}
	for config, says := range map[string]string{
		"budget: 2GiB\nbugdet: 3GiB\n":               ":2: bugdet: unknown setting",
		"budget: 2GiB\nupstream: {username: jane}\n": "password_file is not",
		"budget: 2GiB\ndeny: ['[']\n":                ":2: deny: ",
		"budget: 2GiB\n  nonsense":                   "line 2",
	} {
		p.reload(config, "the old ones stay")
		log := p.logged()
		if line := log[len(log)-1]; !strings.Contains(line, says) {
			t.Errorf("%q: the log doesn't say %q: %s", config, says, line)
		}
		if got := p.stats().Store.BudgetBytes; got != 1<<30 {
			t.Errorf("%q: the budget is %d", config, got)
		}
		if _, m := p.get(p.admin + "/metrics"); !strings.Contains(m, "\nhubcache_config_last_reload_successful 0\n") {
			t.Errorf("%q: metrics don't tell", config)
		}
	}
	if err := os.Remove(p.config); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	p.awaitLog("no such file")
	p.reload("budget: 4GiB\n", "settings read again")
	if got := p.stats().Store.BudgetBytes; got != 4<<30 {
		t.Errorf("after the file was repaired the budget is %d", got)
	}
	if _, m := p.get(p.admin + "/metrics"); !strings.Contains(m, "\nhubcache_config_last_reload_successful 1\n") {
		t.Error("metrics don't tell of the good reload")
	}
}
