package prune

import (
	"context"
	"errors"
	"log/slog"
	"time"

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
