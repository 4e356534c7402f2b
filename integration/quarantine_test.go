//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestQuarantineWithDocker: a Docker that can reach nothing but the cache gets by tag only what has
// waited or was released, and by digest everything but what is denied. One that can reach the registry
// goes there when it is refused.
func TestQuarantineWithDocker(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	first := runnableImage(t, hub, "library/app", "1", 1, 100<<10, hubtest.ImageSpec{})
	denied := runnableImage(t, hub, "library/denied", "1", 1, 150<<10, hubtest.ImageSpec{})
	rules := `{tags: {ttl: 0, rules: [{match: "library/app:*", quarantine: 72h, ttl: 0}]}, deny_digests: [` + denied.Manifests[0].Layers[1].Digest.String() + `]}`
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String(), Env: []string{"HUBCACHE_SETTINGS=" + rules}})
	d := startDaemon(t, network, s)
	refused := func(image, why string) {
		t.Helper()
		if out, err := d.Command("pull", image).CombinedOutput(); err == nil {
			t.Errorf("%s was pulled:\n%s", image, out)
		}
		for began := time.Now(); !strings.Contains(s.Log(), why); time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s: the log doesn't say %q:\n%s", image, why, lastLines(s.Log(), 10))
			}
		}
	}
	digest := func(image string) string {
		return d.Docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", image)
	}

	refused("app:1", "quarantine: this cache must have known")
	d.Docker("pull", "app@"+first.Digest.String())
	if out := s.Command("release"); !strings.Contains(out, "app:1") {
		t.Errorf("release lists\n%s", out)
	}
	if out := s.Command("ls"); !strings.Contains(out, "IN QUARANTINE") {
		t.Errorf("ls lists\n%s", out)
	}
	if out := s.Command("release", "app:1"); !strings.Contains(out, "app:1 is ") {
		t.Errorf("release says\n%s", out)
	}
	d.Docker("pull", "app:1")

	second := runnableImage(t, hub, "library/app", "1", 1, 200<<10, hubtest.ImageSpec{})
	d.Docker("rmi", "-f", "app:1")
	d.Docker("pull", "app:1")
	if got := digest("app:1"); got != "app@"+first.Digest.String() {
		t.Errorf("by tag came %s", got)
	}
	if out := s.Command("inspect", "app:1"); !strings.Contains(out, "IN QUARANTINE") || !strings.Contains(out, "for 3 d") && !strings.Contains(out, "for 72 h") {
		t.Errorf("inspect says\n%s", out)
	}
	s.Restart()
	if a, err := request(t.Context(), http.MethodHead, s.URL+"/v2/library/app/manifests/1"); err != nil || a.Header.Get("X-Hubcache") != "quarantine" {
		t.Errorf("after a restart: %v, %v", a, err)
	}
	d.Docker("pull", "app@"+second.Digest.String())
	refused("denied:1", "deny_digests")

	t.Run("a way to the registry", func(t *testing.T) {
		direct := startHub(t, hubtest.Options{TLS: true, AnonymousLimit: hubtest.Unlimited,
			RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com"})
		runnableImage(t, direct, "library/denied", "1", 1, 150<<10, hubtest.ImageSpec{})
		proxy := startProxy(t, network.Addr.String(), direct)
		free := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{s.URL}, Env: []string{
			"HTTPS_PROXY=" + proxy.URL, "HTTP_PROXY=" + proxy.URL, "NO_PROXY=" + network.Addr.String(), "SSL_CERT_FILE=" + writeCA(t, direct)}})
		free.Docker("pull", "denied:1")
		if direct.Ledger().BlobBytes() == 0 {
			t.Error("it came from nowhere")
		}
	})
}
