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
