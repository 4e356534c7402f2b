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

// setupOf returns a function that runs docker setup on the daemon, and what it prints.
func setupOf(t *testing.T, d *dockertest.Daemon) func(args ...string) (out string, code int) {
	t.Helper()
	certs := t.TempDir()
	return func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(hubcacheProgram(t), append([]string{"docker", "setup", "--certs-dir", certs}, args...)...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host(), "HUBCACHE_CONFIG=/dev/null")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
}

func fileOf(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestSetupConfiguresDaemonAndUndoesIt checks that a real daemon has the mirror when docker
// setup says so, starts with what it writes, and has nothing of it after an undo. The daemon
// and its --config-file are found by its socket.
func TestSetupConfiguresDaemonAndUndoesIt(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{Config: map[string]any{"labels": []string{"kept=yes"}}})
	mirrors := func() string { return d.Docker("info", "--format", "{{.RegistryConfig.Mirrors}} {{.Labels}}") }
	run := setupOf(t, d)
	before := fileOf(t, d.ConfigFile)
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{}, "[] [kept=yes]"},
		{[]string{"--apply"}, "[http://127.0.0.1:5000/] [kept=yes]"},
		{[]string{"--apply"}, "[http://127.0.0.1:5000/] [kept=yes]"},
		{[]string{"--undo"}, "[http://127.0.0.1:5000/] [kept=yes]"},
		{[]string{"--undo", "--apply"}, "[] [kept=yes]"},
	} {
		if out, code := run(append(step.args, "--mirror", "http://127.0.0.1:5000")...); code != 0 {
			t.Fatalf("docker setup %s: exit code %d\n%s", step.args, code, out)
		}
		if got := mirrors(); got != step.want {
			t.Errorf("after docker setup %s the daemon has %s, want %s", step.args, got, step.want)
		}
		d.Restart() // it must also start with that file
		if got := mirrors(); got != step.want {
			t.Errorf("after docker setup %s and a restart the daemon has %s, want %s", step.args, got, step.want)
		}
	}
	if backup := fileOf(t, d.ConfigFile+".before-hubcache"); backup != before {
		t.Errorf("the backup has %s, want %s", backup, before)
	}
}

// TestSetupLeavesADaemonThatStarts: whatever setup is told to write, and whatever is in the
// file already, a real daemon starts with the file as it is afterwards, or the file wasn't
// touched.
func TestSetupLeavesADaemonThatStarts(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{Config: map[string]any{"labels": []string{"kept=yes"}}})
	run := setupOf(t, d)
	before := fileOf(t, d.ConfigFile)
	for mirror, says := range map[string]string{
		"127.0.0.1:6000": "no scheme", "cache.lan:5000": "no scheme", "http://cache.lan:5000/v2/": "/v2",
		"http://cache.lan/hub": "path /hub", "https://u:p@cache.lan": "user name", "http://cache.lan?a=b": "query", "ftp://cache.lan": "ftp",
	} {
		out, code := run("--apply", "--mirror", mirror)
		if code != 2 || !strings.Contains(out, says) {
			t.Errorf("--mirror %s: exit code %d, want 2 and %q\n%s", mirror, code, says, out)
		}
		if fileOf(t, d.ConfigFile) != before {
			t.Fatalf("--mirror %s was written:\n%s", mirror, fileOf(t, d.ConfigFile))
		}
	}
	d.Restart()

	// What the running daemon would refuse is in the file already.
	for content, says := range map[string]string{
		`{"registry-mirrors": [""]}`:               "(it is empty)",
		`{"registry-mirrors": ["cache.lan:5000"]}`: "(it has no scheme",
		"{\n  // a comment\n}":                     "invalid character '/'",
		`{"no-such-option": true}`:                 "were put back",
		`{"debug": "no"}`:                          "were put back",
	} {
		if err := os.WriteFile(d.ConfigFile, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		out, code := run("--apply", "--mirror", "http://127.0.0.1:5000")
		if code != 1 || !strings.Contains(out, says) {
			t.Errorf("%s: exit code %d, want 1 and %q\n%s", content, code, says, out)
		}
		if got := fileOf(t, d.ConfigFile); got != content {
			t.Errorf("%s became %s", content, got)
		}
	}
	if got := d.Docker("info", "--format", "{{.RegistryConfig.Mirrors}} {{.Labels}}"); got != "[] [kept=yes]" {
		t.Errorf("the daemon has %s", got)
	}
}

