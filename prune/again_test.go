package prune

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
)

// TestImageThatIsUsedDuringTheRunStays: one without a tag that is pulled again by its digest has no
// new name. The watcher's record shows it, and before that the daemon's event.
func TestImageThatIsUsedDuringTheRunStays(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, e *fakeEngine, p *Pruner){
		"the record": func(t *testing.T, _ *fakeEngine, p *Pruner) {
			if err := p.Uses.update(func(r *records) error { return r.addUse(id("b"), time.Now()) }); err != nil {
				t.Error(err)
			}
		},
		"the event": func(_ *testing.T, e *fakeEngine, _ *Pruner) {
			e.send(events.Message{Type: events.ImageEventType, Action: events.ActionPull, Actor: events.Actor{ID: digestRef("x", "b"), Attributes: map[string]string{"name": "x"}}})
		},
		"an event with its ID": func(_ *testing.T, e *fakeEngine, _ *Pruner) {
			e.send(events.Message{Type: events.ImageEventType, Action: events.ActionSave, Actor: events.Actor{ID: id("b")}})
		},
	} {
		e, c := newEngine(t, "1.41")
		for _, digit := range []string{"a", "b", "c", "d"} {
			e.add(digit, nil, []string{digestRef("x", digit)})
		}
		p := newPruner(t, e, c)
		e.before = func(request string) {
			if strings.HasPrefix(request, "DELETE") && strings.Contains(request, id("a")) {
				use(t, e, p)
			}
		}
		r := mustRun(t, p, true)
		wantDecision(t, r, Pruned, "")
		if e.imagesLeft() != "bd" {
			t.Errorf("%s: left %q, want bd: b was used", name, e.imagesLeft())
		}
		for _, d := range r.Images {
			if d.Image.ID == id("b") && (d.Rule != RuleChanged || !strings.Contains(d.Why, "since the plan")) {
				t.Errorf("%s: b is %s by %s: %s", name, d.Action, d.Rule, d.Why)
			}
		}
	}
}

// TestForgottenEventsOfTheRunKeepImages: the daemon remembers 256 events, and health checks are
// events too. A pull among those that it has forgotten is known to a watcher only.
func TestForgottenEventsOfTheRunKeepImages(t *testing.T) {
	for name, test := range map[string]struct {
		events  int // at each deletion
		watched bool
		left    string
	}{
		"more than it remembers":                 {rememberedEvents, false, "bcd"},
		"more, and a watcher has recorded them":  {rememberedEvents, true, "bd"},
		"more in the run, and fewer at one time": {rememberedEvents - 10, false, "bd"},
	} {
		e, c := newEngine(t, "1.41")
		for _, digit := range []string{"a", "b", "c", "d"} {
			e.add(digit, nil, []string{digestRef("x", digit)})
		}
		p := newPruner(t, e, c)
		if test.watched {
			err := p.Uses.update(func(r *records) error { return r.setWatchState(watchState{Alive: time.Now()}) })
			if err != nil {
				t.Fatal(err)
			}
		}
		e.before = func(request string) {
			if !strings.HasPrefix(request, "DELETE") {
				return
			}
			e.send(events.Message{Type: events.ImageEventType, Action: events.ActionPull, Actor: events.Actor{ID: digestRef("x", "b")}})
			if test.watched {
				if err := p.Uses.update(func(r *records) error { return r.addUse(id("b"), time.Now()) }); err != nil {
					t.Error(err)
				}
			}
			for range test.events {
				e.send(message("container", "exec_start: /bin/true", "web"))
			}
		}
		mustRun(t, p, true)
		if e.imagesLeft() != test.left {
			t.Errorf("%s: left %q, want %s: b was pulled again", name, e.imagesLeft(), test.left)
		}
	}
}
