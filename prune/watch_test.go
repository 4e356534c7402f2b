package prune

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// watch runs a watcher until the returned function is called; it returns when the
// watcher records.
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
	case <-time.After(10 * time.Second):
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

func allRecords(t *testing.T, uses Uses) (all map[string]Record, state watchState) {
	t.Helper()
	err := uses.update(func(r *records) (err error) {
		if state, err = r.watchState(); err != nil {
			return err
		}
		all, err = r.all()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, state
}

// setRecords says that nothing was used for a month, and that the watcher saw the last event.
func setRecords(t *testing.T, e *engine, uses Uses) time.Time {
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
		if n := len(e.ring); n > 0 {
			state = watchState{Alive: time.Now(), Event: markOf(e.ring[n-1])}
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

// TestWatcherRecords: containers and image events are uses of the image itself, not of
// what its name means later; health checks and deletions are not.
func TestWatcherRecords(t *testing.T) {
	e, c := newEngine(t, "1.51")
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	orphans(e, 5)
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
	e.send(events.Message{Type: "container", Action: "destroy", Actor: events.Actor{ID: "gone", Attributes: map[string]string{"image": id("d")}}})
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
	for range 200 {
		if all, state := allRecords(t, uses); ok(all, state) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the watcher never recorded it")
}

// TestWatcherResumes: after a restart what was missed is replayed, and it is no gap.
func TestWatcherResumes(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	orphans(e, 2)
	e.send(message("network", "connect", "seen"))
	ago := setRecords(t, e, uses)
	e.send(message("image", "tag", id("b"))) // while nobody watched
	watch(t, c, uses)
	waitFor(t, uses, func(all map[string]Record, _ watchState) bool { return all[id("b")].LastUsed.After(ago) })
	if all, _ := allRecords(t, uses); !all[id("a")].LastUsed.Equal(ago) {
		t.Error("an image that nobody used counts as used")
	}
}

// TestGapCountsAsUse: when the daemon has forgotten the last event on record, anything
// may have happened.
func TestGapCountsAsUse(t *testing.T) {
	for name, forget := range map[string]func(*engine){
		"the daemon was restarted": func(e *engine) { e.mu.Lock(); e.ring = nil; e.mu.Unlock() },
		"too many events": func(e *engine) {
			for range 256 {
				e.send(message("container", "exec_die", "web"))
			}
		},
	} {
		e, c := newEngine(t, "1.41")
		uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
		orphans(e, 2)
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

// TestWatcherReconnects: when the daemon hangs up, the watcher comes back.
func TestWatcherReconnects(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	orphans(e, 1)
	e.send(message("network", "connect", "seen"))
	ago := setRecords(t, e, uses)
	watch(t, c, uses)
	e.hangUp()
	e.send(message("image", "tag", id("a")))
	waitFor(t, uses, func(all map[string]Record, _ watchState) bool { return all[id("a")].LastUsed.After(ago) })
}

// TestWatcherWaitsForTheRecords: what happens while another process has the file is
// recorded when it lets go.
func TestWatcherWaitsForTheRecords(t *testing.T) {
	e, c := newEngine(t, "1.41")
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	orphans(e, 1)
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

// TestWatcherAndPruneAtOnce: they share the file, and what the watcher saw keeps an image.
func TestWatcherAndPruneAtOnce(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
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
	if e.left() != "a" {
		t.Errorf("left %q, want a: it was in use", e.left())
	}
}

// TestWatcherThatWentAway: prune does not rely on the records of a watcher that is gone;
// every image counts as used once more, and from then on what runs see counts.
func TestWatcherThatWentAway(t *testing.T) {
	e, c := newEngine(t, "1.41")
	orphans(e, 3)
	p := newPruner(t, e, c)
	err := p.Uses.update(func(r *records) error {
		return r.setWatchState(watchState{Alive: time.Now().Add(-2 * maxSilence), Event: eventMark{Nano: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	r := mustRun(t, p, true)
	wantDecision(t, r, Incomplete, "")
	if r.Watched || e.left() != "abc" {
		t.Errorf("watched %v, left %q", r.Watched, e.left())
	}
	p.age(t, e, 30*24*time.Hour)
	wantDecision(t, mustRun(t, p, true), Pruned, "")
}

// TestForgottenImageIsNew: an image that went and comes back is first seen when it comes back.
func TestForgottenImageIsNew(t *testing.T) {
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	with, without := Snapshot{Images: []Image{orphan("a")}}, Snapshot{}
	for i, s := range []Snapshot{with, without, with} {
		o, err := uses.observe(s, now.Add(time.Duration(i)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 && !o.uses[id("a")].FirstSeen.Equal(now.Add(2*time.Hour)) {
			t.Errorf("first seen %v", o.uses[id("a")].FirstSeen)
		}
	}
}

// TestDamagedRecords: a file that is no database is an error that says what to do.
func TestDamagedRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Uses{path}.update(func(*records) error { return nil })
	if err == nil || errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("err %v", err)
	}
}

// TestRecordsBelongToTheirDirectory: when root is the first to look, the service that
// owns the directory can still write.
func TestRecordsBelongToTheirDirectory(t *testing.T) {
	owner, dir := os.Geteuid(), t.TempDir()
	if owner == 0 {
		owner = 12345
	}
	if err := os.Chown(dir, owner, -1); err != nil {
		t.Fatal(err)
	}
	uses := Uses{filepath.Join(dir, "uses.db")}
	if err := uses.update(func(*records) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(uses.Path, &st); err != nil || int(st.Uid) != owner {
		t.Errorf("it belongs to %d (%v)", st.Uid, err)
	}
}
