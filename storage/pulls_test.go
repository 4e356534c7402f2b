package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// pullsOf is Store.Pulls, which must not fail.
func pullsOf(t *testing.T, s *Store, reference string) int64 {
	t.Helper()
	n, err := s.Pulls(repo, reference)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tagged puts a manifest into s that a tag names.
func tagged(t *testing.T, s *Store, tag string) digest.Digest {
	t.Helper()
	body := []byte(`{"n":"` + tag + `"}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", body); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, tag, Tag{Digest: d, MediaType: "application/x", Size: int64(len(body)), Checked: time.Now()})
	return d
}

// TestPullsAreCounted: by tag and by digest, also across a restart. The first requests come before
// the image does.
func TestPullsAreCounted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10<<20)
	s.CountPull(repo, "7")
	s.house.flush()
	d := tagged(t, s, "7")
	s.CountPull(repo, "7")
	s.CountPull(repo, d.String())
	if n := pullsOf(t, s, "7"); n != 2 {
		t.Errorf("%d pulls by tag, want 2", n)
	}
	s.CountPull(repo, "7")
	shut(t, s)
	s = open(t, dir, 10<<20)
	s.CountPull(repo, "7")
	if tag, digest := pullsOf(t, s, "7"), pullsOf(t, s, d.String()); tag != 4 || digest != 1 {
		t.Errorf("%d pulls by tag and %d by digest after a restart, want 4 and 1", tag, digest)
	}
	got := map[string]int64{}
	if err := s.EachPulls(func(_, reference string, n int64) error { got[reference] = n; return nil }); err != nil || len(got) != 2 || got["7"] != 4 {
		t.Errorf("EachPulls: %v, %v", got, err)
	}
}

// TestPullsOfWhatIsGone: a tag that is deleted takes its count along, and the daily sweep forgets
// the counts of digests whose manifests have left.
func TestPullsOfWhatIsGone(t *testing.T) {
	s := open(t, t.TempDir(), 10<<20)
	settleDown(t, s)
	d := tagged(t, s, "7")
	s.CountPull(repo, "7")
	s.CountPull(repo, d.String())
	s.house.flush()
	s.DeleteTag(repo, "7")
	if n := pullsOf(t, s, "7"); n != 0 {
		t.Errorf("%d pulls of a deleted tag", n)
	}
	s.Remove(d)
	s.house.sweep(time.Now())
	rows := 0
	if err := s.EachPulls(func(_, _ string, _ int64) error { rows++; return nil }); err != nil || rows != 0 {
		t.Errorf("%d rows are left, %v", rows, err)
	}
}

// TestInventedPullsTakeNoRoom: what is never cached is counted in memory for a minute, for a bounded
// number of names, and never on disk.
func TestInventedPullsTakeNoRoom(t *testing.T) {
	s := open(t, t.TempDir(), 10<<20)
	tagged(t, s, "7")
	for n := range 2 * maxUnnoted {
		s.CountPull(repo, fmt.Sprint("invented", n))
	}
	unnoted := func() int {
		s.pulls.mu.Lock()
		defer s.pulls.mu.Unlock()
		return len(s.pulls.counts)
	}
	if n := unnoted(); n > maxUnnoted {
		t.Errorf("%d counts in memory, want at most %d", n, maxUnnoted)
	}
	s.pulls.noting.Lock() // so that none of them is being noted
	s.pulls.mu.Lock()
	for key, c := range s.pulls.counts {
		c.since -= pullPatience
		s.pulls.counts[key] = c
	}
	s.pulls.mu.Unlock()
	s.pulls.noting.Unlock()
	s.house.flush()
	s.CountPull(repo, "7")
	if n := pullsOf(t, s, "7"); n != 1 {
		t.Errorf("%d pulls, want 1", n)
	}
	if err := s.EachPulls(func(_, reference string, _ int64) error {
		if reference != "7" {
			t.Errorf("a row for %s", reference)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if n := unnoted(); n > 0 {
		t.Errorf("%d counts are left in memory", n)
	}
}

// TestPullsAreWrittenForWhatWasPulled: a flush changes the rows of what was pulled since the last
// one, and no others.
func TestPullsAreWrittenForWhatWasPulled(t *testing.T) {
	s := opened(t, indexOf(t, 0), 10<<20)
	defer s.catalogue.index.Close()
	for n := range 100 {
		tag := fmt.Sprint(n)
		tagged(t, s, tag)
		s.CountPull(repo, tag)
	}
	s.house.flush()
	for range 1000 {
		s.CountPull(repo, "42")
	}
	before := s.catalogue.index.Pending()
	s.pulls.note()
	if n := s.catalogue.index.Pending() - before; n != 1 {
		t.Errorf("%d changes for the pulls of one image", n)
	}
}

// TestALostIndexLosesThePulls: and nothing else of the image.
func TestALostIndexLosesThePulls(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10<<20)
	tagged(t, s, "7")
	s.CountPull(repo, "7")
	shut(t, s)
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 10<<20)
	if _, err := s.Tag(repo, "7"); err != nil || pullsOf(t, s, "7") != 0 {
		t.Errorf("the tag: %v; %d pulls", err, pullsOf(t, s, "7"))
	}
	s.CountPull(repo, "7")
	if n := pullsOf(t, s, "7"); n != 1 {
		t.Errorf("%d pulls, want 1", n)
	}
}
