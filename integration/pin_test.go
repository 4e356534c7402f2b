//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestDockerPullsWhatIsPinned: a pinned image is pulled without a request to the Hub after images
// of twice the budget, and one that isn't pinned is not. After a purge it comes from the Hub again.
func TestDockerPullsWhatIsPinned(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	network := dockertest.NewNetwork(t)
	s := startServer(t, serverOptions{Hub: hub, Host: network.Addr.String(), Args: []string{"--budget", "20MiB", "--min-free", "1MiB"}})
	d := startDaemon(t, network, s)
	runnableImage(t, hub, "library/kept", "1", 2, 1<<20, imageKinds[0].spec)
	runnableImage(t, hub, "library/free", "1", 2, 1<<20, imageKinds[0].spec)
	// pull returns what the Hub is asked for.
	pull := func(image string) hubtest.Ledger {
		t.Helper()
		hub.ResetLedger()
		d.Docker("pull", image)
		d.Docker("rmi", image)
		d.Docker("image", "prune", "-af")
		return upstreamGETs(hub)
	}
	for _, image := range []string{"kept:1", "free:1"} {
		if len(pull(image)) == 0 {
			t.Fatalf("%s was never fetched", image)
		}
	}
	if out := s.Command("pin", "kept:1"); !strings.HasPrefix(out, "kept:1 is pinned: ") || strings.Contains(out, "missing") {
		t.Errorf("pin: %s", out)
	}
	for n := range 10 {
		img := hub.AddImage("library/other", fmt.Sprint(n), hubtest.ImageSpec{Layers: hubtest.Layers(2, 2<<20)})
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Fatal(err)
		}
	}
	if asked := pull("kept:1"); len(asked) > 0 {
		t.Errorf("the pinned image was fetched again:\n%s", asked)
	}
	if len(pull("free:1")) == 0 {
		t.Error("the other image has not been evicted: this shows nothing")
	}
	if out := s.Command("ls", "kept"); !strings.Contains(out, " complete  yes ") {
		t.Errorf("ls:\n%s", out)
	}
	dry := s.Command("purge", "--unpin", "--dry-run", "kept:1")
	out := s.Command("purge", "--unpin", "kept:1")
	if strings.ReplaceAll(strings.ReplaceAll(dry, "would be", "is"), "would not be pinned any more", "is not pinned any more") != out || !strings.Contains(out, "kept:1 is purged: ") {
		t.Errorf("a dry run says\n%s, and the run\n%s", dry, out)
	}
	if hub.ResetLedger(); len(pull("kept:1")) == 0 {
		t.Error("what was purged is still there")
	}
}
