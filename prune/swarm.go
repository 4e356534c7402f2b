package prune

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// addSwarm notes which images the services use, and whether a deploy is going on.
func (s *Snapshot) addSwarm(ctx context.Context, e Engine) error {
	services, err := e.ServiceList(ctx, client.ServiceListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, service := range services.Items {
		name := service.Spec.Name
		s.addSpec(name, UseService, &service.Spec)
		s.addSpec(name, UseRollback, service.PreviousSpec)
		if u := service.UpdateStatus; u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted) {
			s.Busy = append(s.Busy, fmt.Sprintf("service %s: %s", name, strings.ReplaceAll(string(u.State), "_", " ")))
		}
	}
	changed := map[string]time.Time{}
	for _, service := range services.Items {
		changed[service.ID] = service.UpdatedAt
	}
	tasks, err := e.TaskList(ctx, client.TaskListOptions{})
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	failed := map[string]bool{}
	for _, task := range tasks.Items {
		if ended(task) {
			failed[placeOf(task)] = true
		}
	}
	for _, task := range tasks.Items {
		again := failed[placeOf(task)] && time.Since(changed[task.ServiceID]) > deployTakes
		if starting(task) && !again {
			s.Busy = append(s.Busy, fmt.Sprintf("task %s is %s", task.ID, task.Status.State))
		}
	}
	return nil
}

func (s *Snapshot) addSpec(name string, use Use, spec *swarm.ServiceSpec) {
	if spec == nil || spec.TaskTemplate.ContainerSpec == nil {
		return
	}
	c := spec.TaskTemplate.ContainerSpec
	for _, ref := range append([]string{c.Image}, mountedImages(c.Mounts)...) {
		s.Users = append(s.Users, User{use, name, ref})
	}
}

// starting reports whether a node is preparing or starting the task. A task that waits for a
// node (pending) doesn't count, because it may wait for ever.
func starting(task swarm.Task) bool {
	switch task.DesiredState {
	case swarm.TaskStateShutdown, swarm.TaskStateRemove:
		return false
	}
	switch task.Status.State {
	case swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady, swarm.TaskStateStarting:
		return true
	}
	return false
}

// deployTakes is how long after a change of its service a task still belongs to a deploy if an
// earlier one has ended by itself: services that need one another fail until all are there.
const deployTakes = 30 * time.Minute

// ended reports whether the task has ended by itself, and not because swarm has stopped it.
func ended(task swarm.Task) bool {
	switch task.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete:
		return true
	}
	return false
}

// placeOf identifies what a task is to run, and where: the next one there takes its place.
func placeOf(task swarm.Task) string {
	place := fmt.Sprint(task.ServiceID, " ", task.Slot)
	if task.Slot == 0 { // of a global service
		place += task.NodeID
	}
	if c := task.Spec.ContainerSpec; c != nil {
		place += " " + c.Image
	}
	return place
}

// mountedImages returns the images among the mounts.
func mountedImages(mounts []mount.Mount) []string {
	var refs []string
	for _, m := range mounts {
		if m.Type == mount.TypeImage {
			refs = append(refs, m.Source)
		}
	}
	return refs
}
