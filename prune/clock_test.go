package prune

import (
	"testing"
	"time"
)

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
	o, err := p.Uses.observe(s, now)
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
	o, err = p.Uses.observe(s, later)
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
