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

// nixHost is a host of its own, booted by a real systemd in namespaces: this machine's
// file system with all that is written kept in memory, a loopback interface, and Docker.
// It stands in for the machines that the distribution's own tests would boot.
type nixHost struct {
	t      *testing.T
	leader string // process ID of its systemd
	log    *bytes.Buffer
}

// nixShare is where the host sees the directory of programs that it was booted with.
const nixShare = "/mnt/hubcache-test"

// nixBootScript runs as the first process of a PID namespace, which ends with it. It
// ends with its standard input, so with the test, however that ends.
const nixBootScript = `
set -e
dir=$1 programs=$2
mount -t tmpfs tmpfs "$dir"
mkdir "$dir"/upper "$dir"/work "$dir"/root
mount -t overlay overlay -o lowerdir=/,upperdir="$dir"/upper,workdir="$dir"/work "$dir"/root
cd "$dir"/root
# Nothing that this machine has enabled or been told.
rm -rf etc/systemd/system etc/docker etc/hubcache etc/machine-id usr/sbin/policy-rc.d
mkdir -p etc/systemd/system etc/docker ."$3"
touch etc/machine-id
systemd-nspawn --quiet --directory=. --boot --register=no --keep-unit --private-network --console=pipe \
	--machine=hubcache-test --tmpfs=/var/lib/docker:size=128m --tmpfs=/var/lib/containerd --bind-ro="$programs:$3" </dev/null &
cat >/dev/null
`

// nixBoot boots a host that sees the directory programs at nixShare. It is gone when the
// test ends.
func nixBoot(t *testing.T, programs string) *nixHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("booting a host needs root")
	}
	nixProgram(t, "systemd-nspawn", "systemd-container")
	nixProgram(t, "dockerd", "docker.io")
	nixProgram(t, "nsenter", "util-linux")
	h := &nixHost{t: t, log: &bytes.Buffer{}}
	cmd := exec.Command(nixProgram(t, "unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"bash", "-c", nixBootScript, "boot", t.TempDir(), programs, nixShare)
	cmd.Stdout, cmd.Stderr = h.log, h.log
	leash, err := cmd.StdinPipe()
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
		leash.Close()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("the host's console:\n%s", h.log)
		}
	})
	h.leader = nixLeader(t, cmd.Process.Pid)
	h.eventually("systemctl", "is-system-running")
	return h
}

// nixLeader waits for the systemd among a process's descendants.
func nixLeader(t *testing.T, pid int) string {
	t.Helper()
	for range 150 {
		time.Sleep(200 * time.Millisecond)
		parents, names := map[string]string{}, map[string]string{}
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range stats {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // has ended meanwhile
			}
			// 4711 (comm) S 42 …
			open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
			id := strings.TrimSpace(string(b[:open]))
			names[id], parents[id] = string(b[open+1:end]), strings.Fields(string(b[end+1:]))[1]
		}
		for id, name := range names {
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
func (h *nixHost) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", h.leader, "--mount", "--pid", "--net", "--uts", "--ipc"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + nixShare, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// try runs a command on the host and returns all that it wrote.
func (h *nixHost) try(args ...string) (string, error) {
	out, err := h.command(args...).CombinedOutput()
	return string(out), err
}

// run is try for what must succeed.
func (h *nixHost) run(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// shell runs a shell script that must succeed.
func (h *nixHost) shell(script string) string {
	h.t.Helper()
	return h.run("bash", "-euo", "pipefail", "-c", script)
}

// eventually runs a command until it succeeds, for half a minute.
func (h *nixHost) eventually(args ...string) {
	h.t.Helper()
	var out string
	var err error
	for range 100 {
		if out, err = h.try(args...); err == nil {
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
	h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
}

// write makes a file on the host.
func (h *nixHost) write(path, mode, content string) {
	h.t.Helper()
	cmd := h.command("install", "-D", "-m", mode, "/dev/stdin", path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

// serveHub starts a fake Docker Hub on the host: account jane, image library/busybox,
// library/big:1 of size (such as 4x16MiB), sent slowly, and a small library/big:2.
func (h *nixHost) serveHub(token, size string) {
	h.t.Helper()
	h.write("/run/hub-token", "0400", token)
	h.run("systemd-run", "--unit=hub", "--quiet", nixShare+"/fakehubd", "--username", "jane", "--password-file", "/run/hub-token",
		"--bandwidth", "4MB", "--image", "library/big:1="+size, "--image", "library/big:2=1x1MiB")
	h.eventually("curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:5100/ledger")
}

// ledger is what the fake Hub was asked.
func (h *nixHost) ledger() string {
	h.t.Helper()
	return h.run("curl", "-fsS", "http://127.0.0.1:5100/ledger?json")
}

// pullThroughRestarts has Docker pull an image, remove it and pull it again, while the
// service restarts all the time. Any pull that fails fails the test.
func (h *nixHost) pullThroughRestarts(image string) {
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
			// systemd counts these starts, too, and would refuse the sixth.
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

// sub runs a subtest; what fails on the host within it fails the subtest.
func (h *nixHost) sub(name string, f func(t *testing.T)) {
	all := h.t
	all.Run(name, func(t *testing.T) {
		h.t = t
		defer func() { h.t = all }()
		f(t)
	})
}

// mainPID is the process ID of the service, as the host sees it.
func (h *nixHost) mainPID() string {
	h.t.Helper()
	return strings.TrimSpace(h.run("systemctl", "show", "--property=MainPID", "--value", "hubcache.service"))
}

// nixPrograms is a directory with hubcache and fakehubd.
func nixPrograms(t *testing.T) string {
	t.Helper()
	dir := filepath.Dir(nixHubcache(t))
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "fakehubd"), "./hubtest/fakehubd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	nixRun(t, build)
	// Other users than root run them.
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// nixCopy copies a program.
func nixCopy(to, from string) error {
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
		return fmt.Errorf("copy of %s: %w", from, err)
	}
	return nil
}
