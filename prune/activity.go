package prune

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// deployEvents are the events that show that a deploy, a build or a person is at work.
// Health checks and exec are not among them, because they never stop.
var deployEvents = map[events.Type]map[events.Action]bool{
	events.ImageEventType: {
		events.ActionPull: true, events.ActionLoad: true, events.ActionImport: true, events.ActionTag: true,
	},
	events.ContainerEventType: {
		events.ActionCreate: true, events.ActionStart: true,
	},
}

// eventTime returns when the daemon sent the event.
func eventTime(m events.Message) time.Time {
	if m.TimeNano != 0 {
		return time.Unix(0, m.TimeNano)
	}
	return time.Unix(m.Time, 0)
}

// rememberedEvents is how many events the daemon remembers.
const rememberedEvents = 256

// pastEvents returns those of the events between since and until that the daemon still
// remembers, the last rememberedEvents.
func pastEvents(ctx context.Context, e Engine, since, until time.Time, filters client.Filters) ([]events.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := e.Events(ctx, client.EventsListOptions{Since: timestamp(since), Until: timestamp(until), Filters: filters})
	var all []events.Message
	for {
		select {
		case m := <-stream.Messages:
			all = append(all, m)
		case err := <-stream.Err:
			if err == nil || errors.Is(err, io.EOF) {
				return all, nil
			}
			return nil, fmt.Errorf("read the engine's events: %w", err)
		}
	}
}

// timestamp formats a time for the Engine API, with nanoseconds.
func timestamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// latestEvent returns the latest activity since then that the daemon remembers.
func latestEvent(ctx context.Context, e Engine, since, now time.Time, r restarts) (Activity, error) {
	filters := client.Filters{}
	for kind, actions := range deployEvents {
		filters.Add("type", string(kind))
		for action := range actions {
			filters.Add("event", string(action))
		}
	}
	filters.Add("event", string(events.ActionDie))
	all, err := pastEvents(ctx, e, since, now, filters)
	var last Activity
	for _, m := range all {
		if at := eventTime(m); r.isDeploy(m) && at.After(last.At) {
			last = Activity{at, describe(m)}
		}
	}
	return last, err
}

// describe puts an event into words.
func describe(m events.Message) string {
	name := m.Actor.Attributes["name"]
	if name == "" {
		name = m.Actor.ID
	}
	return fmt.Sprintf("%s %s: %s", m.Type, name, m.Action)
}

// busy explains to people why a deploy may be going on; "" if none is. Above the critical
// watermark, only what swarm reports counts.
func (p *Pruner) busy(ctx context.Context, s Snapshot, seen Activity, critical bool) (string, error) {
	if len(s.Busy) > 0 {
		return strings.Join(s.Busy, ", "), nil
	}
	if critical {
		return "", nil
	}
	if p.Transfers != nil {
		n, err := p.Transfers(ctx)
		if err != nil {
			return fmt.Sprintf("the cache can't be asked for transfers in flight: %v", err), nil
		}
		if n > 0 {
			return fmt.Sprintf("the cache has %d transfers in flight", n), nil
		}
	}
	if p.Policy.Quiet == 0 {
		return "", nil
	}
	now := p.time()
	last, err := latestEvent(ctx, p.Engine, now.Add(-p.Policy.Quiet), now, s.restarts)
	if err != nil {
		return "", err
	}
	// The daemon remembers 256 events, and a health check every second fills that in a minute
	// and a half. So the latest activity that the watcher saw, or that containers and images show, counts too.
	if seen.At.After(last.At) {
		last = seen
	}
	if age := now.Sub(last.At); !last.At.IsZero() && age < p.Policy.Quiet {
		return fmt.Sprintf("%s %s, and quiet is %v", last.What, ago(age), p.Policy.Quiet), nil
	}
	return "", nil
}
