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

// lookAtSwarm notes what the services use and whether a deploy is under way.
func (s *Snapshot) lookAtSwarm(ctx context.Context, e Engine) error {
	services, err := e.ServiceList(ctx, client.ServiceListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, service := range services.Items {
		name := service.Spec.Name
		s.lookAtSpec(name, UseService, &service.Spec)
		s.lookAtSpec(name, UseRollback, service.PreviousSpec)
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

func (s *Snapshot) lookAtSpec(name string, use Use, spec *swarm.ServiceSpec) {
	if spec == nil || spec.TaskTemplate.ContainerSpec == nil {
		return
	}
	c := spec.TaskTemplate.ContainerSpec
	for _, ref := range append([]string{c.Image}, mountedImages(c.Mounts)...) {
		s.Users = append(s.Users, User{use, name, ref})
	}
}

// starting reports whether a node is getting task ready. A task that waits for a node
// (pending) may wait for ever and doesn't count.
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

func mountedImages(mounts []mount.Mount) []string {
	var refs []string
	for _, m := range mounts {
		if m.Type == mount.TypeImage {
			refs = append(refs, m.Source)
		}
	}
	return refs
}

// saw remembers the latest activity.
func (s *Snapshot) saw(at time.Time, what string) {
	if at.After(s.Latest.At) {
		s.Latest = Activity{at, what}
	}
}

// named drops the placeholders of images without a name (<none>:<none>).
func named(refs []string) []string {
	var out []string
	for _, ref := range refs {
		if !strings.HasPrefix(ref, "<none>") {
			out = append(out, ref)
		}
	}
	return out
}

// label is a short name of img for people.
func label(img Image) string {
	switch {
	case len(img.Tags) > 0:
		return img.Tags[0]
	case len(img.Digests) > 0:
		return img.Digests[0]
	default:
		return img.ID
	}
}

func containerName(names []string, id string) string {
	if len(names) > 0 {
		return strings.TrimPrefix(names[0], "/")
	}
	return id
}
