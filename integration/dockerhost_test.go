//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// TestWatchReplaysWhatItMissed checks with a real daemon that a watcher that is restarted
// replays the events that it missed, and that no image counts as used because of that. When the
// daemon is restarted, events are lost, and every image must count as used.
func TestWatchReplaysWhatItMissed(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	d.ImportBusybox("lab/used:1", "used")
	d.ImportBusybox("lab/idle:1", "idle")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	body := fmt.Sprintf("docker: {host: %q, hold_dir: %q, state: %q}\n", d.Host(), filepath.Join(dir, "hold"), filepath.Join(dir, "uses.db"))
	if err := os.WriteFile(config, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	hubcache := func(args ...string) *exec.Cmd {
		return exec.Command(hubcacheProgram(t), append([]string{"--config", config, "docker"}, args...)...)
	}
	watch := func() (stop func()) {
		cmd := hubcache("watch")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // until it has connected and recorded the images
		return func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("docker watch: %v", err)
			}
		}
	}
	lastUse := func(ref string) time.Time {
		out, err := hubcache("prune", "--json").Output()
		if err != nil {
			t.Fatalf("docker prune: %v\n%s", err, out)
		}
		var r struct {
			Images []struct {
				References []string  `json:"references"`
				LastUse    time.Time `json:"last_use"`
			} `json:"images"`
		}
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		for _, img := range r.Images {
			if len(img.References) > 0 && img.References[0] == ref {
				return img.LastUse
			}
		}
		t.Fatalf("%s is not in the report", ref)
		return time.Time{}
	}

	stop := watch()
	d.Docker("run", "--rm", "--network=none", "lab/used:1", "/bin/true")
	time.Sleep(2 * time.Second)
	stop()
	missed := time.Now()
	d.Docker("run", "--rm", "--network=none", "lab/used:1", "/bin/true")
	stop = watch()
	if at := lastUse("lab/used:1"); at.Before(missed) {
		t.Errorf("the run that the watcher missed is not recorded: last use %v, run after %v", at, missed)
	}
	if at := lastUse("lab/idle:1"); at.After(missed) {
		t.Errorf("an idle image counts as used at %v because the watcher was restarted", at)
	}
	restarted := time.Now()
	d.Restart()
	time.Sleep(4 * time.Second) // until the watcher has connected again
	stop()
	if at := lastUse("lab/idle:1"); at.Before(restarted) {
		t.Errorf("the daemon was restarted at %v, and the idle image does not count as used since: last use %v", restarted, at)
	}
}

// TestSetupConfiguresDaemonAndUndoesIt checks that a real daemon accepts what docker setup
// writes, and that nothing is left of it after an undo.
func TestSetupConfiguresDaemonAndUndoesIt(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{Config: map[string]any{"labels": []string{"kept=yes"}}})
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf("docker: {host: %q}\n", d.Host())), 0o644); err != nil {
		t.Fatal(err)
	}
	mirrors := func() string { return d.Docker("info", "--format", "{{.RegistryConfig.Mirrors}} {{.Labels}}") }
	setup := func(how string, want string) {
		t.Helper()
		// The daemon is in another PID namespace, so setup can't signal it by its pid file.
		out, err := exec.Command(hubcacheProgram(t), "--config", config, "docker", "setup", how, "--mirror", "http://127.0.0.1:5000",
			"--daemon-json", d.ConfigFile, "--certs-dir", t.TempDir(), "--docker-pidfile", "/does/not/exist").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "systemctl reload docker") {
			t.Fatalf("docker setup %s: %v\n%s", how, err, out)
		}
		d.Reload()
		for deadline := time.Now().Add(5 * time.Second); mirrors() != want; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after docker setup %s the daemon has %s, want %s", how, mirrors(), want)
			}
		}
	}
	setup("--apply", "[http://127.0.0.1:5000/] [kept=yes]")
	d.Restart() // it must also start with that file
	setup("--undo", "[] [kept=yes]")
}
