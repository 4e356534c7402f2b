package prune

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// oldUses is a copy of the records that commit a8918c7 wrote (testdata/README.md).
func oldUses(t *testing.T) Uses {
	t.Helper()
	b, err := os.ReadFile("testdata/uses-a8918c7.db")
	if err != nil {
		t.Fatal(err)
	}
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	if err := os.WriteFile(uses.Path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	return uses
}

func TestUpgradeKeepsRecords(t *testing.T) {
	november := func(day, hour int) time.Time { return time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC) }
	uses := oldUses(t)
	got, state := allRecords(t, uses)
	want := map[string]Record{
		id("a"): {november(1, 8), november(3, 9)},
		id("b"): {november(1, 8), november(5, 10)},
		id("c"): {november(1, 8), november(6, 10)},
		id("e"): {november(3, 9), november(3, 9)},
	}
	if !maps.Equal(got, want) {
		t.Errorf("records %v\nwant    %v", got, want)
	}
	wantState := watchState{
		Alive:    november(6, 11),
		Event:    eventMark{november(6, 10).UnixNano(), "image", "tag", id("c")},
		Activity: Activity{november(6, 10), "image redis:7: tag"},
	}
	if state != wantState {
		t.Errorf("the watcher's state %+v\nwant               %+v", state, wantState)
	}

	// A run that follows goes on with them.
	var s Snapshot
	for _, digit := range []string{"a", "b", "c", "e"} {
		s.Images = append(s.Images, orphan(digit))
	}
	s.Users = []User{{UseContainer, "web", id("a")}}
	o, err := uses.observe(s, november(6, 11))
	if err != nil {
		t.Fatal(err)
	}
	want[id("a")] = Record{november(1, 8), november(6, 11)}
	if !maps.Equal(o.uses, want) || !o.watched || o.activity != wantState.Activity {
		t.Errorf("a run sees %+v", o)
	}
}

// setVersion makes the records those of a program that writes this version of the format.
func setVersion(t *testing.T, uses Uses, version string) {
	t.Helper()
	if err := uses.update(func(r *records) error { return r.meta.Put(versionKey, []byte(version)) }); err != nil {
		t.Fatal(err)
	}
}

func TestKnownVersionOfRecordsIsRead(t *testing.T) {
	uses := oldUses(t)
	setVersion(t, uses, "1")
	if all, _ := allRecords(t, uses); len(all) != 4 {
		t.Errorf("records %v", all)
	}
}

// A program that is older than the records deletes no image, changes no byte of the file, and
// says which version is needed.
func TestNewerRecordsAreLeftAlone(t *testing.T) {
	for _, version := range []string{"2", "17", "two"} {
		e, c := newEngine(t, "1.51")
		orphans(e, 3)
		p := newPruner(t, e, c)
		setVersion(t, p.Uses, version)
		before, err := os.ReadFile(p.Uses.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, apply := range []bool{false, true} {
			r, err := p.Run(t.Context(), apply)
			if r.Decision != Failed || !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), version) {
				t.Errorf("version %s: %s, error %v", version, r.Decision, err)
			}
		}
		w := &Watcher{Engine: c, Uses: p.Uses}
		if err := w.Run(t.Context()); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("version %s: the watcher ended with %v", version, err)
		}
		if e.left() != "abc" {
			t.Errorf("version %s: left %q", version, e.left())
		}
		if after, err := os.ReadFile(p.Uses.Path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("version %s: the file has changed (%v)", version, err)
		}
		if files, err := filepath.Glob(filepath.Join(filepath.Dir(p.Uses.Path), "*")); err != nil || len(files) != 1 {
			t.Errorf("version %s: there are %q (%v)", version, files, err)
		}
	}
}

// A watcher whose records become those of a newer program writes nothing more into them.
func TestWatcherEndsWhenRecordsBecomeNewer(t *testing.T) {
	e, c := newEngine(t, "1.51")
	uses := Uses{filepath.Join(t.TempDir(), "uses.db")}
	orphans(e, 1)
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
