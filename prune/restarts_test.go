package prune

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

// event is one of a container, with the labels of a swarm task if service isn't empty.
func containerEvent(action events.Action, id, service, image string) events.Message {
	m := events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: id, Attributes: map[string]string{"name": id, "image": image}}}
	if service != "" {
		m.Actor.Attributes[serviceLabel] = service
	}
	return m
}

// TestCrashLoopsAreNoDeploy: a container that its restart policy starts again and again, and a
// service whose tasks fail, don't keep prune waiting.
func TestCrashLoopsAreNoDeploy(t *testing.T) {
	long, moment := time.Now().Add(-24*time.Hour), time.Now().Add(-time.Minute)
	task := func(id string, state swarm.TaskState, image string) swarm.Task {
		s := swarm.Task{ID: id, ServiceID: "s", Slot: 1, DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: state}}
		s.Spec.ContainerSpec = &swarm.ContainerSpec{Image: image}
		return s
	}
	service := func(e *fakeEngine, changed time.Time, tasks ...swarm.Task) {
		e.info.Swarm.ControlAvailable = true
		e.services = []swarm.Service{{ID: "s", Meta: swarm.Meta{UpdatedAt: changed}}}
		e.tasks = tasks
	}
	for _, test := range []struct {
		name   string
		do     func(e *fakeEngine)
		defers string // part of the reason; "" if it doesn't
	}{
		{"a container is started by a person", func(e *fakeEngine) {
			e.runContainer("c", "b", moment)
			e.containers[0].Created = long.Format(time.RFC3339Nano)
			e.send(containerEvent(events.ActionStart, "c", "", id("b")))
		}, "container c"},
		{"a container is started by its restart policy", func(e *fakeEngine) {
			e.runContainer("c", "b", moment)
			e.containers[0].Created, e.containers[0].RestartCount = long.Format(time.RFC3339Nano), 7
			e.send(containerEvent(events.ActionDie, "c", "", id("b")))
			e.send(containerEvent(events.ActionStart, "c", "", id("b")))
		}, ""},
		{"a task is started", func(e *fakeEngine) { service(e, long, task("t1", swarm.TaskStateStarting, "x:1")) }, "task t1"},
		{"a task is started again, and again", func(e *fakeEngine) {
			service(e, long, task("t1", swarm.TaskStateFailed, "x:1"), task("t2", swarm.TaskStateStarting, "x:1"))
		}, ""},
		{"a task is rejected, and another is prepared", func(e *fakeEngine) {
			service(e, long, task("t1", swarm.TaskStateRejected, "x:1"), task("t2", swarm.TaskStatePreparing, "x:1"))
		}, ""},
		{"a task ends well, and another is started", func(e *fakeEngine) {
			service(e, long, task("t1", swarm.TaskStateComplete, "x:1"), task("t2", swarm.TaskStateReady, "x:1"))
		}, ""},
		{"a task fails at first in a deploy", func(e *fakeEngine) {
			service(e, moment, task("t1", swarm.TaskStateFailed, "x:1"), task("t2", swarm.TaskStateStarting, "x:1"))
		}, "task t2"},
		{"a task failed, and now it has a new image", func(e *fakeEngine) {
			service(e, long, task("t1", swarm.TaskStateFailed, "x:1"), task("t2", swarm.TaskStateStarting, "x:2"))
		}, "task t2"},
		{"another place of the service is started for the first time", func(e *fakeEngine) {
			other := task("t2", swarm.TaskStateStarting, "x:1")
			other.Slot = 2
			service(e, long, task("t1", swarm.TaskStateFailed, "x:1"), other)
		}, "task t2"},
		{"containers of a failing service come and go", func(e *fakeEngine) {
			for _, c := range []string{"c1", "c2"} {
				e.runContainer(c, "b", moment)
			}
			for i := range e.containers {
				e.containers[i].Config.Labels = map[string]string{serviceLabel: "s"}
			}
			e.containers[0].State.Status = container.StateExited
			e.send(containerEvent(events.ActionDie, "c0", "s", id("b")))
			e.send(containerEvent(events.ActionCreate, "c1", "s", id("b")))
			e.send(containerEvent(events.ActionStart, "c1", "s", id("b")))
		}, ""},
		{"containers of a failing service get another image", func(e *fakeEngine) {
			e.send(containerEvent(events.ActionDie, "c0", "s", id("b")))
			e.send(containerEvent(events.ActionCreate, "c1", "s", id("c")))
		}, "container c1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, c := newEngine(t, "1.41")
			addOrphans(e, 3)
			test.do(e)
			r := mustRun(t, newPruner(t, e, c), false)
			if deferred := r.Decision == Deferred; deferred != (test.defers != "") || !strings.Contains(r.Reason, test.defers) {
				t.Errorf("%s: %s; want a reason with %q", r.Decision, r.Reason, test.defers)
			}
		})
	}
}

// TestWatcherDoesntRecordRestartsAsActivity, or a crash loop would keep prune waiting for as long as
// it lasts.
func TestWatcherDoesntRecordRestartsAsActivity(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.add("b", nil, nil)
	e.runContainer("looping", "b", time.Now())
	e.containers[0].RestartCount = 3
	e.runContainer("fine", "b", time.Now())
	b := batch{engine: c, restarts: newRestarts(), images: map[string][]string{}, used: map[string]time.Time{}}
	for i, m := range []events.Message{
		containerEvent(events.ActionStart, "looping", "", ""),
		containerEvent(events.ActionDie, "task1", "s", "x:1"),
		containerEvent(events.ActionCreate, "task2", "s", "x:1"),
		containerEvent(events.ActionStart, "task2", "s", "x:1"),
	} {
		m.TimeNano = time.Now().UnixNano()
		if err := b.apply(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if b.state.Activity.What != "" {
			t.Errorf("event %d is an activity: %s", i, b.state.Activity.What)
		}
	}
	if err := b.apply(t.Context(), containerEvent(events.ActionStart, "fine", "", "")); err != nil || b.state.Activity.What == "" {
		t.Errorf("a start is no activity (%v)", err)
	}
}
