//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/fakehub"
)

// startDaemon starts a dockerd that has the server as its mirror and no other way out.
func startDaemon(t testing.TB, network *dockertest.Network, mirror *server) *dockertest.Daemon {
	t.Helper()
	return dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{mirror.URL}, Env: shutProxy(mirror)})
}

// TestDockerPullRemovePull is what hubcache is for: an image that was pulled once, and
// then lost to a prune, comes from the local disk.
func TestDockerPullRemovePull(t *testing.T) {
	hub := startHub(t, fakehub.Options{})
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
				t.Errorf("docker knows it as %s, upstream as %s", got, byDigest)
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

// checkUpstreamBytes compares every manifest and blob that the server answers with the
// Hub's: bytes, media type, digest, and that HEAD says the same.
func checkUpstreamBytes(t *testing.T, s *server, img *fakehub.Image) {
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
