//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestMovedDataDirectoryServesWithoutUpstream does what docs/use/moving-data.md says: the copy
// serves tags, manifests and layers while Docker Hub can't be reached, and has the same last
// uses, with its index and without it.
func TestMovedDataDirectoryServesWithoutUpstream(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	img := hub.AddImage("library/moved", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 3 << 20}, {Size: 64 << 10}}})
	s := startServer(t, serverOptions{Hub: hub})
	if err := pullImage(t.Context(), s.URL, img, "1"); err != nil {
		t.Fatal(err)
	}
	s.Stop()

	for _, name := range []string{"with the index", "without the index"} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "moved")
			runCommand(t, exec.Command("cp", "-a", "--sparse=always", s.Data, to))
			if name == "without the index" {
				if err := os.Remove(filepath.Join(to, "index.db")); err != nil {
					t.Fatal(err)
				}
			}
			moved := startServer(t, serverOptions{Upstream: "http://" + freeAddr(t, "127.0.0.1"), Data: to})
			if err := pullImage(t.Context(), moved.URL, img, "1"); err != nil {
				t.Errorf("the copy doesn't serve: %v", err)
			}
		})
	}
}

// TestHoldInAContainerDefersPrune takes a hold as docs/use/holds.md says, as a user without
// privileges in a container that has the program and the folder of the locks.
func TestHoldInAContainerDefersPrune(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	d.ImportBusybox("lab/ci:1", "ci")
	h := newHoldHost(t, d)
	h.deferred(t) // makes the folder
	const group = 4242
	for name, mode := range map[string]os.FileMode{".": 0o750, "gate": 0o640, "run": 0o640} { // as the package does
		path := filepath.Join(h.holds, name)
		if err := errors.Join(os.Chown(path, 0, group), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}

	container := d.Command("run", "--rm", "--interactive", "--network=none", "--user=1234:1234", fmt.Sprintf("--group-add=%d", group),
		"-v", hubcacheProgram(t)+":/usr/bin/hubcache:ro", "-v", h.holds+":/run/hubcache/hold",
		"lab/ci:1", "/usr/bin/hubcache", "docker", "hold", "--", "/bin/sh", "-c", "echo held; cat")
	end := startHeld(t, container)
	if !h.deferred(t) {
		t.Error("prune doesn't wait for the hold")
	}
	end()
	if h.deferred(t) {
		t.Error("the hold has ended, and prune waits for it")
	}
}

// TestHoldLastsAsLongAsItsInput is the hold of docs/use/holds.md for another machine, whose
// command ends when the connection does.
func TestHoldLastsAsLongAsItsInput(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	h := newHoldHost(t, d)
	end := startHeld(t, exec.Command(hubcacheProgram(t), "--config", h.config, "docker", "hold", "--", "sh", "-c", "echo held; exec cat"))
	if !h.deferred(t) {
		t.Error("prune doesn't wait for the hold")
	}
	end()
	if h.deferred(t) {
		t.Error("the hold has ended, and prune waits for it")
	}
}

// holdHost is a Docker host whose disk always seems too full, so that prune looks for holds.
type holdHost struct{ config, holds string }

func newHoldHost(t *testing.T, d *dockertest.Daemon) holdHost {
	t.Helper()
	dir := t.TempDir()
	h := holdHost{config: filepath.Join(dir, "config.yaml"), holds: filepath.Join(dir, "hold")}
	body := fmt.Sprintf("docker: {host: %q, hold_dir: %q, state: %q, prune: {high_watermark: 0.02%%, low_watermark: 0.01%%, critical_watermark: 100%%, quiet: 0s}}\n",
		d.Host(), h.holds, filepath.Join(dir, "uses.db"))
	// The folder is for every user, as the package's is.
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(h.config, []byte(body), 0o644)); err != nil {
		t.Fatal(err)
	}
	return h
}

// deferred runs prune, and reports whether it waits for a hold.
func (h holdHost) deferred(t *testing.T) bool {
	t.Helper()
	cmd := exec.Command(hubcacheProgram(t), "--config", h.config, "docker", "prune", "--apply", "--json")
	out, err := cmd.Output()
	var r pruneReport
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		t.Fatalf("docker prune: %v\n%s", err, out)
	}
	held := cmd.ProcessState.ExitCode() == 75
	if held != strings.Contains(r.Reason, "hold") {
		t.Fatalf("docker prune: exit code %d, %s (%s)", cmd.ProcessState.ExitCode(), r.Decision, r.Reason)
	}
	return held
}

// startHeld starts a command that prints "held" when its hold is in force, and returns a
// function that closes its input and waits for its end.
func startHeld(t *testing.T, cmd *exec.Cmd) (end func()) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("%s: %q, %v", strings.Join(cmd.Args, " "), line, err)
	}
	return func() {
		t.Helper()
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", strings.Join(cmd.Args, " "), err)
		}
	}
}
