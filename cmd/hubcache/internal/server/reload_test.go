package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// reloading is a server whose settings a test changes and reads again.
type reloading struct {
	*server
	t    *testing.T
	file string
	log  bytes.Buffer
}

// startReloading opens a server with these settings; it doesn't listen.
func startReloading(t *testing.T, config string) *reloading {
	t.Helper()
	for _, name := range []string{"HUBCACHE_DATA_DIR", "HUBCACHE_BUDGET", "HUBCACHE_LISTEN", "HUBCACHE_LISTEN_ALLOW", "HUBCACHE_MIN_FREE"} {
		t.Setenv(name, "")
	}
	r := &reloading{t: t, file: filepath.Join(t.TempDir(), "config.yaml")}
	r.write(config)
	l := &settings.Loader{File: r.file, Check: Check}
	s, err := l.Load()
	if err != nil {
		t.Fatal(err)
	}
	r.server = &server{loader: l, settings: s, level: &slog.LevelVar{}, failed: make(chan error, 1)}
	r.server.log = slog.New(slog.NewTextHandler(&r.log, nil))
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	r.gate = &gate{log: r.server.log}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *reloading) write(config string) {
	r.t.Helper()
	if err := os.WriteFile(r.file, []byte(config), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// reloadWith reads these settings, and returns what was logged.
func (r *reloading) reloadWith(config string) string {
	r.t.Helper()
	r.write(config)
	r.log.Reset()
	r.reload()
	return r.log.String()
}

// TestReloadsKeepToTheFolderThatRuns: a data_dir that waits for the next start has no part in
// what reloads compute, however often they come, and whether it exists or not. Each reload
// names what waits, and no longer once the old value is back.
func TestReloadsKeepToTheFolderThatRuns(t *testing.T) {
	dir := t.TempDir()
	here, missing := filepath.Join(dir, "here"), filepath.Join(dir, "none", "there")
	other, err := os.MkdirTemp("/dev/shm", "hubcache") // another file system, of another size
	if err != nil {
		other = dir
	}
	defer os.RemoveAll(other)
	config := func(folder, budget string) string { return fmt.Sprintf("data_dir: %s\nbudget: %s\n", folder, budget) }
	r := startReloading(t, config(here, "50%"))
	half := r.store.Budget()

	for _, folder := range []string{other, missing} {
		for i := range 3 {
			log := r.reloadWith(config(folder, "50%"))
			if got := r.store.Budget(); got != half {
				t.Errorf("%s, reload %d: the budget is %d, want %d", folder, i+1, got, half)
			}
			if !strings.Contains(log, "settings read again") || !strings.Contains(log, "setting=data_dir") {
				t.Errorf("%s, reload %d: the log says %s", folder, i+1, log)
			}
		}
	}
	log := r.reloadWith(config(missing, "25%"))
	if got := r.store.Budget(); got < half/2-4096 || got > half/2+4096 {
		t.Errorf("a quarter is %d, and half is %d: %s", got, half, log)
	}
	if log := r.reloadWith(config(here, "50%")); strings.Contains(log, "setting=") || r.store.Budget() != half {
		t.Errorf("the old folder again: the budget is %d, the log says %s", r.store.Budget(), log)
	}
}

// TestReloadSaysWhatHasChanged: the line of a reload names each setting with its old and its new
// value, and a token without its value. A reload that changes nothing says that.
func TestReloadSaysWhatHasChanged(t *testing.T) {
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	writeToken := func(secret string) {
		t.Helper()
		if err := os.WriteFile(tokenFile, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeToken("dckr_pat_first")
	base := fmt.Sprintf("data_dir: %s\nupstream: {username: jane, password_file: %s}\n", filepath.Join(dir, "data"), tokenFile)
	r := startReloading(t, base+"budget: 10GiB\n")
	r.connections[0].cred.Version() // as the first request does
	if log := r.reloadWith(base + "budget: 10GiB\n"); !strings.Contains(log, `msg="settings read again" changed=[]`) {
		t.Errorf("nothing has changed, and the log says %s", log)
	}
	log := r.reloadWith(base + "budget: 20GiB\nlisten_allow: [10.0.0.0/8]\ntags: {rules: [{match: 'library/*:*', ttl: 5m}]}\n")
	for _, want := range []string{"budget: 10GiB → 20GiB", "listen_allow: nothing → 10.0.0.0/8", "tags.rules: [] → ", "library/*:*"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log: %s", want, log)
		}
	}
	if strings.Contains(log, "tags.ttl") || strings.Contains(log, "min_free") {
		t.Errorf("what stayed is in the log: %s", log)
	}
	log = r.reloadWith(base + "budget: 20GiB\nlisten: 127.0.0.1:5999\n")
	for _, want := range []string{"listen_allow: 10.0.0.0/8 → nothing", "setting=listen running=127.0.0.1:5000 next=127.0.0.1:5999"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log: %s", want, log)
		}
	}
	writeToken("dckr_pat_second")
	log = r.reloadWith(base + "budget: 20GiB\n")
	if !strings.Contains(log, "the access token has changed") || strings.Contains(log, "dckr_pat") {
		t.Errorf("a new token: %s", log)
	}
	if log := r.reloadWith(base + "budget: 20GiB\n"); strings.Contains(log, "token has changed") {
		t.Errorf("the same token: %s", log)
	}
}

// TestChangesOfManyValuesAreShort: a long list doesn't fill the log.
func TestChangesOfManyValuesAreShort(t *testing.T) {
	dir := t.TempDir()
	config := fmt.Sprintf("data_dir: %s\n", dir)
	r := startReloading(t, config)
	log := r.reloadWith(config + "listen_allow: [" + strings.Repeat("10.0.0.0/8, ", 10_000) + "10.0.0.0/8]\n")
	if !strings.Contains(log, "listen_allow: nothing → 10.0.0.0/8,10.0") || len(log) > 2000 {
		t.Errorf("%d bytes: %.3000s", len(log), log)
	}
}

// TestStopIsLoggedWhenItHasEnded: the last line of the log says that the server has stopped.
func TestStopIsLoggedWhenItHasEnded(t *testing.T) {
	var log bytes.Buffer
	t.Run("server", func(t *testing.T) {
		r := startReloading(t, "data_dir: "+t.TempDir()+"\n") // stops it when the subtest ends
		r.server.log = slog.New(slog.NewTextHandler(&log, nil))
	})
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "level=INFO msg=stopped took=") {
		t.Errorf("the log ends with %q", last)
	}
}

// TestReloadWarnsOfABudgetThatCannotWork: one that is larger than the disk, or a share of it in
// which hardly an image has room.
func TestReloadWarnsOfABudgetThatCannotWork(t *testing.T) {
	config := "data_dir: " + t.TempDir() + "\nmin_free: 0\n"
	r := startReloading(t, config+"budget: 200MiB\n")
	const large, small = "larger than what the disk has room for", "smaller than most images"
	if log := r.reloadWith(config + "budget: 200MiB\n"); strings.Contains(log, large) || strings.Contains(log, small) {
		t.Errorf("200MiB: %s", log)
	}
	if log := r.reloadWith(config + "budget: 100000TiB\n"); !strings.Contains(log, large) || !strings.Contains(log, "room=") {
		t.Errorf("100000TiB: %s", log)
	}
	if log := r.reloadWith(config + "budget: 0.000001%\n"); !strings.Contains(log, small) || !strings.Contains(log, "needs=100MiB") {
		t.Errorf("a tiny share: %s", log)
	}
}
