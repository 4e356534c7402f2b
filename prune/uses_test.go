package prune

import (
	"maps"
	"os"
	"path/filepath"
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
