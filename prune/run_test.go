package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// orphans puts n images that may go into the engine: a, b, c …, the oldest first.
func orphans(e *engine, n int) {
	for i := range n {
		e.add(string("abcdef"[i]), []string{"<none>:<none>"}, []string{"<none>@<none>"})
	}
}

func mustRun(t *testing.T, p *Pruner, apply bool) Report {
	t.Helper()
	r, err := p.Run(t.Context(), apply)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantDecision(t *testing.T, r Report, want Decision, reason string) {
	t.Helper()
	if r.Decision != want || !strings.Contains(r.Reason, reason) {
		t.Errorf("decision %s (%s), want %s (…%s…)", r.Decision, r.Reason, want, reason)
	}
}

// TestStopsAtLowWatermark: 900 of 1000 bytes used, images of 100: two have to go for
// 75 %, the two least recently used go, and the third stays. For each API version.
func TestStopsAtLowWatermark(t *testing.T) {
	for _, version := range []string{"1.41", "1.44", "1.51", "1.55"} {
		t.Run(version, func(t *testing.T) {
			e, c := newEngine(t, version)
			orphans(e, 3)
			r := mustRun(t, newPruner(t, e, c), true)
			wantDecision(t, r, Pruned, "")
			if e.left() != "c" || r.Freed() != 200 {
				t.Errorf("left %q, freed %d", e.left(), r.Freed())
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

func TestDryRunDeletesNothing(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	r := mustRun(t, newPruner(t, e, c), false)
	wantDecision(t, r, Pruned, "")
	if e.left() != "abc" || len(e.log("DELETE")) > 0 || !r.DryRun || r.Freed() != 0 {
		t.Errorf("left %q, report %+v", e.left(), r)
	}
	if r.Images[1].Action != Delete || r.Images[2].Action != Deletable {
		t.Errorf("verdicts %+v", r.Images)
	}
}

func TestDryRunForeseesIncomplete(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 1)
	wantDecision(t, mustRun(t, newPruner(t, e, c), false), Incomplete, "not enough")
}

func TestIncomplete(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 1)
	e.add("b", []string{"redis:7"}, nil)
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Incomplete, "every image that may be deleted was deleted")
	if e.left() != "b" {
		t.Errorf("left %q", e.left())
	}
}

func TestNotNeeded(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 1)
	e.used = 850 // at the high watermark is not above it
	p := newPruner(t, e, c)
	wantDecision(t, mustRun(t, p, true), NotNeeded, "high watermark")
	if e.left() != "a" {
		t.Errorf("left %q", e.left())
	}
}

// TestRunsObserve: without a watcher, a run that had nothing to do has still noted which
// images are new and which are in use.
func TestRunsObserve(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	e.used = 0
	p := newPruner(t, e, c)
	e.runContainer("web", "b", time.Now().Add(-24*time.Hour))
	e.add("d", nil, nil)
	mustRun(t, p, false)
	e.containers, e.used = nil, 990
	p.Policy.Quiet, p.Policy.MaxWait = 0, time.Second
	mustRun(t, p, true)
	if e.left() != "bd" {
		t.Errorf("left %q, want bd: b was in use a moment ago, d was new", e.left())
	}
}

func TestInodesArePressure(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	p := newPruner(t, e, c)
	p.stat = func(path string) (Disk, error) {
		return Disk{Path: path, Total: 1000, Used: 10, Inodes: 100, InodesUsed: 70 + 10*int64(len(e.left()))}, nil
	}
	wantDecision(t, mustRun(t, p, true), Pruned, "")
	if e.left() != "" {
		t.Errorf("left %q, want none: 75 %% of the inodes", e.left())
	}
}

func TestContainerdRootCounts(t *testing.T) {
	e, c := newEngine(t, "1.51")
	e.info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	info, err := c.Info(t.Context(), client.InfoOptions{})
	if err != nil || !containerdStore(info.Info) {
		t.Fatalf("containerd store: %v, %v", containerdStore(info.Info), err)
	}
	if containerdStore(system.Info{DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}}}) {
		t.Error("a graphdriver store was taken for containerd's")
	}
}

