//go:build integration

package integration

import (
	"sync"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestDeployAgainNeedsNoDownload deploys a recipe on a swarm, and deploys it again after prunes,
// after a restart of hubcache, and while Docker Hub is down.
func TestDeployAgainNeedsNoDownload(t *testing.T) {
	lab := newDeployLab(t, hubtest.Options{AnonymousLimit: 2}) // fewer pulls than the recipe needs
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
			t.Errorf("%s, these requests reached the Hub:\n%s", trial.name, again)
		}
	}
}

// TestDeployOnTwoDaemonsDownloadsOnce has two daemons deploy the recipe at the same moment with
// an empty cache.
func TestDeployOnTwoDaemonsDownloadsOnce(t *testing.T) {
	lab := newDeployLab(t, hubtest.Options{})
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
		h.deploy(lab.recipe) // changes nothing, and waits until the services run
	}
	lab.checkFetchedOnce(t)
	served := lab.cache.Stats().Bytes.Served
	if want := 2 * lab.recipe.bytes; served < want {
		t.Errorf("hubcache served %d bytes, want %d and more", served, want)
	}
}
