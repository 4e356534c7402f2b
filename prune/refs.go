package prune

import (
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
