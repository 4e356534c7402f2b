package prune

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func daysAgo(n float64) time.Time { return now.Add(-time.Duration(n * 24 * float64(time.Hour))) }

// id returns the image ID that has this hex digit 64 times.
func id(digit string) string {
	s := "sha256:"
	for range 64 {
		s += digit
	}
	return s
}

func digestRef(repo, digit string) string { return repo + "@" + id(digit) }

// orphan returns an image that no rule keeps: it has no name and was built long ago.
func orphan(digit string) Image {
	return Image{ID: id(digit), Built: daysAgo(1000), Size: 10, Unique: 10}
}

func old(images ...Image) map[string]Record {
	uses := map[string]Record{}
	for _, img := range images {
		uses[img.ID] = Record{FirstSeen: daysAgo(30), LastUsed: daysAgo(20)}
	}
	return uses
}

// newPruner returns a Pruner for the fake engine, with the default policy. The records say that
// every image was last used 30 days ago, the first one a little earlier than the next.
func newPruner(t *testing.T, e *fakeEngine, c *client.Client) *Pruner {
	t.Helper()
	p := &Pruner{Engine: c, Policy: DefaultPolicy(), Holds: Holds{t.TempDir()}, Uses: Uses{Path: filepath.Join(t.TempDir(), "uses.db")}, stat: e.disk}
	p.age(t, e, 30*24*time.Hour)
	return p
}

// age replaces the records: every image was first seen and last used so long ago.
func (p *Pruner) age(t *testing.T, e *fakeEngine, by time.Duration) {
	t.Helper()
	err := p.Uses.update(func(r *records) error {
		for i, img := range e.images {
			at := time.Now().Add(-by).Add(time.Duration(i) * time.Minute)
			if err := r.put(img.ID, Record{at, at}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// addOrphans adds n images that may be deleted: a, b, c …, the least recently used first.
func addOrphans(e *fakeEngine, n int) {
	for i := range n {
		e.add(string("abcdef"[i]), []string{"<none>:<none>"}, []string{"<none>@<none>"})
	}
}

func mustRun(t *testing.T, p *Pruner, apply bool) Report {
	t.Helper()
	r, err := p.Run(t.Context(), apply)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantDecision(t *testing.T, r Report, want Decision, reason string) {
	t.Helper()
	if r.Decision != want || !strings.Contains(r.Reason, reason) {
		t.Errorf("decision %s (%s), want %s (…%s…)", r.Decision, r.Reason, want, reason)
	}
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
