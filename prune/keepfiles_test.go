package prune

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keepFile writes a compose file with one service of that image.
func keepFile(t *testing.T, image string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, []byte("services: {web: {image: '"+image+"'}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestKeepFileKeepsItsImages: a keep file keeps what Docker would take its images for. A variable
// that is set nowhere is whatever could stand there: slashes, colons, a digest.
func TestKeepFileKeepsItsImages(t *testing.T) {
	for _, test := range []struct {
		image      string
		keeps, not []string // references of images
	}{
		{"redis:7", []string{"redis:7"}, []string{"redis:6", "other/redis:7"}},
		{"docker.io/redis:7", []string{"redis:7"}, []string{"redis:6"}},
		{"index.docker.io/library/redis:7", []string{"redis:7"}, []string{"redis:6"}},
		{"redis", []string{"redis:7", "redis:latest"}, nil}, // more than Docker would, so that an update stays
		{"redis:7@" + id("d"), []string{"redis@" + id("d")}, []string{"redis@" + id("e")}},
		{"${WEB_IMAGE}", []string{"ghcr.io/org/web:2", "redis:7", "redis@" + id("d"), "localhost:5000/a/b/c:1"}, nil},
		{"ghcr.io/${WEB}", []string{"ghcr.io/org/web:2", "ghcr.io/web:1", "ghcr.io/a/b/c@" + id("d")}, []string{"redis:7", "quay.io/org/web:2"}},
		{"ghcr.io/org/web${TAG}", []string{"ghcr.io/org/web:2", "ghcr.io/org/web@" + id("d"), "ghcr.io/org/web2:1"}, []string{"ghcr.io/org/api:2", "ghcr.io/org/api@" + id("d")}},
		{"web:${TAG}", []string{"web:2", "web@" + id("d")}, []string{"web2:1", "api@" + id("d"), "org/web:1"}},
		{"docker.io/web:${TAG}", []string{"web:2"}, []string{"web2:1"}},
		{"${REGISTRY}/web:2", []string{"ghcr.io/org/web:2", "localhost:5000/web:2", "org/web:2", "web:2", "ghcr.io/web@" + id("d")}, []string{"ghcr.io/org/web:3", "ghcr.io/org/api:2", "ghcr.io/api@" + id("d")}},
		{"${REGISTRY}web:2", []string{"ghcr.io/org/web:2", "web:2", "ghcr.io/web@" + id("d")}, []string{"ghcr.io/org/web:3", "ghcr.io/api@" + id("d")}},
		{"ghcr.io/${ORG}/web", []string{"ghcr.io/org/web:2", "ghcr.io/a/b/web:3", "ghcr.io/org/web@" + id("d")}, []string{"ghcr.io/org/api:2"}},
		{"web:1.${MINOR}-alpine", []string{"web:1.2-alpine", "web@" + id("d")}, []string{"web:2-alpine", "web:1.2"}},
		{"web@${DIGEST}", []string{"web@" + id("d")}, []string{"api@" + id("d")}},
		{"web.${X}", []string{"web.example/a:1"}, []string{"webxexample/a:1"}},
	} {
		for _, keeps := range []bool{true, false} {
			refs := test.keeps
			if !keeps {
				refs = test.not
			}
			for _, ref := range refs {
				p := DefaultPolicy()
				p.Tagged, p.KeepFiles = true, []string{keepFile(t, test.image)}
				p, err := p.withKeepFiles(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				img := orphan("a")
				if strings.Contains(ref, "@") {
					img.Digests = []string{ref}
				} else {
					img.Tags = []string{ref}
				}
				s := Snapshot{Images: []Image{img}}
				if v := decisionOn(t, "a", s, old(img), func(q *Policy) { *q = p }); (v.Rule == RuleKeepList) != keeps {
					t.Errorf("image: %s: %s is %s by %s, kept should be %v", test.image, ref, v.Action, v.Rule, keeps)
				}
			}
		}
	}
}

// TestKeepFilesAreFollowed: what an included file names is kept, and what it can't be understood
// without is an error that keeps everything.
func TestKeepFilesAreFollowed(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.add("a", []string{"included:1"}, nil)
	e.add("b", []string{"second:1"}, nil)
	e.add("c", []string{"other:1"}, nil)
	e.add("d", []string{"included:2", "second:2", "other:2"}, nil) // the newest of each
	p := newPruner(t, e, c)
	dir := t.TempDir()
	write := func(name, body string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("compose.yml", "include: [part.yml]\nservices: {}\n---\nservices: {b: {image: 'second:1'}}")
	p.Policy.Tagged, p.Policy.KeepFiles = true, []string{filepath.Join(dir, "compose.yml")}
	if r, err := p.Run(t.Context(), true); err == nil || e.imagesLeft() != "abcd" {
		t.Errorf("without the included file: %s, left %q", r.Decision, e.imagesLeft())
	}
	write("part.yml", "services: {a: {build: .}}")
	write("compose.yml", "include: [part.yml]")
	if r, err := p.Run(t.Context(), true); err == nil || !strings.Contains(err.Error(), "names no image") || e.imagesLeft() != "abcd" {
		t.Errorf("without any image: %s (%v), left %q", r.Decision, err, e.imagesLeft())
	}
	write("part.yml", "services: {a: {image: 'included:1'}}")
	write("compose.yml", "include: [part.yml]\n---\nservices: {b: {image: 'second:1'}}")
	mustRun(t, p, true)
	if e.imagesLeft() != "abd" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// TestKeepEntriesThatMatchNothingAreWarnings, because a misspelled one protects nothing.
func TestKeepEntriesThatMatchNothingAreWarnings(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.add("a", []string{"redis:7"}, nil)
	p := newPruner(t, e, c)
	unused, used := keepFile(t, "gone:1"), keepFile(t, "redis:7")
	p.Policy.Keep, p.Policy.KeepFiles = []string{"rediss:*", "docker.io/redis"}, []string{unused, used}
	for _, full := range []int64{900, 100} {
		e.used = full
		r := mustRun(t, p, false)
		if len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], `"rediss:*"`) || !strings.Contains(r.Warnings[1], unused) {
			t.Errorf("warnings %q", r.Warnings)
		}
	}
}

// TestKeepFilesKeepWhatComposeBuilt: a service that is built and has no image has a name all the same.
func TestKeepFilesKeepWhatComposeBuilt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, []byte("services: {db: {image: 'db:1'}, web: {build: .}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	policy, err := Policy{KeepFiles: []string{file}}.withKeepFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]bool{"shop-web:latest": true, "shop_web:latest": true, "shop-api:latest": false} {
		img := orphan("a")
		img.Tags = []string{tag}
		if got := slices.ContainsFunc(policy.patterns(), func(p pattern) bool { return p.keeps(img) }); got != want {
			t.Errorf("%s is kept: %v, want %v", tag, got, want)
		}
	}
}
