package prune

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"go.etcd.io/bbolt"
)

// When a newer program has taken over the records, a watcher writes nothing more into them.
func TestWatcherEndsWhenRecordsBecomeNewer(t *testing.T) {
	e, c := newEngine(t, "1.51")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	addOrphans(e, 1)
	ready, done := make(chan bool, 1), make(chan error, 1)
	w := &Watcher{Engine: c, Uses: uses, Ready: func() { ready <- true }}
	go func() { done <- w.Run(t.Context()) }()
	<-ready
	setVersion(t, uses, "2")
	e.send(message("image", "tag", id("a")))
	if err := <-done; !errors.Is(err, ErrNewerFormat) {
		t.Errorf("the watcher ended with %v", err)
	}
}

// watch starts a watcher, and returns when it records. stop ends it.
func watch(t *testing.T, c *client.Client, uses Uses) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan bool, 10), make(chan error, 1)
	w := &Watcher{Engine: c, Uses: uses, Ready: func() { ready <- true }}
	go func() { done <- w.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the watcher ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the watcher is not ready")
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the watcher ended with %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// setRecords says that no image was used for a month, and that the watcher saw the last event.
func setRecords(t *testing.T, e *fakeEngine, uses Uses) time.Time {
	t.Helper()
	ago := time.Now().Add(-30 * 24 * time.Hour).Round(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	err := uses.update(func(r *records) error {
		for _, img := range e.images {
			if err := r.put(img.ID, Record{ago, ago}); err != nil {
				return err
			}
		}
		var state watchState
		if n := len(e.remembered); n > 0 {
			state = watchState{Alive: time.Now(), Event: markOf(e.remembered[n-1])}
		}
		return r.setWatchState(state)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ago
}

func message(kind events.Type, action events.Action, id string) events.Message {
	return events.Message{Type: kind, Action: action, Actor: events.Actor{ID: id}}
}

// Events of containers and images are uses of the image itself, not of what its name means later.
// Health checks and deletions are no uses.
func TestWatcherRecordsUses(t *testing.T) {
	e, c := newEngine(t, "1.51")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	addOrphans(e, 5)
	e.add("f", []string{"redis:7"}, nil)
	e.send(message("container", "die", "before"))
	e.runContainer("web", "a", time.Now(), id("e"))
	ago := setRecords(t, e, uses)
	e.mu.Lock()
	web := e.containers
	e.containers = nil
	e.mu.Unlock()
	stop := watch(t, c, uses)
	e.mu.Lock()
	e.containers = web
	e.mu.Unlock()

	began := time.Now()
	e.send(message("container", "start", "web"))
	e.send(message("container", "exec_start: /bin/true", "web"))
	e.send(message("image", "pull", "redis:7"))
	e.send(message("image", "tag", id("b")))
	e.send(message("image", "delete", id("c")))
	e.send(message("container", "health_status: healthy", "web"))
	e.send(events.Message{Type: "container", Action: "destroy", Actor: events.Actor{ID: "removed", Attributes: map[string]string{"image": id("d")}}})
	last := message("network", "connect", "last")
	e.send(last)
	waitFor(t, uses, func(_ map[string]Record, s watchState) bool { return s.Event.Actor == "last" })
	stop()

	all, state := allRecords(t, uses)
	for digit, used := range map[string]bool{"a": true, "b": true, "c": false, "d": true, "e": true, "f": true} {
		rec := all[id(digit)]
		if got := !rec.LastUsed.Before(began); got != used {
			t.Errorf("image %s: used %v, want %v", digit, rec.LastUsed, used)
		}
		if !rec.FirstSeen.Equal(ago) {
			t.Errorf("image %s: first seen moved to %v", digit, rec.FirstSeen)
		}
	}
	if state.Activity.What == "" || state.Alive.Before(began) {
		t.Errorf("watcher's state %+v", state)
	}
}

func waitFor(t *testing.T, uses Uses, ok func(map[string]Record, watchState) bool) {
	t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(50 * time.Millisecond) {
		if all, state := allRecords(t, uses); ok(all, state) {
			return
		}
	}
	t.Fatal("the watcher never recorded it")
}

// The daemon remembers what happened while no watcher ran. So nothing counts as missed.
func TestWatcherRecordsWhatItMissed(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	addOrphans(e, 2)
	e.send(message("network", "connect", "seen"))
	ago := setRecords(t, e, uses)
	e.send(message("image", "tag", id("b"))) // while nobody watched
	watch(t, c, uses)
	waitFor(t, uses, func(all map[string]Record, _ watchState) bool { return all[id("b")].LastUsed.After(ago) })
	if all, _ := allRecords(t, uses); !all[id("a")].LastUsed.Equal(ago) {
		t.Error("an image that nobody used counts as used")
	}
}

// When the daemon doesn't remember the last recorded event, any image may have been used.
func TestForgottenEventsCountAsUses(t *testing.T) {
	for name, forget := range map[string]func(*fakeEngine){
		"the daemon was restarted": func(e *fakeEngine) { e.mu.Lock(); e.remembered = nil; e.mu.Unlock() },
		"too many events": func(e *fakeEngine) {
			for range 256 {
				e.send(message("container", "exec_die", "web"))
			}
		},
	} {
		e, c := newEngine(t, "1.41")
		uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
		addOrphans(e, 2)
		e.send(message("network", "connect", "seen"))
		ago := setRecords(t, e, uses)
		forget(e)
		watch(t, c, uses)
		all, _ := allRecords(t, uses)
		if !all[id("a")].LastUsed.After(ago) || !all[id("b")].LastUsed.After(ago) {
			t.Errorf("%s: %v", name, all)
		}
	}
}

// When the daemon ends the connection, the watcher connects again.
func TestWatcherReconnects(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	addOrphans(e, 1)
	e.send(message("network", "connect", "seen"))
	ago := setRecords(t, e, uses)
	watch(t, c, uses)
	e.endStreams()
	e.send(message("image", "tag", id("a")))
	waitFor(t, uses, func(all map[string]Record, _ watchState) bool { return all[id("a")].LastUsed.After(ago) })
}

// What happens while another process has locked the file is recorded later.
func TestWatcherWaitsForTheRecords(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	addOrphans(e, 1)
	e.send(message("network", "connect", "seen"))
	ago := setRecords(t, e, uses)
	watch(t, c, uses)
	db, err := bbolt.Open(uses.Path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.send(message("image", "tag", id("a")))
	time.Sleep(lockWait + flushEvery) // one try fails
	db.Close()
	waitFor(t, uses, func(all map[string]Record, _ watchState) bool { return all[id("a")].LastUsed.After(ago) })
}

// Both use the file at the same time, and what the watcher saw keeps an image.
func TestWatcherAndPruneShareTheRecords(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	p.Policy.Quiet = 0
	e.send(message("network", "connect", "seen"))
	setRecords(t, e, p.Uses)
	watch(t, c, p.Uses)
	stop := make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				e.send(message("image", "save", id("a")))
			}
		}
	})
	waitFor(t, p.Uses, func(all map[string]Record, _ watchState) bool { return time.Since(all[id("a")].LastUsed) < time.Minute })
	for range 5 {
		if r := mustRun(t, p, false); !r.Watched || r.Decision != Pruned {
			t.Errorf("dry run: %s (%s), watched %v", r.Decision, r.Reason, r.Watched)
		}
	}
	wantDecision(t, mustRun(t, p, true), Pruned, "")
	close(stop)
	wg.Wait()
	if e.imagesLeft() != "a" {
		t.Errorf("left %q, want a: it was in use", e.imagesLeft())
	}
}

// TestImageThatABuildUsedIsABase: the classic builder makes containers of images by ID. What it
// built may be deleted before a prune sees it, and the base, which has only a digest, stays.
func TestImageThatABuildUsedIsABase(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.add("a", nil, []string{digestRef("base", "1")})
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	stop := watch(t, c, uses)
	m := message("container", "create", "step")
	m.Actor.Attributes = map[string]string{"image": id("a")}
	e.send(m)
	isBase := func() bool {
		s, err := TakeSnapshot(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uses.observe(&s, time.Now()); err != nil {
			t.Fatal(err)
		}
		return s.Images[0].Base
	}
	for deadline := time.Now().Add(time.Minute); !isBase(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the image that a build used is no base")
		}
	}
	stop()
}
