//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// imageKinds are the kinds of images that Docker Hub has.
var imageKinds = []struct {
	name string
	spec hubtest.ImageSpec
}{
	{"single", hubtest.ImageSpec{}},
	{"docker-single", hubtest.ImageSpec{Docker: true}},
	{"docker-list", hubtest.ImageSpec{Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}}},
	{"oci-index", hubtest.ImageSpec{Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}},
}

// deadProxy is the environment of clients that must not reach Docker Hub themselves. All that
// they request from other hosts than the mirror goes to a loopback port where nothing listens.
func deadProxy(mirror *server) []string {
	host, _, _ := strings.Cut(mirror.Addr, ":")
	return []string{"HTTPS_PROXY=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9", "NO_PROXY=" + host}
}

// containersClient is a program that uses containers/image, such as podman or skopeo. It has a
// folder of its own, and the server as the mirror of docker.io.
type containersClient struct {
	dir        string
	registries string // registries.conf, for programs that ignore CONTAINERS_REGISTRIES_CONF
	env        []string
}

func newContainersClient(t testing.TB, s *server) containersClient {
	t.Helper()
	// A name of t.TempDir may be too long: those of podman's sockets are limited to 108 bytes.
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
	c.env = append(c.env, deadProxy(s)...)
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

// checkPullsOnce pulls an image twice; forget makes the client remove it in between. The second
// pull must cause no upstream GET of a manifest or blob, and all that the server sends must be
// equal to what the Hub has.
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
