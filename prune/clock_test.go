package prune

import (
	"path/filepath"
	"testing"
	"time"
)

// TestClockThatWasSetCountsAsUse: after it, nobody knows how long ago an image was used.
func TestClockThatWasSetCountsAsUse(t *testing.T) {
	const hour = time.Hour
	for _, test := range []struct {
		name     string
		wall, up time.Duration // since the last batch
		boot     string
		used     bool
	}{
		{"a quiet hour", hour, hour, "a", false},
		{"a quiet month", 720 * hour, 720*hour + 20*time.Minute, "a", false},
		{"the clock is slewed", 100 * hour, 100*hour + 3*time.Minute, "a", false},
		{"ten years later at once", 87600 * hour, time.Minute, "a", true},
		{"four days later at once", 97 * hour, hour, "a", true},
		{"four days ago at once", -95 * hour, hour, "a", true},
		{"an hour back", 0, hour, "a", true},
		{"a night off", 10 * hour, time.Minute, "b", false},
		{"a week off", 168 * hour, time.Minute, "b", false},
		{"ten years off, or a wrong clock", 87600 * hour, time.Minute, "b", true},
		{"started in 1970", -500000 * hour, time.Minute, "b", true},
	} {
		at := clockMark{Up: 1000 * hour, Boot: "a"}
		uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db"), clock: func() (clockMark, error) { return at, nil }}
		s := Snapshot{Images: []Image{orphan("a"), orphan("b")}}
		if _, err := uses.observe(&s, now); err != nil {
			t.Fatal(err)
		}
		at = clockMark{Up: at.Up + test.up, Boot: test.boot}
		if test.boot != "a" {
			at.Up = test.up
		}
		later := now.Add(test.wall)
		o, err := uses.observe(&s, later)
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range s.Images {
			if used := o.uses[img.ID].LastUsed.Equal(later); used != test.used {
				t.Errorf("%s: last used %v at %v, counts as used should be %v", test.name, o.uses[img.ID].LastUsed, later, test.used)
			}
		}
		// From then on it ages again.
		at.Up += hour
		if o, err = uses.observe(&s, later.Add(hour)); err != nil || o.uses[id("a")].LastUsed.Equal(later.Add(hour)) {
			t.Errorf("%s: an hour later it counts as used again (%v)", test.name, err)
		}
	}
}

// TestWatcherNoticesThatTheClockWasSet, though it writes every half minute.
func TestWatcherNoticesThatTheClockWasSet(t *testing.T) {
	at := clockMark{Boot: "a"} // stands still, while the set clock was a year behind
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db"), clock: func() (clockMark, error) { return at, nil }}
	began := time.Now()
	if _, err := uses.observe(&Snapshot{Images: []Image{orphan("a")}}, began.AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	b := batch{images: map[string][]string{}, used: map[string]time.Time{}}
	if err := (&Watcher{Uses: uses}).flush(&b); err != nil {
		t.Fatal(err)
	}
	if all, _ := allRecords(t, uses); all[id("a")].LastUsed.Before(began.Add(-time.Hour)) {
		t.Errorf("last used %v", all[id("a")].LastUsed)
	}
}

// TestTheClockThatCantBeSetGoesOn, on this machine.
func TestTheClockThatCantBeSetGoesOn(t *testing.T) {
	a, err := readClock()
	if err != nil || a.Boot == "" || a.Up <= 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if b, err := readClock(); err != nil || b.Boot != a.Boot || b.Up < a.Up {
		t.Errorf("%+v after %+v (%v)", b, a, err)
	}
}

// TestRecordsAheadOfTheClockAreNow: records of a time when the clock was wrong count as now when
// they are read, and age from then on. Otherwise such an image would stay for as long as the clock
// was wrong by, and a watcher that has ended would count as running.
func TestRecordsAheadOfTheClockAreNow(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	p := newPruner(t, e, c)
	ahead := time.Now().Add(1000 * time.Hour)
	err := p.Uses.update(func(r *records) error {
		if err := r.put(id("a"), Record{ahead, ahead}); err != nil {
			return err
		}
		return r.setWatchState(watchState{Alive: ahead, Event: eventMark{Nano: ahead.UnixNano()}, Activity: Activity{ahead, "x"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := TakeSnapshot(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	o, err := p.Uses.observe(&s, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.uses[id("a")]; got.LastUsed.After(now) || got.FirstSeen.After(now) {
		t.Errorf("record %+v at %s", got, now)
	}
	if o.activity.At.After(now) {
		t.Errorf("activity %+v at %s", o.activity, now)
	}
	later := now.Add(2 * maxSilence)
	o, err = p.Uses.observe(&s, later)
	if err != nil {
		t.Fatal(err)
	}
	if o.watched {
		t.Error("a watcher that said nothing since counts as running")
	}
	if got := o.uses[id("a")]; !got.FirstSeen.Equal(now) {
		t.Errorf("it doesn't age: first seen %s, want %s", got.FirstSeen, now)
	}
}

// TestEngineTimesAheadOfTheClockAreNow: the clock was wrong when an image was tagged and a
// container was started, and is right now. Both count as now when they are first seen, and age
// from then on; otherwise no run would happen until the clock gets there.
func TestEngineTimesAheadOfTheClockAreNow(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.runContainer("web", "f", time.Now().Add(1000*time.Hour))
	e.tagTimes[id("a")] = time.Now().Add(1000 * time.Hour)
	p := newPruner(t, e, c)
	var later time.Duration // both clocks go on together: none was set
	began := time.Now()
	p.now = func() time.Time { return time.Now().Add(later) }
	p.Uses.clock = func() (clockMark, error) {
		return clockMark{Wall: p.now(), Up: time.Since(began) + later, Boot: "a"}, nil
	}
	wantDecision(t, mustRun(t, p, true), Deferred, "quiet")
	later = p.Policy.Quiet + time.Minute
	wantDecision(t, mustRun(t, p, true), Pruned, "")
	if left := e.imagesLeft(); left != "a" {
		t.Errorf("left %q: the image was tagged less than min_age ago", left)
	}
	p.age(t, e, 30*24*time.Hour)
	later = p.Policy.MinAge + time.Minute
	e.used = 900
	mustRun(t, p, true)
	if left := e.imagesLeft(); left != "" {
		t.Errorf("left %q: min_age has passed since the tag was first seen", left)
	}
}
