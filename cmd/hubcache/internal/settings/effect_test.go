package settings

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestEverySettingHasAnEffect: each row, or its section, says when a change counts.
func TestEverySettingHasAnEffect(t *testing.T) {
	for key, r := range leaves(Default().table()) {
		if r.effect == asSection {
			t.Errorf("%s: neither the row nor its section says when a change takes effect", key)
		}
	}
}

// TestExampleMarksWhatReloads: in docs/use/config.example.yaml the comment of a setting, or of
// its section, has [reload] where SIGHUP puts a change into effect, and nowhere else.
func TestExampleMarksWhatReloads(t *testing.T) {
	b, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	marked := map[string]bool{}
	marksIn(doc.Content[0], "", false, marked)
	for key, r := range leaves(Default().table()) {
		if marked[key] != (r.effect == onReload) {
			t.Errorf("%s: marked [reload] is %v, and the table says %v", key, marked[key], r.effect == onReload)
		}
	}
}

// marksIn notes for each key below n whether it is marked. section says whether a section
// around it is.
func marksIn(n *yaml.Node, prefix string, section bool, marked map[string]bool) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		mark := section || strings.Contains(k.HeadComment+k.LineComment+v.LineComment, "[reload]")
		if v.Kind == yaml.MappingNode && len(v.Content) > 0 {
			marksIn(v, prefix+k.Value+".", mark, marked)
		} else {
			marked[prefix+k.Value] = mark
		}
	}
}

// TestNixRestartsForWhatNeedsIt compares nix/restart-settings.json, for which the NixOS
// module restarts the service, with the table. HUBCACHE_UPDATE=1 writes it.
func TestNixRestartsForWhatNeedsIt(t *testing.T) {
	const path = "../../../../nix/restart-settings.json"
	var keys []string
	for key, r := range leaves(Default().table()) {
		if r.effect == onRestart {
			keys = append(keys, key)
		}
	}
	want, err := json.MarshalIndent(keys, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if os.Getenv("HUBCACHE_UPDATE") != "" {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is\n%swant\n%s", path, got, want)
	}
}

// TestReloadedKeepsWhatNeedsARestart: after a reload exactly the settings that can change have
// changed, with their sources, and a second reload is compared with what still runs.
func TestReloadedKeepsWhatNeedsARestart(t *testing.T) {
	isolate(t)
	running := &Loaded{Settings: Default(), source: map[string]string{}}
	if _, later := Reloaded(running, running); len(later) != 0 {
		t.Errorf("nothing changed, and %v need a restart", later)
	}
	next := &Loaded{Settings: Default(), File: "/etc/new.yaml", source: map[string]string{}}
	for key, r := range leaves(next.table()) {
		next.source[key] = "file"
		if key == "tags.rules" {
			next.Tags.Rules = append(next.Tags.Rules, TagRule{Match: "a:*"})
		} else if key != "registries" { // see TestRegistriesReload
			otherwise(t, key, r.value)
		}
	}
	wanted := texts(next.Settings)
	for range 2 {
		now, later := Reloaded(running, next)
		var restart []string
		for key, r := range leaves(now.table()) {
			want, source := wanted[key], "file"
			if r.effect == onRestart {
				want, source = texts(Default())[key], ""
				restart = append(restart, key)
			}
			if got := textOf(r.value); got != want || now.source[key] != source {
				t.Errorf("%s is %q from %q, want %q from %q", key, got, now.source[key], want, source)
			}
		}
		if !slices.Equal(later, restart) {
			t.Errorf("%v wait for a restart, want %v", later, restart)
		}
		if got := texts(next.Settings); !maps.Equal(got, wanted) {
			t.Error("the new settings themselves were changed")
		}
		running = now
	}
}
