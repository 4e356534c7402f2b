package prune

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// recentEvents are the events of images since a plan was made.
type recentEvents struct {
	uses  []events.Message // those that are uses
	until time.Time        // how far they go; zero: nothing was asked
	lost  bool             // the daemon may have forgotten some, and no watcher has recorded them
}

// update asks for the events since the last time, or since the plan was made. The daemon remembers
// only the last 256 of all kinds, so asking once in the end wouldn't do.
func (r *recentEvents) update(ctx context.Context, e Engine, planned, now time.Time, watched bool) error {
	if r.until.IsZero() {
		r.until = planned
	}
	all, err := pastEvents(ctx, e, r.until, now, client.Filters{})
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Type == events.ImageEventType && !imageRemoved[m.Action] {
			r.uses = append(r.uses, m)
		}
	}
	r.until = now
	r.lost = r.lost || len(all) >= rememberedEvents && !watched
	return nil
}

// usedSince explains to people how the image was used since the plan was made; "" if it wasn't.
// An image without a tag that is pulled again by its digest has neither a new name nor a
// container: only the record of uses shows it, and the daemon's event until that is recorded.
func (p *Pruner) usedSince(ctx context.Context, d ImageDecision) (string, error) {
	record, known, err := p.Uses.get(d.Image.ID)
	if err != nil {
		return "", err
	}
	if !known || record.LastUsed.After(d.record.LastUsed) {
		return "since the plan was made it was used", nil
	}
	if err := p.recent.update(ctx, p.Engine, d.planned, p.time(), p.watched); err != nil {
		return "", err
	}
	only := newCatalog([]Image{d.Image})
	for _, m := range p.recent.uses {
		if len(only.find(m.Actor.ID)) > 0 || len(only.find(m.Actor.Attributes["name"])) > 0 {
			return "since the plan was made there was " + describe(m), nil
		}
	}
	if p.recent.lost {
		return "since the plan was made there were more events than the engine remembers, and no watcher has recorded them", nil
	}
	return "", nil
}
