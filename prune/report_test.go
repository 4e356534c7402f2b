package prune

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/volume"
)

// Programs rely on these keys.
func TestReportHasTheKeysOfSchema1(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 1)
	b, err := json.Marshal(mustRun(t, newPruner(t, e, c), true))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"schema", "decision", "reason", "dry_run", "watched", "critical", "high_watermark", "low_watermark",
		"disks_before", "disks_after", "freed_bytes", "predicted_bytes", "warnings", "would_help", "images"} {
		if _, ok := got[key]; !ok {
			t.Errorf("%q is missing in %s", key, b)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("keys that schema 1 doesn't have: %v", got)
	}
}

// TestReportTellsUseFromFirstSight: an image of which no use was seen has none.
func TestReportTellsUseFromFirstSight(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 2)
	p := newPruner(t, e, c)
	came, used := time.Now().Add(-40*24*time.Hour), time.Now().Add(-30*24*time.Hour)
	err := p.Uses.update(func(r *records) error {
		return errors.Join(r.put(id("a"), Record{came, came}), r.put(id("b"), Record{came, used}))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range mustRun(t, p, false).Images {
		switch d.Image.ID {
		case id("a"):
			if !d.Used.IsZero() || !d.FirstSeen.Equal(came) || !strings.Contains(d.Why, "no use was seen") {
				t.Errorf("a: used %v, first seen %v: %s", d.Used, d.FirstSeen, d.Why)
			}
		case id("b"):
			if !d.Used.Equal(used) || !strings.Contains(d.Why, "last used 30 days ago") {
				t.Errorf("b: used %v: %s", d.Used, d.Why)
			}
		}
	}
}

// TestIncompleteSaysWhatWouldHelp, with the bytes of each: tagged images, volumes, build cache.
func TestIncompleteSaysWhatWouldHelp(t *testing.T) {
	for _, apply := range []bool{false, true} {
		e, c := newEngine(t, "1.41")
		addOrphans(e, 1)
		e.add("b", []string{"x:1"}, nil)
		e.add("c", []string{"x:2"}, nil)
		p := newPruner(t, e, c)
		e.mu.Lock()
		e.volumes = []volume.Volume{{Name: "used", UsageData: &volume.UsageData{RefCount: 1, Size: 5000}}, {Name: "unused", UsageData: &volume.UsageData{Size: 70}}}
		e.cacheUnused = 30
		e.mu.Unlock()
		r := mustRun(t, p, apply)
		wantDecision(t, r, Incomplete, "")
		want := map[string]int64{"--tagged: 1 more": 100, "volumes": 70, "build cache": 30}
		for _, h := range r.Help {
			for what, bytes := range want {
				if strings.Contains(h.What, what) && h.Bytes == bytes {
					delete(want, what)
				}
			}
		}
		if len(want) > 0 || len(r.Help) != 3 {
			t.Errorf("apply %v: help %+v; missing: %v", apply, r.Help, want)
		}
		p.Policy.Tagged = true
		if e.volumes, e.cacheUnused = nil, 0; apply {
			if r := mustRun(t, p, apply); r.Decision == Incomplete && len(r.Help) > 0 {
				t.Errorf("nothing would help: %+v", r.Help)
			}
		}
	}
}
