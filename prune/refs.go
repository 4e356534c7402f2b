package prune

import (
	"path"
	"strings"

	"github.com/distribution/reference"
)

// catalog finds the images of a snapshot by what containers, services and people call them.
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

// find returns every image that ref may mean: an ID, the beginning of one, name:tag,
// name@digest or both. When in doubt it finds too much.
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

// repositories returns the whole names (docker.io/library/redis) that img belongs to, by
// its tags and by its digests.
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

func parsePattern(s string) pattern {
	var p pattern
	s, p.digest, _ = strings.Cut(s, "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		s, p.tag = s[:i], s[i+1:]
	}
	p.name = s
	return p
}

// keeps reports whether img is meant by the pattern.
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

func (p pattern) matchesName(named reference.Named) bool {
	return matches(p.name, reference.FamiliarName(named)) ||
		matches(p.name, reference.Path(named)) && reference.Domain(named) == "docker.io" ||
		matches(p.name, named.Name())
}

func matches(glob, s string) bool {
	ok, err := path.Match(glob, s)
	return ok && err == nil
}

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
