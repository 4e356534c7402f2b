//go:build integration

package integration

import (
	"path/filepath"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestPodmanPullsFromHubOnce pulls and runs images with podman, which has hubcache as a mirror
// in registries.conf.
func TestPodmanPullsFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	c := newContainersClient(t, s)
	podman := program(t, "podman", "podman")
	policy := c.write(t, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	global := []string{
		"--root", filepath.Join(c.dir, "root"), "--runroot", filepath.Join(c.dir, "run"), "--tmpdir", filepath.Join(c.dir, "tmp"),
		"--storage-driver", "vfs", "--runtime", program(t, "runc", "runc"), "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}
	run := func(t *testing.T, args ...string) string {
		return c.run(t, podman, append(global[:len(global):len(global)], args...)...)
	}
	for _, kind := range imageKinds {
		img := runnableImage(t, hub, "library/app", kind.name, 2, 1<<20, kind.spec)
		for by, name := range map[string]string{"tag": "docker.io/library/app:" + kind.name, "digest": "docker.io/library/app@" + img.Digest.String()} {
			t.Run(kind.name+"/"+by, func(t *testing.T) {
				// Otherwise the pull by tag would serve the pull by digest.
				s.Empty()
				checkPullsOnce(t, hub, s, img,
					func(t *testing.T) { run(t, "pull", "--signature-policy", policy, name) },
					func(t *testing.T) {
						got := run(t, "run", "--rm", "--pull", "never", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--log-driver", "none", name, "echo", "it", "runs")
						if got != "it runs" {
							t.Errorf("podman run says %q", got)
						}
						run(t, "rmi", "-f", name)
						run(t, "image", "prune", "-af")
					})
			})
		}
	}
}
