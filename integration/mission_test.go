//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// recipeFile is a recipe as such hosts deploy them: three services, one of them of the
// author's own image.
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

// recipe is a compose file and the images that it names.
type recipe struct {
	file   string
	images []*hubtest.Image
	layers int
	bytes  int64 // of the blobs, each once
}

// addRecipe puts the recipe's images into the Hub: 13 layers, of which all three images
// share the first.
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
		m := img.Manifests[0] // what a daemon of 20.10 pulls
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

// A good line to Docker Hub.
const (
	hubLatency = 50 * time.Millisecond
	hubSpeed   = 20e6 // bytes a second, of one connection
)

// dockerHub puts a Hub on that line, under Docker Hub's own names, so that a daemon without
// a mirror finds it.
func dockerHub(o hubtest.Options) hubtest.Options {
	o.TLS = true
	o.RegistryName, o.TokenName, o.CDNName = "registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com"
	o.Latency, o.Bandwidth = hubLatency, hubSpeed
	return o
}

// missionLab is a fake Docker Hub behind a proxy, a recipe in it, and hubcache, which is the
// only way to them for the daemons of its network.
type missionLab struct {
	hub     *hubtest.Hub
	network *dockertest.Network
	proxy   *connectProxy
	ca      string
	cache   *server
	recipe  recipe
}

func newMissionLab(t *testing.T, o hubtest.Options) *missionLab {
	t.Helper()
	lab := &missionLab{hub: startHub(t, dockerHub(o)), network: dockertest.NewNetwork(t)}
	lab.proxy = startProxy(t, lab.hub, lab.network.Addr.String())
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
func (lab *missionLab) host(t *testing.T) swarmHost {
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
			h.t.Fatalf("the recipe does not run:\n%s", h.Docker("stack", "ps", "--no-trunc", "recipe"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// remove removes the recipe, then its images with such a prune.
func (h swarmHost) remove(prune ...string) {
	h.t.Helper()
	h.Docker("stack", "rm", "recipe")
	for start := time.Now(); h.Docker("ps", "-aq") != ""; time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			h.t.Fatalf("containers are left:\n%s", h.Docker("ps", "-a"))
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
func (lab *missionLab) checkFetchedOnce(t *testing.T) {
	t.Helper()
	if got := lab.hub.Ledger().BlobBytes(); got != lab.recipe.bytes {
		t.Errorf("the Hub sent %d bytes for a recipe of %d:\n%s", got, lab.recipe.bytes, lab.hub.Ledger())
	}
}

// TestDeployAgainNeedsNoDownload deploys a recipe on a swarm, and again after all that used to cost another
// download: prunes, a restart of the cache, and Docker Hub out of reach.
func TestDeployAgainNeedsNoDownload(t *testing.T) {
	lab := newMissionLab(t, hubtest.Options{AnonymousLimit: 2}) // too few for the recipe
	if lab.recipe.layers < 10 || lab.recipe.bytes < 140e6 {
		t.Fatalf("a recipe of %d layers and %d bytes", lab.recipe.layers, lab.recipe.bytes)
	}
	h := lab.host(t)
	t.Logf("cold: %v", h.deploy(lab.recipe))
	lab.checkFetchedOnce(t)
	if account, anonymous := lab.hub.Used(labUser), lab.hub.Used(""); account < len(lab.recipe.images) || anonymous != 0 {
		t.Errorf("%d pulls of the account and %d anonymous ones were counted", account, anonymous)
	}
	for _, trial := range []struct {
		name   string
		prune  []string
		before func()
	}{
		{"after image prune", imagePrune, func() {}},
		{"after system prune and a restart of hubcache", systemPrune, lab.cache.Restart},
		{"with Docker Hub down", imagePrune, lab.hub.Close},
	} {
		h.remove(trial.prune...)
		trial.before()
		lab.hub.ResetLedger()
		t.Logf("%s: %v", trial.name, h.deploy(lab.recipe))
		if again := upstreamGETs(lab.hub); len(again) > 0 {
			t.Errorf("%s, the Hub was asked for\n%s", trial.name, again)
		}
	}
}

// TestDeployOnTwoDaemonsDownloadsOnce has two daemons deploy the recipe at the same moment, cold.
func TestDeployOnTwoDaemonsDownloadsOnce(t *testing.T) {
	lab := newMissionLab(t, hubtest.Options{})
	hosts := []swarmHost{lab.host(t), lab.host(t)}
	var both sync.WaitGroup
	for _, h := range hosts {
		both.Go(func() {
			if out, err := h.Command("stack", "deploy", "--compose-file", lab.recipe.file, "recipe").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	both.Wait()
	for _, h := range hosts {
		h.deploy(lab.recipe) // the same again changes nothing, and waits
	}
	lab.checkFetchedOnce(t)
	served := lab.cache.Stats().Bytes.Served
	if want := 2 * lab.recipe.bytes; served < want {
		t.Errorf("hubcache served %d bytes, want %d and more", served, want)
	}
}

// TestDaemonFallsBackWhenHubcacheCannotPull pulls by a daemon that reaches Docker Hub, too, while hubcache is
// of no use: the pull must succeed, and soon.
func TestDaemonFallsBackWhenHubcacheCannotPull(t *testing.T) {
	lab := newMissionLab(t, hubtest.Options{})
	d := dockertest.Start(t, dockertest.Options{Network: lab.network, Mirrors: []string{lab.cache.URL},
		Env: []string{"HTTPS_PROXY=" + lab.proxy.URL, "SSL_CERT_FILE=" + lab.ca, "NO_PROXY=" + lab.network.Addr.String()}})
	for name, spoil := range map[string]func(){
		"token-refused": func() {
			lab.hub.Set(func(o *hubtest.Options) { o.Accounts = []hubtest.Account{{Username: labUser, PAT: "revoked"}} })
			lab.cache.Start()
		},
		"account-has-no-pulls-left": func() {
			lab.hub.Set(func(o *hubtest.Options) { o.Accounts = []hubtest.Account{{Username: labUser, PAT: labPAT, Limit: 1}} })
			lab.hub.SetUsed(labUser, 1)
			lab.cache.Start()
		},
		"stopped": func() {},
	} {
		t.Run(name, func(t *testing.T) {
			runnableImage(t, lab.hub, "library/"+name, "1", 1, 1<<20, hubtest.ImageSpec{})
			lab.cache.Stop()
			spoil()
			lab.hub.ResetLedger()
			start := time.Now()
			d.Docker("pull", name+":1")
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			checkRuns(t, d, name+":1")
			if direct := lab.hub.Used(""); direct == 0 {
				t.Errorf("the daemon did not ask Docker Hub itself:\n%s", lab.hub.Ledger())
			}
		})
	}
}
