package prune

import (
	"path"
	"strings"

	"github.com/distribution/reference"
)

// catalog finds the images of a snapshot by the names that containers, services and people
// use for them.
type catalog struct {
	images   []Image
	byDigest map[string][]int // image IDs, repository digests and manifests
	byTag    map[string][]int // docker.io/library/redis:7
}

func newCatalog(images []Image) catalog {
	c := catalog{images: images, byDigest: map[string][]int{}, byTag: map[string][]int{}}
	for i, img := range images {
		c.byDigest[img.ID] = append(c.byDigest[img.ID], i)
		for _, d := range img.Manifests {
			c.byDigest[d] = append(c.byDigest[d], i)
		}
		for _, ref := range img.Digests {
			_, d, _ := strings.Cut(ref, "@")
			c.byDigest[d] = append(c.byDigest[d], i)
		}
		for _, ref := range img.Tags {
			if named, err := reference.ParseNormalizedNamed(ref); err == nil {
				c.byTag[named.String()] = append(c.byTag[named.String()], i)
			}
		}
	}
	return c
}

// find returns the indexes of all images that ref can mean. ref is an ID, the beginning of an
// ID, name:tag, name@digest, or name:tag@digest. If ref is ambiguous, find returns too many
// images rather than too few: each of them is then kept.
func (c catalog) find(ref string) []int {
	found := append([]int(nil), c.byDigest[ref]...)
	if isHex(ref) {
		for i, img := range c.images {
			if strings.HasPrefix(img.ID, "sha256:"+ref) {
				found = append(found, i)
			}
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return found
	}
	digested, hasDigest := named.(reference.Digested)
	if hasDigest {
		found = append(found, c.byDigest[digested.Digest().String()]...)
	}
	if tagged, ok := named.(reference.Tagged); ok {
		return append(found, c.byTag[named.Name()+":"+tagged.Tag()]...)
	}
	if !hasDigest {
		found = append(found, c.byTag[named.Name()+":latest"]...)
	}
	return found
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// repositories returns the full names (docker.io/library/redis) of the repositories that img
// belongs to, by its tags and by its digests.
func repositories(img Image) map[string]bool {
	names := map[string]bool{}
	for _, refs := range [][]string{img.Tags, img.Digests} {
		for _, ref := range refs {
			if named, err := reference.ParseNormalizedNamed(ref); err == nil {
				names[named.Name()] = true
			}
		}
	}
	return names
}

// pattern is one entry of the keep list.
type pattern struct{ name, tag, digest string }

// parsePattern splits a pattern of the keep list.
func parsePattern(s string) pattern {
	var p pattern
	s, p.digest, _ = strings.Cut(s, "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		s, p.tag = s[:i], s[i+1:]
	}
	p.name = s
	return p
}

// keeps reports whether the pattern matches img.
func (p pattern) keeps(img Image) bool {
	for _, ref := range img.Tags {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil || !p.matchesName(named) {
			continue
		}
		tagged, ok := named.(reference.Tagged)
		if ok && (p.tag == "" || matches(p.tag, tagged.Tag())) && p.digest == "" {
			return true
		}
	}
	for _, ref := range img.Digests {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil || !p.matchesName(named) {
			continue
		}
		_, digest, _ := strings.Cut(ref, "@")
		switch {
		case p.digest != "":
			if p.digest == digest {
				return true
			}
		case p.tag == "" || len(img.Tags) == 0:
			return true
		}
	}
	return false
}

// matchesName compares the pattern with all forms of the name: redis, library/redis and
// docker.io/library/redis.
func (p pattern) matchesName(named reference.Named) bool {
	return matches(p.name, reference.FamiliarName(named)) ||
		matches(p.name, reference.Path(named)) && reference.Domain(named) == "docker.io" ||
		matches(p.name, named.Name())
}

func matches(glob, s string) bool {
	ok, err := path.Match(glob, s)
	return ok && err == nil
}

// String returns the pattern as it was written.
func (p pattern) String() string {
	s := p.name
	if p.tag != "" {
		s += ":" + p.tag
	}
	if p.digest != "" {
		s += "@" + p.digest
	}
	return s
}
