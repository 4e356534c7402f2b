package prune

import (
	"encoding/json"
	"testing"
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
		"disks_before", "disks_after", "freed_bytes", "predicted_bytes", "warnings", "images"} {
		if _, ok := got[key]; !ok {
			t.Errorf("%q is missing in %s", key, b)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("keys that schema 1 doesn't have: %v", got)
	}
}