func TestHoldDefers(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	p := newPruner(t, e, c)
	hold, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, apply := range []bool{true, false} {
		wantDecision(t, mustRun(t, p, apply), Deferred, "hold")
	}
	if e.left() != "abc" {
		t.Errorf("left %q", e.left())
	}
	hold.Release()
	wantDecision(t, mustRun(t, p, true), Pruned, "")
}

// TestHoldStopsARun: a hold that comes between two deletions gets in, and ends the run.
func TestHoldStopsARun(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	p := newPruner(t, e, c)
	var hold *Hold
	entered := make(chan error, 1)
	e.before = func(request string) {
		if strings.HasPrefix(request, "DELETE") {
			go func() {
				var err error
				hold, err = p.Holds.Acquire(context.Background(), 10*time.Second, nil)
				entered <- err
			}()
			e.mu.Lock()
			e.before = nil
			e.mu.Unlock()
			time.Sleep(3 * lockPoll) // it waits, while the deletion goes on
		}
	}
	wantDecision(t, mustRun(t, p, true), Deferred, "hold")
	if err := <-entered; err != nil || e.left() != "bc" {
		t.Errorf("hold: %v; left %q", err, e.left())
	}
	hold.Release()
}

// TestCriticalWaitsForHolds: above the critical watermark prune waits for the hold in
// force, and a hold that comes meanwhile waits for prune.
func TestCriticalWaitsForHolds(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	first, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Report)
	go func() { r, _ := p.Run(context.Background(), true); done <- r }()
	waitGateClosed(t, p.Holds)
	second := make(chan string)
	go func() {
		if _, err := p.Holds.Acquire(context.Background(), time.Minute, nil); err != nil {
			t.Error(err)
		}
		second <- e.left()
	}()
	select {
	case <-done:
		t.Fatal("prune did not wait for the hold in force")
	case <-second:
		t.Fatal("a new hold got in while prune waited: prune may starve")
	case <-time.After(10 * lockPoll):
	}
	if e.left() != "abc" {
		t.Error("deleted in the middle of a run")
	}
	first.Release()
	wantDecision(t, <-done, Pruned, "")
	if left := <-second; left != e.left() {
		t.Errorf("the second hold came in when %q was left, and then %q was", left, e.left())
	}
}

func waitGateClosed(t *testing.T, h Holds) {
	t.Helper()
	gate, err := h.open("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	for range 500 {
		if errors.Is(lock(gate, unix.LOCK_SH), ErrHeld) {
			return
		}
		_ = unix.Flock(int(gate.Fd()), unix.LOCK_UN)
		time.Sleep(lockPoll / 2)
	}
	t.Fatal("prune never closed the gate")
}

func TestCriticalGivesUpAfterMaxWait(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	p.Policy.MaxWait = 5 * lockPoll
	hold, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Release()
	wantDecision(t, mustRun(t, p, true), Deferred, "after waiting")
	if e.left() != "abc" {
		t.Errorf("left %q", e.left())
	}
}