// TestSetupOfADaemonWithMirrorsOnItsCommandLine: a real daemon with --registry-mirror doesn't
// start with a list in its file too. Ours there is success.
func TestSetupOfADaemonWithMirrorsOnItsCommandLine(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{ExtraArgs: []string{"--registry-mirror", "http://127.0.0.1:5000"}})
	run := setupOf(t, d)
	before := fileOf(t, d.ConfigFile)
	if out, code := run("--apply", "--mirror", "http://127.0.0.1:5000"); code != 0 || !strings.Contains(out, "already, by --registry-mirror") {
		t.Errorf("ours: exit code %d\n%s", code, out)
	}
	if out, code := run("--apply", "--mirror", "http://127.0.0.1:6000"); code != 1 || !strings.Contains(out, "add --registry-mirror=http://127.0.0.1:6000") {
		t.Errorf("another: exit code %d\n%s", code, out)
	}
	if got := fileOf(t, d.ConfigFile); got != before {
		t.Errorf("the file is %s, was %s", got, before)
	}
	d.Restart()
}

// TestSetupLeavesTheFilesOfAContainerAlone: a daemon whose files are not this machine's, as in
// a container, is configured there and not here.
func TestSetupLeavesTheFilesOfAContainerAlone(t *testing.T) {
	hidden := t.TempDir() // the daemon sees another directory in its place
	config := filepath.Join(hidden, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	wrapper := filepath.Join(t.TempDir(), "dockerd-in-a-container")
	script := fmt.Sprintf("#!/bin/sh\nmount -t tmpfs none %s && echo '{}' >%s && exec dockerd \"$@\"\n", hidden, config)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := dockertest.Start(t, dockertest.Options{Dockerd: wrapper, ExtraArgs: []string{"--config-file", config}})
	out, code := setupOf(t, d)("--apply", "--mirror", "http://10.0.0.1:5000")
	if code != 1 || !strings.Contains(out, "another "+config+" than this machine, as in a container") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if got := fileOf(t, config); got != "{}" {
		t.Errorf("this machine's file was written: %s", got)
	}
}

// TestSetupOnDocker29 checks with a real Docker 29 and its containerd store: a mirror on a
// loopback address comes into hosts.toml and never into the list, and takes an older entry out
// of the list; another one comes into both, with a path too.
func TestSetupOnDocker29(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{Docker29: true, Config: map[string]any{"registry-mirrors": []string{"http://127.0.0.1:5000"}}})
	mirrors := func() string { return d.Docker("info", "--format", "{{.RegistryConfig.Mirrors}}") }
	certs := t.TempDir()
	hosts := filepath.Join(certs, "docker.io", "hosts.toml")
	for _, step := range []struct {
		args    []string
		mirrors string
		hosts   bool
	}{
		{[]string{"--apply", "--mirror", "http://127.0.0.1:5000"}, "[]", true},
		{[]string{"--undo", "--apply", "--mirror", "http://127.0.0.1:5000"}, "[]", false},
		{[]string{"--apply", "--mirror", "http://10.0.0.1:5000/hub"}, "[http://10.0.0.1:5000/hub/]", true},
		{[]string{"--undo", "--apply", "--mirror", "http://10.0.0.1:5000/hub"}, "[]", false},
	} {
		cmd := exec.Command(hubcacheProgram(t), append([]string{"docker", "setup", "--certs-dir", certs}, step.args...)...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host(), "HUBCACHE_CONFIG=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("docker setup %s: %v\n%s", step.args, err, out)
		}
		if got := mirrors(); got != step.mirrors {
			t.Errorf("after docker setup %s the daemon has %s, want %s", step.args, got, step.mirrors)
		}
		if _, err := os.Stat(hosts); (err == nil) != step.hosts {
			t.Errorf("after docker setup %s: hosts.toml: %v, want %v", step.args, err, step.hosts)
		}
	}
	d.Restart()
}

