//go:build integration

package dockertest_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// TestDocker29Runs checks that the engine that install-tools builds is the one that answers, and
// that the older client can use it.
func TestDocker29Runs(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{Docker29: true})
	if v := d.Docker("version", "--format", "{{.Server.Version}}"); !strings.HasPrefix(v, "29.") {
		t.Errorf("the daemon has version %s", v)
	}
	d.ImportBusybox("box:1", "content")
	if got := d.Docker("run", "--rm", "--network", "none", "box:1", "/bin/busybox", "echo", "it runs"); got != "it runs" {
		t.Errorf("docker run says %q", got)
	}
}

// TestDaemonKeepsImagesAndLeavesNoFiles checks that a daemon runs containers, has its images after
// a restart, and leaves no files.
func TestDaemonKeepsImagesAndLeavesNoFiles(t *testing.T) {
	var dir string
	t.Run("life", func(t *testing.T) {
		d := dockertest.Start(t, dockertest.Options{})
		dir = filepath.Dir(d.Socket)
		d.ImportBusybox("lab/a:1", "hello")
		if got := d.Docker("run", "--rm", "--network=none", "lab/a:1", "/bin/busybox", "cat", "/content"); got != "hello" {
			t.Errorf("the container printed %q", got)
		}
		d.Restart()
		if got := d.Docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}"); got != "lab/a:1" {
			t.Errorf("after a restart the images are %q", got)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// TestDaemonPullsFromItsMirrorAlone checks that a daemon on a Network requests images from a
// mirror in the test, and that it can reach nothing else.
func TestDaemonPullsFromItsMirrorAlone(t *testing.T) {
	network := dockertest.NewNetwork(t)
	var mu sync.Mutex
	var paths []string
	listener, err := net.Listen("tcp", net.JoinHostPort(network.Addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, r.URL.Path)
		http.NotFound(w, r)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	d := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{server.URL}})
	if _, err := d.TryDocker("pull", "lab/absent:1"); err == nil {
		t.Error("a pull of an image that does not exist succeeded")
	}
	mu.Lock()
	defer mu.Unlock()
	if all := strings.Join(paths, " "); !strings.Contains(all, "/v2/lab/absent/manifests/1") {
		t.Errorf("the mirror got requests for %q", all)
	}
}

// TestDaemonsAreSeparateSwarms checks that each of two daemons can be a swarm and run a service.
func TestDaemonsAreSeparateSwarms(t *testing.T) {
	for range 2 {
		d := dockertest.Start(t, dockertest.Options{})
		d.SwarmInit()
		d.ImportBusybox("lab/a:1", "hello")
		d.Docker("service", "create", "--detach", "--name=web", "--network=host", "--no-resolve-image",
			"lab/a:1", "/bin/sleep", "1000")
		deadline := time.Now().Add(30 * time.Second)
		for !strings.HasPrefix(d.Docker("service", "ps", "web", "--format", "{{.CurrentState}}"), "Running") {
			if time.Now().After(deadline) {
				t.Fatal(d.Docker("service", "ps", "web", "--no-trunc"))
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}
