package prune

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
)

// restarts tells a deploy from containers that end and are started again, for ever if nobody
// looks: neither a restart policy nor swarm is somebody at work.
type restarts struct {
	// ended has the services whose task has ended on this host, with its image. A deploy of
	// another image doesn't count as one of them.
	ended map[string]bool
	// policy has the IDs of containers that their restart policy has started again.
	policy map[string]bool
}

func newRestarts() restarts { return restarts{map[string]bool{}, map[string]bool{}} }

// serviceLabel is the label of a container that swarm has made.
const serviceLabel = "com.docker.swarm.service.id"

// addContainer notes what the container shows.
func (r restarts) addContainer(c container.InspectResponse) {
	if c.RestartCount > 0 { // 0 again after "docker start"
		r.policy[c.ID] = true
	} else {
		delete(r.policy, c.ID)
	}
	if c.Config == nil || c.State == nil {
		return
	}
	if service := c.Config.Labels[serviceLabel]; service != "" && (c.State.Status == container.StateExited || c.State.Status == container.StateDead) {
		r.ended[service+" "+c.Config.Image] = true
	}
}

// isRestart reports whether a container's creation or start is one of those.
func (r restarts) isRestart(id, service, image string) bool {
	return r.policy[id] || service != "" && r.ended[service+" "+image]
}

// isDeploy reports whether the event shows that somebody is at work. It has to be called for
// each event, in their order.
func (r restarts) isDeploy(m events.Message) bool {
	if m.Type != events.ContainerEventType {
		return deployEvents[m.Type][m.Action]
	}
	service, image := m.Actor.Attributes[serviceLabel], m.Actor.Attributes["image"]
	if m.Action == events.ActionDie && service != "" {
		r.ended[service+" "+image] = true
	}
	return deployEvents[m.Type][m.Action] && !r.isRestart(m.Actor.ID, service, image)
}
