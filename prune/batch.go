package prune

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// batch is what was seen and is not written yet.
type batch struct {
	engine   Engine
	state    watchState
	saved    eventMark            // state.Event as it was last written
	images   map[string][]string  // container ID → IDs of the images that it runs or mounts
	used     map[string]time.Time // image ID → last use
	bases    map[string]bool      // IDs of images that a build used
	all      []Image              // the images at the time began; nil: their names are recorded
	began    time.Time
	named    map[string][]namedImage // image ID → the image, each time that it may have got a name since then
	restarts restarts
	gap      time.Time // events before this time were missed; zero: none were
}

// dirty reports whether there is something to write.
func (b *batch) dirty() bool { return len(b.used) > 0 || !b.gap.IsZero() || b.saved != b.state.Event }

// start finds out which container runs which image, and whether events were missed.
func (b *batch) start(ctx context.Context, since, now time.Time) error {
	b.saved = b.state.Event
	missing := b.state.Event.Nano == 0
	if !missing {
		known, err := pastEvents(ctx, b.engine, since, now, nil)
		if err != nil {
			return err
		}
		missing = !slices.ContainsFunc(known, func(m events.Message) bool { return markOf(m) == b.state.Event })
	}
	s, err := TakeSnapshot(ctx, b.engine)
	if err != nil {
		return err
	}
	b.all, b.began = s.Images, now
	c := newCatalog(s.Images)
	for _, u := range s.Users {
		for _, i := range c.find(u.Ref) {
			b.addUse(s.Images[i].ID, now)
		}
	}
	if missing {
		b.gap = now
		for _, img := range s.Images {
			b.addUse(img.ID, now)
		}
	}
	list, err := b.engine.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, item := range list.Items {
		if _, err := b.imagesOf(ctx, item.ID, item.ImageID); err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) addUse(id string, at time.Time) {
	if at.After(b.used[id]) {
		b.used[id] = at
	}
}

// apply adds what an event says about images to the batch. An error is the Engine's. The
// event is then not recorded, and comes again with the next connection.
func (b *batch) apply(ctx context.Context, m events.Message) error {
	at := eventTime(m)
	var ids []string
	var err error
	switch {
	case m.Type == events.ContainerEventType && containerUse[m.Action]:
		if ids, err = b.imagesOf(ctx, m.Actor.ID, m.Actor.Attributes["image"]); err != nil {
			return err
		}
		if len(ids) == 0 { // the container was removed before it could be inspected
			b.gap = at
		}
		if m.Action == events.ActionCreate && strings.HasPrefix(m.Actor.Attributes["image"], "sha256:") {
			for _, id := range ids { // a build names its images by ID
				b.bases[id] = true
			}
		}
		if m.Action == events.ActionDestroy {
			delete(b.images, m.Actor.ID)
			delete(b.restarts.policy, m.Actor.ID)
		}
	case m.Type == events.ImageEventType && !imageRemoved[m.Action]:
		img, err := b.image(ctx, m.Actor.ID)
		if err != nil {
			return err
		}
		if img.ID != "" {
			ids = []string{img.ID}
			b.addNames(img, at)
		}
	}
	for _, id := range ids {
		b.addUse(id, at)
	}
	if m.Type == events.ContainerEventType && m.Action == events.ActionStart {
		if err := b.noteRestart(ctx, m.Actor.ID); err != nil {
			return err
		}
	}
	if b.restarts.isDeploy(m) && at.After(b.state.Activity.At) {
		b.state.Activity = Activity{at, describe(m)}
	}
	b.state.Event = markOf(m)
	return nil
}

// noteRestart finds out whether the restart policy has started the container.
func (b *batch) noteRestart(ctx context.Context, container string) error {
	details, err := b.engine.ContainerInspect(ctx, container, client.ContainerInspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect container %s: %w", container, err)
	}
	b.restarts.addContainer(details.Container)
	return nil
}

// containerUse are the container events after which the container uses its image, or before
// which it did.
var containerUse = map[events.Action]bool{
	events.ActionCreate: true, events.ActionStart: true, events.ActionRestart: true, events.ActionUnPause: true,
	events.ActionDie: true, events.ActionDestroy: true, events.ActionCommit: true,
}

// imageRemoved are the image events that are not uses.
var imageRemoved = map[events.Action]bool{
	events.ActionUnTag: true, events.ActionDelete: true, events.ActionPrune: true,
}

// imagesOf returns the IDs of the images that a container runs or mounts. If the container
// was removed, the result is what was seen of it before, or else what its image's name means.
func (b *batch) imagesOf(ctx context.Context, container, name string) ([]string, error) {
	if ids, ok := b.images[container]; ok {
		return ids, nil
	}
	details, err := b.engine.ContainerInspect(ctx, container, client.ContainerInspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return b.imageID(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", container, err)
	}
	ids := []string{details.Container.Image}
	if h := details.Container.HostConfig; h != nil {
		for _, ref := range mountedImages(h.Mounts) {
			mounted, err := b.imageID(ctx, ref)
			if err != nil {
				return nil, err
			}
			ids = append(ids, mounted...)
		}
	}
	b.images[container] = ids
	return ids, nil
}

// imageID returns the ID of the image that ref means, or nothing if there is none.
func (b *batch) imageID(ctx context.Context, ref string) ([]string, error) {
	img, err := b.image(ctx, ref)
	if err != nil || img.ID == "" {
		return nil, err
	}
	return []string{img.ID}, nil
}

// image returns the image that ref means, without its sizes and layers. Its ID is "" if there is
// none, or if it is damaged: prune keeps such an image, whenever it was used.
func (b *batch) image(ctx context.Context, ref string) (Image, error) {
	if ref == "" {
		return Image{}, nil
	}
	details, err := b.engine.ImageInspect(ctx, ref)
	if cerrdefs.IsNotFound(err) || cerrdefs.IsInvalidArgument(err) || cerrdefs.IsInternal(err) {
		return Image{}, nil
	}
	if err != nil {
		return Image{}, fmt.Errorf("inspect image %s: %w", ref, err)
	}
	img := Image{ID: details.ID, Tagged: details.Metadata.LastTagTime}
	img.Tags, img.Digests = names(details.RepoTags, details.RepoDigests)
	img.Built, _ = time.Parse(time.RFC3339Nano, details.Created) // zero if the image doesn't say
	return img, nil
}
