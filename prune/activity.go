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

// deploying are the events that only a deploy, a build or a person makes. Health checks
// and exec are not among them: they never end.
var deploying = map[events.Type]map[events.Action]bool{
	events.ImageEventType: {
		events.ActionPull: true, events.ActionLoad: true, events.ActionImport: true, events.ActionTag: true,
	},
	events.ContainerEventType: {
		events.ActionCreate: true, events.ActionStart: true,
	},
}

// eventTime is when the daemon sent the event.
func eventTime(m events.Message) time.Time {
	if m.TimeNano != 0 {
		return time.Unix(0, m.TimeNano)
	}
	return time.Unix(m.Time, 0)
}

// replay returns what the daemon still remembers (its last 256 events) from since on.
func replay(ctx context.Context, e Engine, since, until time.Time, filters client.Filters) ([]events.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := e.Events(ctx, client.EventsListOptions{Since: stamp(since), Until: stamp(until), Filters: filters})
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

// stamp is a time as the Engine API takes it, to the nanosecond.
func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// latestEvent is the last activity that the daemon remembers since then.
func latestEvent(ctx context.Context, e Engine, since, now time.Time) (Activity, error) {
	filters := client.Filters{}
	for kind, actions := range deploying {
		filters.Add("type", string(kind))
		for action := range actions {
			filters.Add("event", string(action))
		}
	}
	all, err := replay(ctx, e, since, now, filters)
	var last Activity
	for _, m := range all {
		if at := eventTime(m); deploying[m.Type][m.Action] && at.After(last.At) {
			last = Activity{at, describe(m)}
		}
	}
	return last, err
}

func describe(m events.Message) string {
	name := m.Actor.Attributes["name"]
	if name == "" {
		name = m.Actor.ID
	}
	return fmt.Sprintf("%s %s: %s", m.Type, name, m.Action)
}

// busy returns why a deploy may be under way, for people, or "". Above the critical
// watermark only what swarm says counts.
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
	last, err := latestEvent(ctx, p.Engine, now.Add(-p.Policy.Quiet), now)
	if err != nil {
		return "", err
	}
	// The daemon forgets: a health check every second flushes its 256 events in a minute
	// and a half. So what the watcher saw counts, and what containers and images show.
	for _, other := range []Activity{seen, s.Latest} {
		if other.At.After(last.At) {
			last = other
		}
	}
	if age := now.Sub(last.At); !last.At.IsZero() && age < p.Policy.Quiet {
		return fmt.Sprintf("%s %s, and quiet is %v", last.What, ago(age), p.Policy.Quiet), nil
	}
	return "", nil
}
