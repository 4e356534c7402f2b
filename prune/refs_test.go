package prune

import (
	"strings"
	"testing"

	"github.com/distribution/reference"
)

func TestPatternMatchesNames(t *testing.T) {
	tests := []struct {
		pattern, ref string
		want         bool
	}{
		{"redis", "redis:7", true},
		{"redis:7", "redis:7", true},
		{"redis:7", "redis:7.2", false},
		{"redis:7*", "redis:7.2", true},
		{"library/redis", "redis:7", true},
		{"docker.io/library/*", "redis:7", true},
		{"*", "redis:7", true},
		{"*", "foo/bar:1", false}, // * crosses no slash
		{"*/*", "foo/bar:1", true},
		{"foo/bar", "ghcr.io/foo/bar:1", false},
		{"ghcr.io/*/*:1", "ghcr.io/foo/bar:1", true},
		{"localhost:5000/a", "localhost:5000/a:1", true},
		{"localhost:5000/a:2", "localhost:5000/a:1", false},
		{"redis", digestRef("redis", "d"), true},
		{"redis:7", digestRef("redis", "d"), true}, // its tag is not known
		{"docker.io/redis:7", "redis:7", true},
		{"docker.io/redis", "redis:7", true},
		{"docker.io/library/redis:7", "redis:7", true},
		{"index.docker.io/redis:7", "redis:7", true},
		{"index.docker.io/library/redis:*", "redis:7", true},
		{"index.docker.io/foo/bar:1", "foo/bar:1", true},
		{"docker.io/foo/*", "foo/bar:1", true},
		{"docker.io/redis:7", "redis:6", false},
		{"docker.io/redis:7", "ghcr.io/library/redis:7", false},
		{"docker.io/redis@" + id("d"), digestRef("redis", "d"), true},
		{"docker.io/redis:7@" + id("d"), digestRef("redis", "d"), true},
		{"redis:7@" + id("d"), digestRef("redis", "e"), false},
		{id("a"), "redis:7", true}, // its ID
		{strings.TrimPrefix(id("a"), "sha256:")[:12], "redis:7", true},
		{id("b"), "redis:7", false},
		{id("d"), digestRef("redis", "d"), true},
		{"redis@" + id("d"), digestRef("redis", "d"), true},
		{"redis@" + id("e"), digestRef("redis", "d"), false},
	}
	for _, test := range tests {
		img := Image{ID: id("a")}
		if named, _ := reference.ParseNormalizedNamed(test.ref); reference.IsNameOnly(named) {
			t.Fatalf("%s has no tag", test.ref)
		} else if _, ok := named.(reference.Digested); ok {
			img.Digests = []string{test.ref}
		} else {
			img.Tags = []string{test.ref}
		}
		if got := parsePattern(test.pattern).keeps(img); got != test.want {
			t.Errorf("%q keeps %s: %v, want %v", test.pattern, test.ref, got, test.want)
		}
	}
}

// An image is found, and kept, by each form of its name, and an image with another name is not.
func FuzzReferenceFindsItsImage(f *testing.F) {
	for _, seed := range []string{"redis:7", "a/b:c", "localhost:5000/x:y", "ghcr.io/a/b:1.0", "redis@" + id("d"), "redis:7@" + id("d")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named, err := reference.ParseNormalizedNamed(s)
		if err != nil || reference.IsNameOnly(named) {
			return
		}
		img, other := Image{ID: id("a")}, Image{ID: id("b"), Tags: []string{"other.example/none:here"}}
		if d, ok := named.(reference.Digested); ok {
			img.Digests = []string{reference.FamiliarName(named) + "@" + d.Digest().String()}
		} else {
			img.Tags = []string{reference.FamiliarString(named)}
		}
		if named.Name() == "other.example/none" {
			return
		}
		for _, ref := range []string{s, reference.FamiliarString(named), named.String()} {
			if found := newCatalog([]Image{other, img}).find(ref); len(found) != 1 || found[0] != 1 {
				t.Errorf("find(%q) = %v", ref, found)
			}
		}
		p := parsePattern(reference.FamiliarString(named))
		if !p.keeps(img) || p.keeps(other) {
			t.Errorf("%q keeps itself: %v, another: %v", s, p.keeps(img), p.keeps(other))
		}
		if p.String() != reference.FamiliarString(named) {
			t.Errorf("%q was parsed to %q", s, p)
		}
	})
}
