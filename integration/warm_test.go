//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestWarmedImageIsPulledWithoutTheHub: what `hubcache warm` fetches, each thing once, is all that
// Docker 29 asks for, with the attestation and the referrers. The Hub is down, and isn't asked.
func TestWarmedImageIsPulledWithoutTheHub(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String(), Env: []string{"HUBCACHE_TAGS_TTL=1h"}})
	img := runnableImage(t, hub, "library/warmed", "1", 1, 1<<20, hubtest.ImageSpec{Attestations: true})
	if out := s.Command("warm", "warmed:1"); !strings.Contains(out, "warmed:1  complete") {
		t.Fatal(out)
	}
	got := map[string]int{}
	for _, e := range hub.Ledger() {
		if e.Method == http.MethodGet && e.Status == http.StatusOK && (e.Kind == "manifests" || e.Kind == "blobs") {
			got[e.Reference]++
		}
	}
	for _, m := range img.Manifests {
		for _, d := range append(m.Layers, m.Config, m.Descriptor, img.Descriptor) {
			if got[string(d.Digest)] != 1 {
				t.Errorf("%s was fetched %d times", d.Digest, got[string(d.Digest)])
			}
		}
	}
	d := dockertest.Start(t, dockertest.Options{Docker29: true, Network: network, Mirrors: []string{s.URL}, Env: deadProxy(s)})
	hub.ResetLedger()
	hub.Inject(hubtest.Match{}, hubtest.Reset())
	d.Docker("pull", "warmed:1")
	checkRuns(t, d, "warmed:1")
	if asked := hub.Ledger(); len(asked) > 0 {
		t.Errorf("the Hub was asked:\n%s", asked)
	}
	if out := s.Command("warm", "--check", "warmed:1"); !strings.Contains(out, "warmed:1  complete") {
		t.Error(out)
	}
}