// TestActivityGates: each sign of a deploy defers; above critical only what swarm says.
func TestActivityGates(t *testing.T) {
	event := func(kind events.Type, action events.Action, ago time.Duration) func(*engine, *Pruner) {
		return func(e *engine, _ *Pruner) {
			e.send(events.Message{Type: kind, Action: action, Actor: events.Actor{ID: "x"}, TimeNano: time.Now().Add(-ago).UnixNano()})
		}
	}
	manager := func(e *engine) { e.info.Swarm.ControlAvailable = true }
	task := func(desired, state swarm.TaskState) func(*engine, *Pruner) {
		return func(e *engine, _ *Pruner) {
			manager(e)
			e.tasks = []swarm.Task{{ID: "t", DesiredState: desired, Status: swarm.TaskStatus{State: state}}}
		}
	}
	update := func(state swarm.UpdateState) func(*engine, *Pruner) {
		return func(e *engine, _ *Pruner) {
			manager(e)
			e.services = []swarm.Service{{UpdateStatus: &swarm.UpdateStatus{State: state}}}
		}
	}
	transfers := func(n int, err error) func(*engine, *Pruner) {
		return func(_ *engine, p *Pruner) { p.Transfers = func(context.Context) (int, error) { return n, err } }
	}
	none := func(*engine, *Pruner) {}
	tests := []struct {
		name               string
		set                func(*engine, *Pruner)
		deferred, critical bool
	}{
		{"nothing", none, false, false},
		{"a pull", event("image", "pull", time.Minute), true, false},
		{"a load", event("image", "load", time.Minute), true, false},
		{"an import", event("image", "import", time.Minute), true, false},
		{"a tag", event("image", "tag", time.Minute), true, false},
		{"a container is created", event("container", "create", time.Minute), true, false},
		{"a container is started", event("container", "start", time.Minute), true, false},
		{"a pull longer ago than quiet", event("image", "pull", 11*time.Minute), false, false},
		{"a health check", event("container", "health_status: healthy", time.Second), false, false},
		{"exec", event("container", "exec_start: /bin/true", time.Second), false, false},
		{"exec create", event("container", "exec_create: /bin/true", time.Second), false, false},
		{"a container dies", event("container", "die", time.Second), false, false},
		{"an image is deleted", event("image", "delete", time.Second), false, false},
		{"a start that the daemon has forgotten", func(e *engine, _ *Pruner) { e.runContainer("web", "f", time.Now().Add(-time.Minute)) }, true, false},
		{"a tag that the daemon has forgotten", func(e *engine, _ *Pruner) { e.tagTimes[id("f")] = time.Now().Add(-time.Minute) }, true, false},
		{"a pull that the watcher saw", func(_ *engine, p *Pruner) {
			_ = p.Uses.update(func(r *records) error {
				return r.setWatchState(watchState{Alive: time.Now(), Activity: Activity{time.Now().Add(-time.Minute), "image x: pull"}})
			})
		}, true, false},
		{"a service is updating", update(swarm.UpdateStateUpdating), true, true},
		{"a service rolls back", update(swarm.UpdateStateRollbackStarted), true, true},
		{"an update is paused", update(swarm.UpdateStatePaused), false, false},
		{"a task is preparing", task("running", swarm.TaskStatePreparing), true, true},
		{"a task is starting", task("running", swarm.TaskStateStarting), true, true},
		{"a task finds no node", task("running", swarm.TaskStatePending), false, false},
		{"a task that is to be removed", task("shutdown", swarm.TaskStatePreparing), false, false},
		{"the cache has transfers in flight", transfers(1, nil), true, false},
		{"the cache rests", transfers(0, nil), false, false},
		{"the cache does not answer", transfers(0, errors.New("connection refused")), true, false},
	}
	for _, test := range tests {
		for used, deferred := range map[int64]bool{900: test.deferred, 960: test.critical} {
			t.Run(fmt.Sprintf("%s, %d used", test.name, used), func(t *testing.T) {
				t.Parallel()
				e, c := newEngine(t, "1.41")
				orphans(e, 4)
				e.add("f", []string{"tagged:1"}, nil)
				e.used = used
				p := newPruner(t, e, c)
				test.set(e, p)
				r := mustRun(t, p, true)
				if (r.Decision == Deferred) != deferred || deferred == (len(e.left()) < 5) {
					t.Errorf("%s (%s), left %q", r.Decision, r.Reason, e.left())
				}
			})
		}
	}
}

// TestFailsClosed: whatever the engine does not answer, no image goes.
func TestFailsClosed(t *testing.T) {
	for _, request := range []string{"GET /info", "GET /images/json", "GET /images/" + id("a") + "/json", "GET /containers/json",
		"GET /containers/web/json", "GET /services", "GET /tasks", "GET /events"} {
		e, c := newEngine(t, "1.41")
		orphans(e, 3)
		e.runContainer("web", "b", time.Now().Add(-24*time.Hour))
		e.info.Swarm.ControlAvailable = true
		p := newPruner(t, e, c)
		e.fail[request] = 500
		r, err := p.Run(t.Context(), true)
		if err == nil || r.Decision != Failed || e.left() != "abc" {
			t.Errorf("%s fails: %s (%v), left %q", request, r.Decision, err, e.left())
		}
	}
}