// TestSetupKnowsPodman: a real Podman, which speaks Docker's API, is not taken for Docker.
func TestSetupKnowsPodman(t *testing.T) {
	dir, err := os.MkdirTemp("", "podman") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	podman := exec.Command("podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
		"system", "service", "--time", "0", "unix://"+socket)
	podman.Stderr = os.Stderr
	if err := podman.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = podman.Process.Signal(syscall.SIGTERM)
		_ = podman.Wait()
		_ = os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("podman has no socket after a minute")
		}
	}
	setup := func(args ...string) (string, error) {
		cmd := exec.Command(hubcacheProgram(t), append([]string{"docker", "setup", "--host", "unix://" + socket}, args...)...)
		cmd.Env = append(os.Environ(), "HUBCACHE_CONFIG=/dev/null")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := setup(); err != nil || !strings.Contains(out, "registries.conf") || !strings.Contains(out, "is Podman") {
		t.Errorf("docker setup: %v\n%s", err, out)
	}
	if out, err := setup("--apply"); err == nil || !strings.Contains(out, "is Podman") {
		t.Errorf("docker setup --apply: %v\n%s", err, out)
	}
}

// TestSetupOnABootedHost checks what only a booted host has: systemd has made the daemon's
// socket, so the daemon is found by its pid file, and what it logs is in the journal.
func TestSetupOnABootedHost(t *testing.T) {
	h := bootHost(t, buildPrograms(t))
	h.write("/etc/docker/daemon.json", "0600", `{"iptables": false, "bridge": "none"}`)
	h.run("systemctl", "start", "docker.service")
	const mirrors = "{{.RegistryConfig.Mirrors}}"
	h.run("hubcache", "docker", "setup", "--apply")
	if got := strings.TrimSpace(h.run("docker", "info", "--format", mirrors)); got != "[http://127.0.0.1:5000/]" {
		t.Errorf("the daemon has %s", got)
	}
	if got := h.run("stat", "--format=%a", "/etc/docker/daemon.json"); got != "600\n" {
		t.Errorf("the file's mode is %s", got)
	}
	h.run("systemctl", "restart", "docker.service")
	h.run("hubcache", "docker", "setup", "--undo", "--apply")
	if got := strings.TrimSpace(h.run("docker", "info", "--format", mirrors)); got != "[]" {
		t.Errorf("after an undo the daemon has %s", got)
	}

	const broken = `{"iptables": false, "bridge": "none", "no-such-option": 1}`
	h.write("/etc/docker/daemon.json", "0600", broken)
	out, err := h.try("hubcache", "docker", "setup", "--apply")
	if err == nil || !strings.Contains(out, "It logged: ") || !strings.Contains(out, "no-such-option") || !strings.Contains(out, "were put back") {
		t.Errorf("a file that the daemon refuses: %v\n%s", err, out)
	}
	if got := h.run("cat", "/etc/docker/daemon.json"); got != broken {
		t.Errorf("the file is %s", got)
	}

	// No engine, and a file with which it doesn't start: undo takes the mirror out.
	h.write("/etc/docker/daemon.json", "0600", `{"iptables": false, "bridge": "none", "registry-mirrors": ["127.0.0.1:6000"]}`)
	h.run("systemctl", "stop", "docker.socket", "docker.service")
	h.run("hubcache", "docker", "setup", "--undo", "--apply", "--mirror", "127.0.0.1:6000")
	h.run("systemctl", "start", "docker.service")
}

