//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bootedHost is a host that a real systemd has booted in namespaces. It has this machine's file
// system, with all changes kept in memory, a loopback interface and Docker. It takes the place
// of the virtual machines that NixOS tests boot.
type bootedHost struct {
	t      *testing.T
	leader string // process ID of its systemd
	log    *bytes.Buffer
}

// hostPrograms is the path, on the host, of the folder of programs that bootHost was given.
const hostPrograms = "/mnt/hubcache-test"

// bootScript runs as the first process of a PID namespace, so all processes of the host end
// with it. It ends at the end of its standard input, so also when the test is killed.
const bootScript = `
set -e
dir=$1 programs=$2
mount -t tmpfs tmpfs "$dir"
mkdir "$dir"/upper "$dir"/work "$dir"/root
mount -t overlay overlay -o lowerdir=/,upperdir="$dir"/upper,workdir="$dir"/work "$dir"/root
cd "$dir"/root
# Remove what is configured and enabled on this machine, and what a server that ran here as root
# has left: systemd moves such a folder to var/lib/private, which an overlay can't do.
rm -rf etc/systemd/system etc/docker etc/hubcache etc/machine-id usr/sbin/policy-rc.d
rm -rf var/lib/hubcache* var/lib/private/hubcache* run/hubcache*
mkdir -p etc/systemd/system etc/docker ."$3"
touch etc/machine-id
systemd-nspawn --quiet --directory=. --boot --register=no --keep-unit --private-network --console=pipe \
	--machine=hubcache-test --tmpfs=/var/lib/docker:size=128m --tmpfs=/var/lib/containerd --bind-ro="$programs:$3" </dev/null &
cat >/dev/null
`

// bootHost boots a host that has the folder programs at hostPrograms. It ends with the test.
func bootHost(t *testing.T, programs string) *bootedHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("booting a host needs root")
	}
	program(t, "systemd-nspawn", "systemd-container")
	program(t, "dockerd", "docker.io")
	program(t, "nsenter", "util-linux")
	h := &bootedHost{t: t, log: &bytes.Buffer{}}
	cmd := exec.Command(program(t, "unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"bash", "-c", bootScript, "boot", t.TempDir(), programs, hostPrograms)
	cmd.Stdout, cmd.Stderr = h.log, h.log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := h.try("journalctl", "--no-pager", "--lines=60", "--unit=hubcache*")
			t.Logf("the end of the host's journal:\n%s", out)
		}
		stdin.Close()
		_ = cmd.Wait() // an error, since it is killed
		if t.Failed() {
			t.Logf("the host's console:\n%s", h.log)
		}
	})
	h.leader = waitForSystemd(t, cmd.Process.Pid)
	h.eventually("systemctl", "is-system-running")
	return h
}

// waitForSystemd returns the process ID of the systemd among a process's descendants.
func waitForSystemd(t *testing.T, pid int) string {
	t.Helper()
	for range 150 {
		time.Sleep(200 * time.Millisecond)
		parents, names := map[string]string{}, map[string]string{}
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range stats {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended meanwhile
			}
			// 4711 (comm) S 42 …
			open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
			id := strings.TrimSpace(string(b[:open]))
			names[id], parents[id] = string(b[open+1:end]), strings.Fields(string(b[end+1:]))[1]
		}
		for id, name := range names {
			if names[parents[id]] == "systemd" {
				continue // it has the name until it starts its own program
			}
			for up := id; name == "systemd" && up != ""; up = parents[up] {
				if up == strconv.Itoa(pid) {
					return id
				}
			}
		}
	}
	t.Fatal("systemd did not start within 30 s")
	return ""
}

// command is a command on the host that has not been started yet.
func (h *bootedHost) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", h.leader, "--mount", "--pid", "--net", "--uts", "--ipc"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + hostPrograms, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// try runs a command on the host and returns all its output.
func (h *bootedHost) try(args ...string) (string, error) {
	out, err := h.command(args...).CombinedOutput()
	return string(out), err
}

// run is try for a command that must succeed.
func (h *bootedHost) run(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// shell runs a shell script that must succeed.
func (h *bootedHost) shell(script string) string {
	h.t.Helper()
	return h.run("bash", "-euo", "pipefail", "-c", script)
}

// eventually runs a command until it succeeds, for a minute and a half.
func (h *bootedHost) eventually(args ...string) {
	h.t.Helper()
	var out string
	var err error
	for range 300 {
		if out, err = h.try(args...); err == nil {
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
	h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
}

// write creates a file on the host.
func (h *bootedHost) write(path, mode, content string) {
	h.t.Helper()
	cmd := h.command("install", "-D", "-m", mode, "/dev/stdin", path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

// serveHub starts a fake Docker Hub on the host. It has the account jane and the images
// library/busybox, library/big:1 of this size (such as 4x16MiB) and a small library/big:2, and
// sends them slowly.
func (h *bootedHost) serveHub(token, size string) {
	h.t.Helper()
	h.write("/run/hub-token", "0400", token)
	h.run("systemd-run", "--unit=hub", "--quiet", hostPrograms+"/fakehubd", "--username", "jane", "--password-file", "/run/hub-token",
		"--bandwidth", "4MB", "--image", "library/big:1="+size, "--image", "library/big:2=1x1MiB")
	h.eventually("curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:5100/ledger")
}

// ledger is the fake Hub's ledger as JSON.
func (h *bootedHost) ledger() string {
	h.t.Helper()
	return h.run("curl", "-fsS", "http://127.0.0.1:5100/ledger?json")
}

// pullThroughRestarts pulls and removes an image again and again while the service restarts
// all the time. No pull may fail.
func (h *bootedHost) pullThroughRestarts(image string) {
	h.t.Helper()
	const restarts, pulls = 5, 5
	stop, stopped := make(chan struct{}), make(chan struct{})
	var done atomic.Int32
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			// systemd counts these starts too, and would refuse the sixth without reset-failed.
			if out, err := h.try("bash", "-c", "systemctl reset-failed hubcache.service; systemctl restart hubcache.service"); err != nil {
				h.t.Errorf("restart: %v\n%s", err, out)
				return
			}
			done.Add(1)
		}
	}()
	defer func() { close(stop); <-stopped }()
	deadline := time.Now().Add(time.Minute)
	for n := 0; n < pulls || done.Load() < restarts; n++ {
		h.run("docker", "pull", "--quiet", image)
		h.run("docker", "image", "rm", image)
		if time.Now().After(deadline) {
			h.t.Fatalf("%d restarts during %d pulls within a minute", done.Load(), n)
		}
	}
}

// sub runs a subtest. A failure of a command on the host then fails the subtest.
func (h *bootedHost) sub(name string, f func(t *testing.T)) {
	whole := h.t
	whole.Run(name, func(t *testing.T) {
		h.t = t
		defer func() { h.t = whole }()
		f(t)
	})
}

// mainPID is the service's process ID on the host.
func (h *bootedHost) mainPID() string {
	h.t.Helper()
	return strings.TrimSpace(h.run("systemctl", "show", "--property=MainPID", "--value", "hubcache.service"))
}

// buildPrograms returns a folder with hubcache and fakehubd.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{"../cmd/hubcache", "./hubtest/fakehubd"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(path)), path)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		runCommand(t, build)
	}
	// Users other than root run them, so they must be able to reach the folder.
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// copyProgram copies an executable file.
func copyProgram(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return nil
}
