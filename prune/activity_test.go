package prune

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

// Each sign of a deploy defers a run. Above the critical watermark, only what swarm reports does.
func TestActivityDefers(t *testing.T) {
	event := func(kind events.Type, action events.Action, ago time.Duration) func(*fakeEngine, *Pruner) {
		return func(e *fakeEngine, _ *Pruner) {
			e.send(events.Message{Type: kind, Action: action, Actor: events.Actor{ID: "x"}, TimeNano: time.Now().Add(-ago).UnixNano()})
		}
	}
	manager := func(e *fakeEngine) { e.info.Swarm.ControlAvailable = true }
	task := func(desired, state swarm.TaskState) func(*fakeEngine, *Pruner) {
		return func(e *fakeEngine, _ *Pruner) {
			manager(e)
			e.tasks = []swarm.Task{{ID: "t", DesiredState: desired, Status: swarm.TaskStatus{State: state}}}
		}
	}
	update := func(state swarm.UpdateState) func(*fakeEngine, *Pruner) {
		return func(e *fakeEngine, _ *Pruner) {
			manager(e)
			e.services = []swarm.Service{{UpdateStatus: &swarm.UpdateStatus{State: state}}}
		}
	}
	transfers := func(n int, err error) func(*fakeEngine, *Pruner) {
		return func(_ *fakeEngine, p *Pruner) { p.Transfers = func(context.Context) (int, error) { return n, err } }
	}
	none := func(*fakeEngine, *Pruner) {}
	tests := []struct {
		name               string
		set                func(*fakeEngine, *Pruner)
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
		{"a start that the daemon has forgotten", func(e *fakeEngine, _ *Pruner) { e.runContainer("web", "f", time.Now().Add(-time.Minute)) }, true, false},
		{"a tag that the daemon has forgotten", func(e *fakeEngine, _ *Pruner) { e.tagTimes[id("f")] = time.Now().Add(-time.Minute) }, true, false},
		{"a pull that the watcher saw", func(_ *fakeEngine, p *Pruner) {
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
				addOrphans(e, 4)
				e.add("f", []string{"tagged:1"}, nil)
				e.used = used
				p := newPruner(t, e, c)
				test.set(e, p)
				r := mustRun(t, p, true)
				if (r.Decision == Deferred) != deferred || deferred == (len(e.imagesLeft()) < 5) {
					t.Errorf("%s (%s), left %q", r.Decision, r.Reason, e.imagesLeft())
				}
			})
		}
	}
}
