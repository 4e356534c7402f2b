package prune

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestComposeFileNamesItsImages(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write(".env", "DB_VERSION=16\nAPP=from-file\n")
	t.Setenv("APP", "from-env")
	file := write("compose.yml", `
x-common: &common
  image: redis:7-alpine
services:
  app: {image: "example/app:${APP}"}
  cache: {<<: *common}
  db: {image: "postgres:${DB_VERSION:-12}"}
  built: {build: .}
  pinned: {image: "nginx:1@sha256:aa"}
  proxy: {image: "traefik:${HUBCACHE_TEST_UNSET:-v3}"}
  unset: {image: "example/$HUBCACHE_TEST_UNSET:1"}
  required: {image: "example/required:${HUBCACHE_TEST_UNSET:?set it}"}
`)
	got, err := composeImages(file)
	want := []string{"example/app:from-env", "redis:7-alpine", "postgres:16", "nginx:1@sha256:aa", "traefik:v3", "example/required:*", "example/*:1"}
	slices.Sort(want)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("images %q (%v)\nwant   %q", got, err, want)
	}
	for name, body := range map[string]string{"broken.yml": "services: [", "template.yml": `services: {a: {image: "x:${"}}`} {
		if images, err := composeImages(write(name, body)); err == nil {
			t.Errorf("%s: %q and no error", name, images)
		}
	}
}

func TestKeepFileKeepsItsImages(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, []byte("services: {web: {image: redis:7}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy()
	p.Tagged, p.KeepFiles = true, []string{file}
	p, err := p.withKeepFiles()
	if err != nil {
		t.Fatal(err)
	}
	kept, other, newer := orphan("a"), orphan("b"), orphan("c")
	kept.Tags, other.Tags, newer.Tags, newer.Built = []string{"redis:7"}, []string{"redis:6"}, []string{"redis:8"}, daysAgo(1)
	s := Snapshot{Images: []Image{kept, other, newer}}
	edit := func(q *Policy) { *q = p }
	if v := decisionOn(t, "a", s, old(s.Images...), edit); v.Rule != RuleKeepList {
		t.Errorf("redis:7: %s by %s", v.Action, v.Rule)
	}
	if v := decisionOn(t, "b", s, old(s.Images...), edit); v.Action != Delete {
		t.Errorf("redis:6: %s by %s", v.Action, v.Rule)
	}
}
