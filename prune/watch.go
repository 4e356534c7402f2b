package prune

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

const (
	// flushEvery is how often uses are written. A crash of the watcher loses at most so much,
	// and only what the daemon doesn't remember at the next start.
	flushEvery = time.Second
	// heartbeat is how often the watcher writes that it is alive. Each time costs one fsync.
	heartbeat = 30 * time.Second
	// reconnectAfter is the pause before the watcher connects to the daemon again.
	reconnectAfter = time.Second
)

// Watcher records uses of images from the daemon's events. Set the fields before Run; a
// Watcher is for one goroutine.
type Watcher struct {
	Engine Engine
	Uses   Uses
	// Logger gets lines about missing events, lost connections and locked records; nil: no log.
	Logger *slog.Logger
	// Ready, if not nil, is called each time that recording begins: at the start, and after
	// each lost connection.
	Ready func()
}

// eventMark identifies an event.
type eventMark struct {
	Nano   int64         `json:"nano"`
	Type   events.Type   `json:"type"`
	Action events.Action `json:"action"`
	Actor  string        `json:"actor"`
}

func markOf(m events.Message) eventMark {
	return eventMark{eventTime(m).UnixNano(), m.Type, m.Action, m.Actor.ID}
}

// Run records until ctx is done, and then returns nil. After a lost connection it connects
// again, as often as it takes. If the daemon then still remembers the last recorded event,
// it also remembers all that came after it, and these events are recorded. If it doesn't,
// every image counts as used.
//
// Errors: [ErrNewerFormat]. All other errors are logged, and Run tries again.
func (w *Watcher) Run(ctx context.Context) error {
	for {
		err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNewerFormat) {
			return err
		}
		w.log().Warn("watching the daemon's events was interrupted; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reconnectAfter):
		}
	}
}

// session records during one connection to the daemon. It returns why that ended.
func (w *Watcher) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	engine := boundedEngine{w.Engine, defaultLimits}
	b := batch{engine: engine, restarts: newRestarts(), images: map[string][]string{}, used: map[string]time.Time{}, bases: map[string]bool{}, named: map[string][]namedImage{}}
	now, since := time.Now(), time.Now()
	mark, err := w.Uses.mark(now)
	if err != nil {
		return err
	}
	err = w.Uses.update(func(r *records) (err error) {
		w.warnOf(r.damage)
		if err := r.settle(mark); err != nil {
			return err
		}
		b.state, err = r.watchState()
		return err
	})
	if err != nil {
		return err
	}
	if last := b.state.Event; last.Nano != 0 {
		since = time.Unix(0, last.Nano)
	}
	// Connect before taking the snapshot: what happens in between is then in the stream.
	stream := engine.Events(ctx, client.EventsListOptions{Since: timestamp(since)})
	queue := buffer(ctx, stream)
	if err := b.start(ctx, since, now); err != nil {
		return err
	}
	if err := w.flush(&b); err != nil {
		return err
	}
	if w.Ready != nil {
		w.Ready()
	}
	err = w.record(ctx, queue, &b)
	if err := w.flush(&b); err != nil {
		w.log().Warn("uses of images are not recorded yet", "error", err)
	}
	return err
}

// record applies events as they come and writes them now and then. While the records are
// locked, the batch grows.
func (w *Watcher) record(ctx context.Context, queue <-chan []item, b *batch) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case items := <-queue:
			for _, it := range items {
				if it.err != nil {
					return it.err
				}
				if err := b.apply(ctx, it.event); err != nil {
					return err
				}
			}
		case <-tick.C:
			if !b.dirty() && time.Since(b.state.Alive) < heartbeat {
				continue
			}
			err := w.flush(b)
			if errors.Is(err, ErrNewerFormat) {
				return err
			}
			if err != nil {
				w.log().Warn("uses of images are not recorded yet", "error", err)
			}
		}
	}
}

// flush writes the batch. If that fails, the batch stays as it is for the next attempt.
func (w *Watcher) flush(b *batch) error {
	state := b.state
	state.Alive = time.Now()
	mark, err := w.Uses.mark(state.Alive)
	if err != nil {
		return err
	}
	err = w.Uses.update(func(r *records) error {
		w.warnOf(r.damage)
		if err := r.checkClock(mark); err != nil {
			return err
		}
		if !b.gap.IsZero() {
			if err := r.addUseOfAll(b.gap); err != nil {
				return err
			}
		}
		for id, at := range b.used {
			if err := r.addUse(id, at); err != nil {
				return err
			}
		}
		for id := range b.bases {
			if err := r.addBase(id); err != nil {
				return err
			}
		}
		if err := b.noteNames(r); err != nil {
			return err
		}
		return r.setWatchState(state)
	})
	if err != nil {
		return err
	}
	if !b.gap.IsZero() {
		w.log().Info("events of the daemon were missed: every image counts as used", "until", b.gap)
	}
	b.state, b.gap, b.saved = state, time.Time{}, state.Event
	clear(b.used)
	clear(b.bases)
	b.all = nil
	clear(b.named)
	return nil
}

// warnOf says that the records were damaged, if they were.
func (w *Watcher) warnOf(damage error) {
	if damage != nil {
		w.log().Warn("the last-use records were damaged: every image counts as used now", "set_aside", w.Uses.Path+".bad", "error", damage)
	}
}

func (w *Watcher) log() *slog.Logger {
	if w.Logger != nil {
		return w.Logger
	}
	return slog.New(slog.DiscardHandler)
}

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

// item is an event, or the error that ended the stream.
type item struct {
	event events.Message
	err   error
}

var errStreamEnded = errors.New("the daemon ended the event stream")

// buffer reads the stream at once, whatever happens to the events after that: if a client is a
// tenth of a second late, the daemon drops events for it and doesn't say so. Each receive from
// the channel returns all that came since the last one.
func buffer(ctx context.Context, stream client.EventsResult) <-chan []item {
	out := make(chan []item)
	go func() {
		var pending []item
		in, end := stream.Messages, stream.Err
		for {
			var send chan []item
			if len(pending) > 0 {
				send = out
			}
			select {
			case <-ctx.Done():
				return
			case m := <-in:
				pending = append(pending, item{event: m})
			case err := <-end:
				if err == nil {
					err = errStreamEnded
				}
				pending = append(pending, item{err: err})
				in, end = nil, nil
			case send <- pending:
				pending = nil
			}
		}
	}()
	return out
}
