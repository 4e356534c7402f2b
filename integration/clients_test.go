//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// imageKinds are the shapes in which images lie on Docker Hub.
var imageKinds = []struct {
	name string
	spec hubtest.ImageSpec
}{
	{"single", hubtest.ImageSpec{}},
	{"docker-single", hubtest.ImageSpec{Docker: true}},
	{"docker-list", hubtest.ImageSpec{Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}}},
	{"oci-index", hubtest.ImageSpec{Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}},
}

// shutProxy is the environment of clients whose own way to Docker Hub is shut: their mirror
// apart, whatever they try ends at a loopback port where nobody listens.
func shutProxy(mirror *server) []string {
	host, _, _ := strings.Cut(mirror.Addr, ":")
	return []string{"HTTPS_PROXY=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9", "NO_PROXY=" + host}
}

// containersClient is a user of containers/image, such as podman and skopeo, with files of its
// own and the server as the mirror of docker.io.
type containersClient struct {
	dir        string
	registries string // registries.conf, for programs that don't look into the environment
	env        []string
}

func newContainersClient(t testing.TB, s *server) containersClient {
	t.Helper()
	// The names of podman's sockets are limited to 108 bytes.
	dir, err := os.MkdirTemp("", "hubcache")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c := containersClient{dir: dir}
	c.registries = c.write(t, "registries.conf", fmt.Sprintf(`unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
location = %q
insecure = true
pull-from-mirror = "all"
`, s.Addr))
	c.env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "CONTAINERS_REGISTRIES_CONF="+c.registries, "REGISTRY_AUTH_FILE=")
	c.env = append(c.env, shutProxy(s)...)
	return c
}

func (c containersClient) write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c containersClient) run(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Dir = c.env, c.dir
	return strings.TrimSpace(runCommand(t, cmd))
}

// checkPullsOnce pulls an image twice; forget makes the client lose it in between. The
// second time the Hub sees no GET but of tokens, and what the server has is the Hub's to
// the byte.
func checkPullsOnce(t *testing.T, hub *hubtest.Hub, s *server, img *hubtest.Image, pull, forget func(t *testing.T)) {
	t.Helper()
	hub.ResetLedger()
	pull(t)
	if hub.Ledger().BlobBytes() == 0 {
		t.Fatalf("the first pull did not reach the Hub:\n%s", hub.Ledger())
	}
	forget(t)
	hub.ResetLedger()
	pull(t)
	if again := upstreamGETs(hub); len(again) > 0 {
		t.Errorf("the second pull reached the Hub:\n%s", again)
	}
	forget(t)
	checkUpstreamBytes(t, s, img)
}

// TestContainerdPullsFromHubOnce drives Debian's containerd, whose hosts.toml sends each request with
// ?ns=docker.io.
func TestContainerdPullsFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	c := startContainerd(t, s)
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

// containerd is a private containerd.
type containerd struct {
	socket, hosts string
	env           []string
}

func startContainerd(t testing.TB, s *server) *containerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "hubcache")
	if err != nil {
		t.Fatal(err)
	}
	c := &containerd{socket: filepath.Join(dir, "sock"), hosts: filepath.Join(dir, "certs.d"), env: append(os.Environ(), shutProxy(s)...)}
	hosts := filepath.Join(c.hosts, "docker.io", "hosts.toml")
	toml := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.URL, s.URL)
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	toml = fmt.Sprintf("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, c.socket+".ttrpc")
	if err := os.WriteFile(config, []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t, "containerd", "containerd"), "--config", config)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Env = &log, &log, c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its status is in the log
		if t.Failed() {
			t.Logf("the end of containerd's log:\n%s", lastLines(log.String(), 30))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if exec.Command(program(t, "ctr", "containerd"), "--address", c.socket, "version").Run() == nil {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
	}
}

func (c *containerd) ctr(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t, "ctr", "containerd"), append([]string{"--address", c.socket}, args...)...)
	cmd.Env = c.env
	return strings.TrimSpace(runCommand(t, cmd))
}
