//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// sigstoreBundle is a type of artifact that Docker 29 fetches with an image.
const sigstoreBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"

// TestNewestClientsPullWhileReferrersFail pulls images that are cached with Docker 29, which asks
// for the referrers of their attestations, and with containerd 2. The Hub limits requests or can't
// be reached, and the referrers were never asked for, or were and name what isn't cached. The
// pulls go on, also after hubcache was restarted.
func TestNewestClientsPullWhileReferrersFail(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String()})
	d := dockertest.Start(t, dockertest.Options{Docker29: true, Network: network, Mirrors: []string{s.URL}, Env: deadProxy(s)})
	c := startContainerd(t, s, dockertest.Docker29(t))
	for name, row := range map[string]struct {
		match hubtest.Match
		fault hubtest.Fault
	}{
		"limited":   {hubtest.Match{Face: hubtest.Registry}, hubtest.TooManyRequests("Retry-After: 300")},
		"referrers": {hubtest.Match{Kind: "referrers"}, hubtest.TooManyRequests()},
		"broken":    {hubtest.Match{Face: hubtest.Registry}, hubtest.Status(http.StatusServiceUnavailable, "")},
		"down":      {hubtest.Match{}, hubtest.Reset()},
		"silent":    {hubtest.Match{}, hubtest.Hang()},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/list kept=%v", name, known), func(t *testing.T) {
				s.Restart() // without the pauses of the row before
				repository := fmt.Sprintf("library/%s-%v", name, known)
				img := runnableImage(t, hub, repository, "1", 1, 1<<20, hubtest.ImageSpec{Attestations: true})
				attestation := img.Manifests[1].Digest
				hub.AddManifest(repository, "", "application/vnd.oci.image.manifest.v1+json",
					fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[],"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d}}`,
						sigstoreBundle, attestation, len(img.Manifests[1].Bytes)))
				if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
					t.Fatal(err)
				}
				if known {
					get(t, fmt.Sprintf("%s/v2/%s/referrers/%s", s.URL, repository, attestation))
				}
				rule := hub.Inject(row.match, row.fault)
				defer rule.Remove()
				s.Restart()
				image := strings.TrimPrefix(repository, "library/") + ":1"
				d.Docker("pull", image)
				checkRuns(t, d, image)
				if n := staleReferrers(t, s, repository); n == 0 {
					t.Error("Docker 29 has not asked for referrers, or they were not stale")
				}
				c.ctr(t, "images", "pull", "--local", "--snapshotter", "native", "--hosts-dir", c.hosts, "docker.io/"+repository+":1")
			})
		}
	}
}

// staleReferrers counts the requests for referrers of a repository that were answered stale, in
// the server's log.
func staleReferrers(t *testing.T, s *server, repository string) (n int) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(s.Log()))
	for lines.Scan() {
		var line struct {
			Kind, Repository, Cache string
			Status                  int
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Kind == "referrers" && line.Repository == repository && line.Cache == "stale" && line.Status == http.StatusOK {
			n++
		}
	}
	return n
}
