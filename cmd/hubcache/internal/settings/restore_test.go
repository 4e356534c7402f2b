package settings

import (
	"maps"
	"testing"
)

// TestRestoreIsTheInverseOfShow: settings that were shown and restored are the same, each alone
// with another value than its default, and with what a newer program may have.
func TestRestoreIsTheInverseOfShow(t *testing.T) {
	isolate(t)
	for key, r := range leaves(Default().table()) {
		if key == "registries" {
			continue // see TestRegistries
		}
		written, _ := otherwise(t, key, r.value)
		doc := map[string]any{}
		insert(doc, key, written)
		s, err := (&Loader{File: writeYAML(t, doc)}).gather()
		if err != nil {
			t.Fatal(err)
		}
		rows := append(s.Show(), Shown{Key: "of.tomorrow", Value: "x"}, Shown{Key: "", Value: ""})
		if got, want := texts(Restore(rows)), texts(s.Settings); !maps.Equal(got, want) {
			t.Errorf("%s: restored as %v, want %v", key, got, want)
		}
	}
	empty := Default()
	empty.Admin.Listen = nil
	l := Loaded{Settings: empty}
	if got := Restore(l.Show()); len(got.Admin.Listen) != 0 {
		t.Errorf("no admin address is restored as %v", got.Admin.Listen)
	}
	if got, want := texts(Restore([]Shown{{Key: "budget", Value: "a lot"}, {Key: "tags.rules", Value: "[{"}})), texts(Default()); !maps.Equal(got, want) {
		t.Errorf("unreadable values: %v", got)
	}
}
