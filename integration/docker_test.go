//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// startDaemon starts a dockerd that has the server as its mirror and can reach nothing else.
func startDaemon(t testing.TB, network *dockertest.Network, mirror *server) *dockertest.Daemon {
	t.Helper()
	return dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{mirror.URL}, Env: deadProxy(mirror)})
}

// TestDockerPullsFromHubOnce checks the purpose of hubcache: an image that was pulled once and
// then pruned comes from the local disk.
func TestDockerPullsFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String()})
	d := startDaemon(t, network, s)
	for _, kind := range imageKinds {
		t.Run(kind.name, func(t *testing.T) {
			img := runnableImage(t, hub, "library/app", kind.name, 3, 1<<20, kind.spec)
			byTag := "app:" + kind.name
			byDigest := "app@" + img.Digest.String()
			hub.ResetLedger()
			d.Docker("pull", byTag)
			if got := hub.Ledger().BlobBytes(); got == 0 {
				t.Fatalf("the first pull did not reach the Hub:\n%s", hub.Ledger())
			}
			checkRuns(t, d, byTag)
			if got := d.Docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", byTag); got != byDigest {
				t.Errorf("docker has the digest %s, upstream %s", got, byDigest)
			}
			for _, reference := range []string{byTag, byDigest} {
				d.Docker("rmi", byTag)
				d.Docker("image", "prune", "-af")
				if images := d.Docker("images", "-aq"); images != "" {
					t.Fatalf("images are left: %s", images)
				}
				hub.ResetLedger()
				d.Docker("pull", reference)
				if again := upstreamGETs(hub); len(again) > 0 {
					t.Errorf("pulling %s again reached the Hub:\n%s", reference, again)
				}
				checkRuns(t, d, reference)
				if reference == byDigest {
					d.Docker("tag", byDigest, byTag)
				}
			}
			d.Docker("image", "prune", "-af")
			checkUpstreamBytes(t, s, img)
		})
	}
}

func checkRuns(t *testing.T, d *dockertest.Daemon, image string) {
	t.Helper()
	if got := d.Docker("run", "--rm", "--network", "none", image, "echo", "it", "runs"); got != "it runs" {
		t.Errorf("docker run says %q", got)
	}
}

// checkUpstreamBytes checks that all manifests and blobs that the server sends are equal to
// the Hub's, with the same media types and digests, and that HEAD has the same headers.
func checkUpstreamBytes(t *testing.T, s *server, img *hubtest.Image) {
	t.Helper()
	if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
		t.Error(err)
	}
	url := fmt.Sprintf("%s/v2/%s/manifests/%s", s.URL, img.Repository, img.Tag)
	head, err := request(t.Context(), http.MethodHead, url)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Content-Type": img.MediaType, "Docker-Content-Digest": img.Digest.String(), "Content-Length": fmt.Sprint(img.Descriptor.Size),
	} {
		if got := head.Header.Get(name); got != want {
			t.Errorf("HEAD by tag: %s is %q, upstream has %q", name, got, want)
		}
	}
}

// TestDockerPullsAllTags pulls a repository with all of its tags. The list of tags comes
// through hubcache too.
func TestDockerPullsAllTags(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String()})
	d := startDaemon(t, network, s)
	for _, tag := range []string{"1", "2", "3"} {
		runnableImage(t, hub, "acme/tool", tag, 1, 100<<10, hubtest.ImageSpec{})
	}
	d.Docker("pull", "--all-tags", "acme/tool")
	if got := strings.Fields(d.Docker("images", "--format", "{{.Tag}}", "acme/tool")); len(got) != 3 {
		t.Errorf("docker has the tags %v", got)
	}
}

// TestDockerPullGoesOnAfterInterrupt ends `docker pull` in the middle of a layer. hubcache goes
// on with the download, and no byte is fetched twice.
func TestDockerPullGoesOnAfterInterrupt(t *testing.T) {
	hub := startHub(t, hubtest.Options{TotalBandwidth: 10 << 20})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String()})
	d := startDaemon(t, network, s)
	img := runnableImage(t, hub, "library/app", "1", 1, 16<<20, hubtest.ImageSpec{})
	pull := d.Command("pull", "app:1")
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); hub.Ledger().BlobBytes() < 4<<20; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("the Hub has not sent 4 MiB within a minute")
		}
	}
	_ = pull.Process.Kill() // dockerd ends the pull with its client
	_ = pull.Wait()
	d.Docker("pull", "app:1")
	checkRuns(t, d, "app:1")
	if got := hub.Ledger().BlobBytes(); got != img.Size() {
		t.Errorf("the Hub sent %d bytes of an image of %d:\n%s", got, img.Size(), hub.Ledger())
	}
}

// TestDockerBuildsFromHubOnce builds from a base image that comes through hubcache, with the
// classic builder and with the BuildKit in dockerd. BuildKit in Docker 20.10 requests https from
// every mirror that is not loopback, unless insecure-registries contains the mirror's whole URL
// with "http://"; host:port alone is not enough.
func TestDockerBuildsFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String()})
	d := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{s.URL}, Env: deadProxy(s),
		Config: map[string]any{"insecure-registries": []string{s.URL}}})
	for name, buildkit := range map[string]string{"classic": "0", "buildkit": "1"} {
		t.Run(name, func(t *testing.T) {
			runnableImage(t, hub, "library/"+name, "1", 2, 1<<20, hubtest.ImageSpec{Attestations: true})
			build := func() {
				t.Helper()
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+name+":1\nCOPY Dockerfile /\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				// Debian's client: others may need a plugin for BuildKit.
				cmd := exec.Command("/usr/bin/docker", "build", "--no-cache", "--tag", "built:"+name, dir)
				cmd.Env = append(d.Env(), "DOCKER_BUILDKIT="+buildkit)
				runCommand(t, cmd)
				checkRuns(t, d, "built:"+name)
			}
			hub.ResetLedger()
			build()
			if hub.Ledger().BlobBytes() == 0 {
				t.Error("the build did not reach the Hub")
			}
			d.Docker("system", "prune", "-af")
			hub.ResetLedger()
			build()
			if again := upstreamGETs(hub); len(again) > 0 {
				t.Errorf("the second build reached the Hub:\n%s", again)
			}
		})
	}
}
