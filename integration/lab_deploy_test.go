//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// recipeFile is a compose file with three services, one of them with an image of the author's
// own.
const recipeFile = `version: "3.8"

x-service: &service
  command: ["sleep", "1000000"]
  stop_signal: SIGKILL
  networks: [host]

services:
  db:
    <<: *service
    image: postgres:16
  app:
    <<: *service
    image: acme/app:2.1
  web:
    <<: *service
    image: nginx:1.27

networks:
  host:
    external: true
`

// recipe is a compose file with the images that it names.
type recipe struct {
	file   string
	images []*hubtest.Image
	layers int
	bytes  int64 // of the blobs, each once
}

// addRecipe adds the recipe's images to the Hub. They have 13 layers; all three images share the
// first.
func addRecipe(t *testing.T, hub *hubtest.Hub) recipe {
	t.Helper()
	r := recipe{file: filepath.Join(t.TempDir(), "compose.yml")}
	if err := os.WriteFile(r.file, []byte(recipeFile), 0o644); err != nil {
		t.Fatal(err)
	}
	index := hubtest.ImageSpec{Index: true}
	r.images = []*hubtest.Image{
		runnableImage(t, hub, "library/postgres", "16", 4, 16<<20, index),
		runnableImage(t, hub, "acme/app", "2.1", 5, 12<<20, hubtest.ImageSpec{Docker: true}),
		runnableImage(t, hub, "library/nginx", "1.27", 3, 8<<20, hubtest.ImageSpec{Attestations: true}),
	}
	seen := map[digest.Digest]bool{}
	for _, img := range r.images {
		m := img.Manifests[0] // the only one that Docker 20.10 pulls
		for _, b := range append(slices.Clone(m.Layers), m.Config) {
			if !seen[b.Digest] {
				seen[b.Digest] = true
				r.bytes += b.Size
			}
		}
	}
	r.layers = len(seen) - len(r.images)
	return r
}

// A fast connection to Docker Hub.
const (
	hubLatency = 50 * time.Millisecond
	hubSpeed   = 20e6 // bytes a second on one connection
)

// dockerHub gives a Hub this latency and bandwidth, and Docker Hub's own host names, so that a
// daemon without a mirror pulls from it.
func dockerHub(o hubtest.Options) hubtest.Options {
	o.TLS = true
	o.RegistryName, o.TokenName, o.CDNName = "registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com"
	o.Latency, o.Bandwidth = hubLatency, hubSpeed
	return o
}

// deployLab is a fake Docker Hub behind a proxy, with the recipe's images, and hubcache. The
// daemons on its network can reach nothing but hubcache.
type deployLab struct {
	hub     *hubtest.Hub
	network *dockertest.Network
	proxy   *connectProxy
	ca      string
	cache   *server
	recipe  recipe
}

func newDeployLab(t *testing.T, o hubtest.Options) *deployLab {
	t.Helper()
	lab := &deployLab{hub: startHub(t, dockerHub(o)), network: dockertest.NewNetwork(t)}
	lab.proxy = startProxy(t, lab.network.Addr.String(), lab.hub)
	lab.ca = writeCA(t, lab.hub)
	lab.cache = startServer(t, serverOptions{
		Upstream: "https://registry-1.docker.io", Host: lab.network.Addr.String(),
		Env:  []string{"HTTPS_PROXY=" + lab.proxy.URL},
		Args: []string{"--upstream-ca-file", lab.ca},
	})
	lab.recipe = addRecipe(t, lab.hub)
	return lab
}

// swarmHost is a daemon that is a swarm of one node.
type swarmHost struct {
	*dockertest.Daemon
	t *testing.T
}

// host starts a daemon that has hubcache as its mirror.
func (lab *deployLab) host(t *testing.T) swarmHost {
	t.Helper()
	d := startDaemon(t, lab.network, lab.cache)
	d.SwarmInit()
	return swarmHost{d, t}
}

// deploy deploys the recipe and returns how long it took until all of it ran.
func (h swarmHost) deploy(r recipe) time.Duration {
	h.t.Helper()
	start := time.Now()
	h.Docker("stack", "deploy", "--compose-file", r.file, "recipe")
	for {
		services := h.Docker("service", "ls", "--format", "{{.Replicas}}")
		if strings.Count(services, "1/1") == len(r.images) {
			return time.Since(start)
		}
		if time.Since(start) > 2*time.Minute {
			h.t.Fatalf("the services do not run after 2 minutes:\n%s", h.Docker("stack", "ps", "--no-trunc", "recipe"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// remove removes the stack, and then its images with this prune command.
func (h swarmHost) remove(prune ...string) {
	h.t.Helper()
	h.Docker("stack", "rm", "recipe")
	for start := time.Now(); h.Docker("ps", "-aq") != ""; time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			h.t.Fatalf("containers are left after a minute:\n%s", h.Docker("ps", "-a"))
		}
	}
	h.Docker(prune...)
	if left := h.Docker("images", "-aq"); left != "" {
		h.t.Fatalf("docker %s left images: %s", strings.Join(prune, " "), left)
	}
}

var (
	imagePrune  = []string{"image", "prune", "-af"}
	systemPrune = []string{"system", "prune", "-af"}
)

// checkFetchedOnce checks that the Hub has sent each blob of the recipe once.
func (lab *deployLab) checkFetchedOnce(t *testing.T) {
	t.Helper()
	if got := lab.hub.Ledger().BlobBytes(); got != lab.recipe.bytes {
		t.Errorf("the Hub sent %d bytes for a recipe of %d:\n%s", got, lab.recipe.bytes, lab.hub.Ledger())
	}
}
