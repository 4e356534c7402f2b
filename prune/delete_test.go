package prune

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/swarm"
)

// 900 of 1000 bytes are used, and each image has 100. Two images have to be deleted to reach 75 %:
// the two least recently used. The third is kept. So it is with each version of the API.
func TestRunStopsAtLowWatermark(t *testing.T) {
	for _, version := range []string{"1.41", "1.44", "1.51", "1.55"} {
		t.Run(version, func(t *testing.T) {
			e, c := newEngine(t, version)
			addOrphans(e, 3)
			r := mustRun(t, newPruner(t, e, c), true)
			wantDecision(t, r, Pruned, "")
			if e.imagesLeft() != "c" || r.Freed() != 200 {
				t.Errorf("left %q, freed %d", e.imagesLeft(), r.Freed())
			}
			if got := []Action{r.Images[0].Action, r.Images[1].Action, r.Images[2].Action}; !slices.Equal(got, []Action{Delete, Delete, Deletable}) {
				t.Errorf("actions %v", got)
			}
			for _, del := range e.log("DELETE") {
				if !strings.Contains(del, "noprune=1") || strings.Contains(del, "force") {
					t.Errorf("the deletion was %s", del)
				}
			}
			if posts := e.log("POST"); len(posts) > 0 {
				t.Errorf("it sent %v", posts)
			}
		})
	}
}

// While the first image is deleted, something happens to the second.
func TestImageThatChangesDuringARunIsSkipped(t *testing.T) {
	tests := []struct {
		name string
		do   func(*fakeEngine)
		rule Rule
		left string
	}{
		{"a container", func(e *fakeEngine) { e.runContainer("new", "b", time.Now()) }, RuleChanged, "b"},
		{"an image mount", func(e *fakeEngine) { e.runContainer("new", "f", time.Now(), id("b")) }, RuleChanged, "b"},
		{"a tag", func(e *fakeEngine) {
			e.mu.Lock()
			e.images[e.index(id("b"))].RepoTags = []string{"new:1"}
			e.mu.Unlock()
		}, RuleChanged, "b"},
		{"a conflict", func(e *fakeEngine) { e.mu.Lock(); e.fail["DELETE /images/"+id("b")] = 409; e.mu.Unlock() }, RuleConflict, "b"},
		{"an error", func(e *fakeEngine) { e.mu.Lock(); e.fail["DELETE /images/"+id("b")] = 500; e.mu.Unlock() }, RuleFailed, "b"},
	}
	for _, test := range tests {
		e, c := newEngine(t, "1.51")
		addOrphans(e, 3)
		e.before = func(request string) {
			if strings.HasPrefix(request, "DELETE /images/"+id("a")) {
				test.do(e)
			}
		}
		r := mustRun(t, newPruner(t, e, c), true)
		wantDecision(t, r, Pruned, "")
		var rule Rule
		for _, v := range r.Images {
			if v.Image.ID == id("b") && v.Action == Skip {
				rule = v.Rule
			}
		}
		if rule != test.rule || e.imagesLeft() != test.left {
			t.Errorf("%s: b was %q, left %q", test.name, rule, e.imagesLeft())
		}
	}
}

// A deploy that starts between two deletions ends the run.
func TestDeployStopsARun(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.info.Swarm.ControlAvailable = true
	addOrphans(e, 3)
	e.before = func(request string) {
		if strings.HasPrefix(request, "DELETE") {
			e.mu.Lock()
			e.tasks = []swarm.Task{{ID: "t", DesiredState: "running", Status: swarm.TaskStatus{State: swarm.TaskStatePreparing}}}
			e.mu.Unlock()
		}
	}
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Deferred, "preparing")
	if e.imagesLeft() != "bc" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// An image with names in two repositories is deleted one name at a time, tags before digests, and
// never by its ID.
func TestImageIsDeletedNameByName(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.add("a", []string{"x:1", "y:1"}, []string{digestRef("x", "1"), digestRef("z", "2")})
	e.add("b", []string{"x:2", "y:2"}, []string{digestRef("z", "3")})
	p := newPruner(t, e, c)
	p.Policy.Tagged = true
	mustRun(t, p, true)
	want := []string{"x:1", "y:1"}
	for i, del := range e.log("DELETE") {
		if i >= len(want) || !strings.HasPrefix(del, "DELETE /images/"+want[i]+"?") {
			t.Errorf("deletion %d is %s", i, del)
		}
	}
	if e.imagesLeft() != "b" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// An image on which another one was built is deleted after that one, in the same run.
func TestChildImageIsDeletedBeforeItsParent(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.images = []image.Summary{{ID: id("a"), Size: 100}, {ID: id("b"), ParentID: id("a"), Size: 100}}
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Pruned, "")
	if dels := e.log("DELETE"); e.imagesLeft() != "" || !strings.Contains(dels[0], id("b")) {
		t.Errorf("left %q after %v", e.imagesLeft(), dels)
	}
}
