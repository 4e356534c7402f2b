package storage

import (
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestLastUseAheadOfTheClockIsNow: a blob whose last use was noted with a wrong clock, in the future,
// counts as used when the store was opened, and is then as old as any other. Otherwise it would
// stay for as long as the clock was wrong by, whatever is used meanwhile.
func TestLastUseAheadOfTheClockIsNow(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	ahead := time.Now().Add(1000 * time.Hour)
	wrong := put(t, s, noise(1, 1<<20))
	file := put(t, s, noise(2, 1<<20))
	s.catalogue.setUse(wrong, ahead)
	mark := ahead.Truncate(time.Second)
	came := time.Now().Add(-time.Hour)
	arrived := put(t, s, noise(3, 1<<20))
	if err := os.Chtimes(s.files.layout.blob(arrived), mark, ahead); err != nil {
		t.Fatal(err)
	}
	s.catalogue.setUse(arrived, ahead)
	if err := os.Chtimes(s.files.layout.blob(file), mark, came); err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	var first [2]int64
	for n := range 2 {
		s = open(t, dir, 100<<20)
		settleDown(t, s)
		now := time.Now().UnixNano()
		s.room.mu.Lock()
		a, b := s.room.lru.Peek(wrong).Value, s.room.lru.Peek(file).Value
		s.room.mu.Unlock()
		if a.used > now || b.used > now {
			t.Errorf("start %d: last uses %s and %s are to come", n+1, time.Unix(0, a.used), time.Unix(0, b.used))
		}
		if n == 0 {
			first = [2]int64{a.used, b.used}
		} else if first != [2]int64{a.used, b.used} {
			t.Error("they count as used again with each start")
		}
		fi, err := os.Stat(s.files.layout.blob(file))
		if err != nil {
			t.Fatal(err)
		}
		if at, ahead := lastUseOf(fi, now); ahead {
			t.Errorf("start %d: the file still says that it will be used; it was used at %s", n+1, time.Unix(0, at))
		}
		shut(t, s)
	}
}

// TestTagAheadOfTheClockIsCheckedNow: a tag that was checked, and a repository whose visibility was asked
// for, while the clock was wrong, count as checked when that is read, and grow old from then on. The
// clock may be put right while the server runs.
func TestTagAheadOfTheClockIsCheckedNow(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	ahead := time.Now().Add(1000 * time.Hour)
	manifest := []byte(`{"schemaVersion":2,"layers":[]}`)
	d := digest.FromBytes(manifest)
	if err := s.PutManifest(Origin{Repository: repo}, d, "x", manifest); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "kept", Tag{Digest: d, Checked: ahead})
	s.SetTag(repo, "in-memory", Tag{Digest: digest.FromString("not cached"), Checked: ahead})
	s.SetVisibility(repo, Visibility{Public: true, At: ahead})
	first := map[string]time.Time{}
	check := func(when string, tags ...string) {
		t.Helper()
		for _, tag := range tags {
			got, err := s.Tag(repo, tag)
			if err != nil || got.Checked.After(time.Now()) {
				t.Errorf("%s, tag %s: checked %s, %v", when, tag, got.Checked, err)
			}
			if at, ok := first[tag]; ok && !at.Equal(got.Checked) {
				t.Errorf("%s, tag %s: checked %s, and before that %s: it doesn't grow old", when, tag, got.Checked, at)
			}
			first[tag] = got.Checked
		}
	}
	check("in the same process", "kept", "in-memory")
	check("again", "kept", "in-memory")
	s.SetTag(repo, "kept", Tag{Digest: d, Checked: ahead})
	delete(first, "kept")
	shut(t, s)
	s = open(t, dir, 100<<20)
	check("after a restart", "kept")
	if v, err := s.Visibility(repo); err != nil || !v.Public || v.At.After(time.Now()) {
		t.Errorf("visibility %+v, %v", v, err)
	}
	shut(t, s)
	s = open(t, dir, 100<<20)
	check("after another one", "kept")
}