// TestSetupOnARootlessEngine checks with a real rootless daemon: root is told to leave its
// configuration to its user; its user's setup writes the file in the user's home and makes
// that daemon read it.
func TestSetupOnARootlessEngine(t *testing.T) {
	program(t, "rootlesskit", "rootlesskit")
	program(t, "newuidmap", "uidmap")
	h := bootHost(t, buildPrograms(t))
	h.run("useradd", "--create-home", "--uid=4711", "jane")
	h.run("install", "-d", "-o", "jane", "-m", "700", "/run/user/4711")
	h.run("systemd-run", "--unit=rootless", "--uid=jane", "--setenv=HOME=/home/jane", "--setenv=XDG_RUNTIME_DIR=/run/user/4711",
		"--setenv=PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--setenv=DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host", "--setenv=DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none",
		"/usr/share/docker.io/contrib/dockerd-rootless.sh", "--iptables=false", "--bridge=none", "--ip-forward=false", "--storage-driver=vfs")
	const host = "unix:///run/user/4711/docker.sock"
	h.eventually("docker", "--host", host, "info")

	out, err := h.try("hubcache", "docker", "setup", "--apply", "--host", host)
	if err == nil || !strings.Contains(out, "is rootless and belongs to the user jane: run this command as that user") {
		t.Errorf("as root: %v\n%s", err, out)
	}
	asJane := func(args ...string) string {
		return h.run(append([]string{"setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "env", "HOME=/home/jane",
			hostPrograms + "/hubcache", "docker", "setup", "--host", host}, args...)...)
	}
	asJane("--apply")
	if got := h.run("stat", "--format=%U %a", "/home/jane/.config/docker/daemon.json"); got != "jane 644\n" {
		t.Errorf("the file is %s", got)
	}
	const mirrors = "{{.RegistryConfig.Mirrors}}"
	if got := strings.TrimSpace(h.run("docker", "--host", host, "info", "--format", mirrors)); got != "[http://127.0.0.1:5000/]" {
		t.Errorf("the daemon has %s", got)
	}
	asJane("--undo", "--apply")
	if got := strings.TrimSpace(h.run("docker", "--host", host, "info", "--format", mirrors)); got != "[]" {
		t.Errorf("after an undo the daemon has %s", got)
	}
	if out, err := h.try("ls", "/etc/docker/daemon.json"); err == nil {
		t.Errorf("root's file was made: %s", out)
	}
}

// TestEngineOfADockerContext checks with the real docker command that what it writes for a
// context is read: the engine's address, and the files for TLS.
func TestEngineOfADockerContext(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	dir := t.TempDir()
	client := filepath.Join(dir, "client")
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+client, "DOCKER_HOST=", "DOCKER_CONTEXT=", "HUBCACHE_CONFIG="+filepath.Join(dir, "config.yaml"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(name string, args ...string) {
		t.Helper()
		if out, err := run(name, args...); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	config := fmt.Sprintf("docker: {hold_dir: %q, state: %q}\n", filepath.Join(dir, "hold"), filepath.Join(dir, "uses.db"))
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	must("docker", "context", "create", "lab", "--docker", "host="+d.Host())
	must("docker", "context", "use", "lab")
	must(hubcacheProgram(t), "docker", "prune", "--json")
	must(hubcacheProgram(t), "docker", "hold", "--", "true")

	pem := filepath.Join(dir, "pem")
	must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=far", "-keyout", pem+".key", "-out", pem+".crt")
	must("docker", "context", "create", "far", "--docker", fmt.Sprintf("host=tcp://127.0.0.1:1,ca=%[1]s.crt,cert=%[1]s.crt,key=%[1]s.key", pem))
	must("docker", "context", "use", "far")
	out, err := run(hubcacheProgram(t), "docker", "prune")
	if err == nil || !strings.Contains(out, `tcp://127.0.0.1:1 (from the docker context "far"), and hubcache docker prune works only`) {
		t.Errorf("docker prune: %v\n%s", err, out)
	}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		files, err := filepath.Glob(filepath.Join(client, "contexts", "tls", "*", "docker", name))
		if err != nil || len(files) != 1 {
			t.Errorf("the docker command has %s in %v, %v", name, files, err)
			continue
		}
		// That hubcache reads it is seen when it can't.
		body := fileOf(t, files[0])
		if err := os.WriteFile(files[0], []byte("no certificate"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := run(hubcacheProgram(t), "doctor"); err == nil || !strings.Contains(out, "TLS with the Docker engine at tcp://127.0.0.1:1") {
			t.Errorf("doctor with a broken %s: %v\n%s", name, err, out)
		}
		if err := os.WriteFile(files[0], []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSetupSaysTheDaemonsProxy checks what a real daemon says of its proxy.
func TestSetupSaysTheDaemonsProxy(t *testing.T) {
	for noProxy, says := range map[string]string{"": "add 10.0.0.1 to the daemon's NO_PROXY", "10.0.0.0/8": ""} {
		d := dockertest.Start(t, dockertest.Options{Env: []string{"HTTP_PROXY=http://jane:secret@proxy.lan:3128", "NO_PROXY=" + noProxy}})
		out, code := setupOf(t, d)("--mirror", "http://10.0.0.1:5000")
		if code != 0 || strings.Contains(out, "through its proxy") != (says != "") || !strings.Contains(out, says) || strings.Contains(out, "secret") {
			t.Errorf("NO_PROXY %q: exit code %d, want %q\n%s", noProxy, code, says, out)
		}
	}
}
