package prune

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

func TestDryRunDeletesNothing(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	r := mustRun(t, newPruner(t, e, c), false)
	wantDecision(t, r, Pruned, "")
	if e.imagesLeft() != "abc" || len(e.log("DELETE")) > 0 || !r.DryRun || r.Freed() != 0 {
		t.Errorf("left %q, report %+v", e.imagesLeft(), r)
	}
	if r.Images[1].Action != Delete || r.Images[2].Action != Deletable {
		t.Errorf("images %+v", r.Images)
	}
}

func TestDryRunPredictsIncomplete(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	wantDecision(t, mustRun(t, newPruner(t, e, c), false), Incomplete, "not enough")
}

func TestRunIsIncompleteWhenTheRulesKeepTheRest(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	e.add("b", []string{"redis:7"}, nil)
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Incomplete, "every image that may be deleted was deleted")
	if e.imagesLeft() != "b" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

func TestNothingIsDeletedBelowHighWatermark(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	e.used = 850 // at the high watermark is not above it
	p := newPruner(t, e, c)
	wantDecision(t, mustRun(t, p, true), NotNeeded, "high watermark")
	if e.imagesLeft() != "a" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// Whichever request the engine fails to answer, no image is deleted.
func TestEngineFailureKeepsEveryImage(t *testing.T) {
	for _, request := range []string{"GET /info", "GET /images/json", "GET /system/df", "GET /containers/json",
		"GET /containers/web/json", "GET /services", "GET /tasks", "GET /events"} {
		e, c := newEngine(t, "1.41")
		addOrphans(e, 3)
		e.runContainer("web", "b", time.Now().Add(-24*time.Hour))
		e.info.Swarm.ControlAvailable = true
		p := newPruner(t, e, c)
		e.fail[request] = 500
		r, err := p.Run(t.Context(), true)
		if err == nil || r.Decision != Failed || e.imagesLeft() != "abc" {
			t.Errorf("%s fails: %s (%v), left %q", request, r.Decision, err, e.imagesLeft())
		}
	}
}

func TestLockedSwarmKeepsEveryImage(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	e.info.Swarm.LocalNodeState = swarm.LocalNodeStateLocked
	if r, err := newPruner(t, e, c).Run(t.Context(), true); err == nil || e.imagesLeft() != "a" {
		t.Errorf("%s, left %q", r.Decision, e.imagesLeft())
	}
}

func TestUnreadableKeepFileKeepsEveryImage(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	p := newPruner(t, e, c)
	p.Policy.KeepFiles = []string{"/does/not/exist.yml"}
	if r, err := p.Run(t.Context(), true); err == nil || e.imagesLeft() != "a" {
		t.Errorf("%s, left %q", r.Decision, e.imagesLeft())
	}
}

// TestRunBelowTheWatermarkNeedsNoHoldFolder: there is nothing that a hold could hold off.
func TestRunBelowTheWatermarkNeedsNoHoldFolder(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	e.used = 100
	p := newPruner(t, e, c)
	p.Holds.Dir = filepath.Join(p.Uses.Path, "below-a-file")
	wantDecision(t, mustRun(t, p, true), NotNeeded, "")
}
