package prune

import (
	"context"
	"fmt"
	"strings"

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
	tasks, err := e.TaskList(ctx, client.TaskListOptions{})
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	for _, task := range tasks.Items {
		if starting(task) {
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
