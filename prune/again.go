package prune

import (
	"context"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

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
	recent, err := pastEvents(ctx, p.Engine, d.planned, p.time(), client.Filters{}.Add("type", string(events.ImageEventType)))
	if err != nil {
		return "", err
	}
	only := newCatalog([]Image{d.Image})
	for _, m := range recent {
		if m.Type != events.ImageEventType || imageRemoved[m.Action] {
			continue
		}
		if len(only.find(m.Actor.ID)) > 0 || len(only.find(m.Actor.Attributes["name"])) > 0 {
			return "since the plan was made there was " + describe(m), nil
		}
	}
	return "", nil
}
