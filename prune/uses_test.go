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

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Without a watcher, a run that had nothing to delete has still recorded which images are new and
// which are in use.
func TestRunRecordsWhatItSees(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.used = 0
	p := newPruner(t, e, c)
	e.runContainer("web", "b", time.Now().Add(-24*time.Hour))
	e.add("d", nil, nil)
	mustRun(t, p, false)
	e.containers, e.used = nil, 990
	p.Policy.Quiet, p.Policy.MaxWait = 0, time.Second
	mustRun(t, p, true)
	if e.imagesLeft() != "bd" {
		t.Errorf("left %q, want bd: b was in use a moment ago, d was new", e.imagesLeft())
	}
}

// While the records can't be read, every image is kept.
func TestLockedRecordsDefer(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	db, err := bbolt.Open(p.Uses.Path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	wantDecision(t, mustRun(t, p, true), Deferred, "locked")
	if e.imagesLeft() != "abc" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// oldUses is a copy of the records that commit a8918c7 wrote (testdata/README.md).
func oldUses(t *testing.T) Uses {
	t.Helper()
	b, err := os.ReadFile("testdata/uses-a8918c7.db")
	if err != nil {
		t.Fatal(err)
	}
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
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
	o, err := uses.observe(&s, november(6, 11))
	if err != nil {
		t.Fatal(err)
	}
	want[id("a")] = Record{november(1, 8), november(6, 11)}
	if !maps.Equal(o.uses, want) || !o.watched || o.activity != wantState.Activity {
		t.Errorf("a run sees %+v", o)
	}
}

// setVersion writes a version of the format into the records.
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
		addOrphans(e, 3)
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
		if e.imagesLeft() != "abc" {
			t.Errorf("version %s: left %q", version, e.imagesLeft())
		}
		if after, err := os.ReadFile(p.Uses.Path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("version %s: the file has changed (%v)", version, err)
		}
		if files, err := filepath.Glob(filepath.Join(filepath.Dir(p.Uses.Path), "*")); err != nil || len(files) != 1 {
			t.Errorf("version %s: there are %q (%v)", version, files, err)
		}
	}
}

// When a watcher has ended, every image counts once as used now. From then on, what runs see counts.
func TestRecordsOfAnEndedWatcherAreNotTrusted(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	err := p.Uses.update(func(r *records) error {
		return r.setWatchState(watchState{Alive: time.Now().Add(-2 * maxSilence), Event: eventMark{Nano: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	r := mustRun(t, p, true)
	wantDecision(t, r, Incomplete, "")
	if r.Watched || e.imagesLeft() != "abc" {
		t.Errorf("watched %v, left %q", r.Watched, e.imagesLeft())
	}
	p.age(t, e, 30*24*time.Hour)
	wantDecision(t, mustRun(t, p, true), Pruned, "")
}

// An image that was removed and comes back is first seen when it comes back.
func TestImageThatComesBackIsNew(t *testing.T) {
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	with, without := Snapshot{Images: []Image{orphan("a")}}, Snapshot{}
	for i, s := range []Snapshot{with, without, with} {
		o, err := uses.observe(&s, now.Add(time.Duration(i)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 && !o.uses[id("a")].FirstSeen.Equal(now.Add(2*time.Hour)) {
			t.Errorf("first seen %v", o.uses[id("a")].FirstSeen)
		}
	}
}

// When root creates the file, the service that owns the folder can still write it.
func TestRecordsGetTheOwnerOfTheirFolder(t *testing.T) {
	owner, dir := os.Geteuid(), t.TempDir()
	if owner == 0 {
		owner = 12345
	}
	if err := os.Chown(dir, owner, -1); err != nil {
		t.Fatal(err)
	}
	uses := Uses{Path: filepath.Join(dir, "uses.db")}
	if err := uses.update(func(*records) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(uses.Path, &st); err != nil || int(st.Uid) != owner {
		t.Errorf("it belongs to %d (%v)", st.Uid, err)
	}
}