func TestLockedSwarmFailsClosed(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 1)
	e.info.Swarm.LocalNodeState = swarm.LocalNodeStateLocked
	if r, err := newPruner(t, e, c).Run(t.Context(), true); err == nil || e.left() != "a" {
		t.Errorf("%s, left %q", r.Decision, e.left())
	}
}

func TestUnreadableKeepFileFailsClosed(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 1)
	p := newPruner(t, e, c)
	p.Policy.KeepFiles = []string{"/does/not/exist.yml"}
	if r, err := p.Run(t.Context(), true); err == nil || e.left() != "a" {
		t.Errorf("%s, left %q", r.Decision, e.left())
	}
}

// TestLockedRecordsDefer: when the records can't be read, everything stays for now.
func TestLockedRecordsDefer(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	p := newPruner(t, e, c)
	db, err := bbolt.Open(p.Uses.Path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	wantDecision(t, mustRun(t, p, true), Deferred, "locked")
	if e.left() != "abc" {
		t.Errorf("left %q", e.left())
	}
}

// TestNewcomers: what happens between plan and deletion is seen.
func TestNewcomers(t *testing.T) {
	tests := []struct {
		name string
		do   func(*engine)
		rule Rule
		left string
	}{
		{"a container", func(e *engine) { e.runContainer("new", "b", time.Now()) }, RuleChanged, "b"},
		{"an image mount", func(e *engine) { e.runContainer("new", "f", time.Now(), id("b")) }, RuleChanged, "b"},
		{"a tag", func(e *engine) { e.mu.Lock(); e.images[e.index(id("b"))].RepoTags = []string{"new:1"}; e.mu.Unlock() }, RuleChanged, "b"},
		{"a conflict", func(e *engine) { e.mu.Lock(); e.fail["DELETE /images/"+id("b")] = 409; e.mu.Unlock() }, RuleConflict, "b"},
		{"an error", func(e *engine) { e.mu.Lock(); e.fail["DELETE /images/"+id("b")] = 500; e.mu.Unlock() }, RuleFailed, "b"},
	}
	for _, test := range tests {
		e, c := newEngine(t, "1.51")
		orphans(e, 3)
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
		if rule != test.rule || e.left() != test.left {
			t.Errorf("%s: b was %q, left %q", test.name, rule, e.left())
		}
	}
}

// TestUpdateStopsARun: a deploy that starts between two deletions ends the run.
func TestUpdateStopsARun(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.info.Swarm.ControlAvailable = true
	orphans(e, 3)
	e.before = func(request string) {
		if strings.HasPrefix(request, "DELETE") {
			e.mu.Lock()
			e.tasks = []swarm.Task{{ID: "t", DesiredState: "running", Status: swarm.TaskStatus{State: swarm.TaskStatePreparing}}}
			e.mu.Unlock()
		}
	}
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Deferred, "preparing")
	if e.left() != "bc" {
		t.Errorf("left %q", e.left())
	}
}

// TestEveryReference: an image with names in two repositories goes name by name, digests
// last, and never by its ID.
func TestEveryReference(t *testing.T) {
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
	if e.left() != "b" {
		t.Errorf("left %q", e.left())
	}
}

// TestChainGoesInRounds: an image that another was built on goes after it, in one run.
func TestChainGoesInRounds(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.images = []image.Summary{{ID: id("a"), Size: 100}, {ID: id("b"), ParentID: id("a"), Size: 100}}
	wantDecision(t, mustRun(t, newPruner(t, e, c), true), Pruned, "")
	if dels := e.log("DELETE"); e.left() != "" || !strings.Contains(dels[0], id("b")) {
		t.Errorf("left %q after %v", e.left(), dels)
	}
}
