//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestContainerdPullsFromHubOnce pulls with Debian's containerd, which has hubcache in
// hosts.toml and therefore adds ?ns=docker.io to each request.
func TestContainerdPullsFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	c := startContainerd(t, s, "")
	for _, kind := range imageKinds {
		img := runnableImage(t, hub, "library/app", kind.name, 2, 1<<20, kind.spec)
		for by, name := range map[string]string{"tag": "docker.io/library/app:" + kind.name, "digest": "docker.io/library/app@" + img.Digest.String()} {
			t.Run(kind.name+"/"+by, func(t *testing.T) {
				s.Empty()
				checkPullsOnce(t, hub, s, img,
					func(t *testing.T) {
						c.ctr(t, "images", "pull", "--snapshotter", "native", "--hosts-dir", c.hosts, name)
					},
					func(t *testing.T) {
						got := c.ctr(t, "run", "--rm", "--snapshotter", "native", name, "box", "echo", "it", "runs")
						if got != "it runs" {
							t.Errorf("ctr run says %q", got)
						}
						c.ctr(t, "images", "rm", "--sync", name)
						if left := c.ctr(t, "content", "ls", "-q"); left != "" {
							t.Fatalf("containerd still has %s", left)
						}
					})
			})
		}
	}
}

// containerd is a containerd of the test.
type containerd struct {
	socket, hosts string
	dir           string // folder of the programs; "": those of Debian
	env           []string
	cri           bool   // it serves Kubernetes
	config        string // more of its configuration
}

// startContainerd starts the containerd of a folder, or Debian's with "". It has the server as the
// mirror of docker.io, and can reach nothing else.
func startContainerd(t testing.TB, s *server, programs string) *containerd {
	t.Helper()
	certs := t.TempDir()
	hosts := filepath.Join(certs, "docker.io", "hosts.toml")
	toml := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.URL, s.URL)
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return startContainerdWith(t, containerd{dir: programs, hosts: certs, env: append(os.Environ(), deadProxy(s)...)})
}

// config2 makes containerd 2 unpack without overlayfs, which a test machine may not have, and has the
// registries' directory for Kubernetes.
const config2 = `
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%s"
  snapshotter = "native"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %q
`

// startContainerdWith starts a containerd with these programs, hosts and environment.
func startContainerdWith(t testing.TB, with containerd) *containerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "hubcache")
	if err != nil {
		t.Fatal(err)
	}
	c := &with
	c.socket = filepath.Join(dir, "sock")
	config := filepath.Join(dir, "config.toml")
	version, more := 2, ""
	disabled := `"io.containerd.internal.v1.opt"`
	if c.dir != "" {
		version, more = 3, fmt.Sprintf(config2, runtime.GOARCH, c.hosts)
	}
	if !c.cri {
		disabled += `, "io.containerd.grpc.v1.cri"`
	}
	toml := fmt.Sprintf("version = %d\ndisabled_plugins = [%s]\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n%s",
		version, disabled, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, c.socket+".ttrpc", more+c.config)
	if err := os.WriteFile(config, []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(c.program(t, "containerd"), "--config", config)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Env = &log, &log, c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // the log has more than its status
		if t.Failed() {
			t.Logf("the end of containerd's log:\n%s", lastLines(log.String(), 30))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if exec.Command(c.program(t, "ctr"), "--address", c.socket, "version").Run() == nil {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
	}
}

func (c *containerd) program(t testing.TB, name string) string {
	t.Helper()
	if c.dir != "" {
		return filepath.Join(c.dir, name)
	}
	return program(t, name, "containerd")
}

func (c *containerd) ctr(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(c.program(t, "ctr"), append([]string{"--address", c.socket}, args...)...)
	cmd.Env = c.env
	return strings.TrimSpace(runCommand(t, cmd))
}
