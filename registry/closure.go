package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/image"
)

// closure collects what a pull of an image asks for, on some platforms: manifests with their
// attestations, configs, layers, and what refers to the manifests. Not safe for concurrent use.
type closure struct {
	platforms []v1.Platform

	// load returns a manifest with its body. fs.ErrNotExist: it can't be had, and the closure goes on
	// without it.
	load func(ctx context.Context, d digest.Digest) (*found, error)

	// refer returns the manifests that refer to a manifest; nil: they are left out.
	refer func(ctx context.Context, d digest.Digest) ([]digest.Digest, error)

	manifests []digest.Digest // in the order in which they were found, without the missing ones
	blobs     []image.Child   // configs and layers, each once
	optional  map[digest.Digest]bool
	bytes     int64 // of manifests and blobs
	missing   []image.Child

	seen map[digest.Digest]bool // manifests and blobs
}

// maxReferring is how many manifests are taken of those that refer to one.
const maxReferring = 20

// closureDepth is how many levels of indexes are followed, as in package storage.
const closureDepth = 4

// add adds a manifest and all that it needs.
// Errors: errPlatform; those of load and refer; ctx's cause.
func (c *closure) add(ctx context.Context, m image.Child, depth int) error {
	if c.seen[m.Digest] {
		return nil
	}
	if c.seen == nil {
		c.seen, c.optional = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	}
	c.seen[m.Digest] = true
	f, err := c.load(ctx, m.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		c.missing = append(c.missing, m)
		return nil
	}
	if err != nil {
		return err
	}
	c.manifests = append(c.manifests, f.digest)
	c.bytes += f.size
	if slices.ContainsFunc(f.children, func(child image.Child) bool { return child.Role == image.RoleManifest }) {
		if err := c.addIndex(ctx, f, depth); err != nil {
			return err
		}
	} else {
		c.addBlobs(f)
	}
	if c.refer == nil {
		return nil
	}
	return c.addReferring(ctx, f.digest)
}

// addIndex adds the manifests of an index that the platforms need.
func (c *closure) addIndex(ctx context.Context, f *found, depth int) error {
	if depth == closureDepth {
		return nil
	}
	chosen, err := choose(image.Members(f.body), c.platforms)
	if err != nil {
		return err
	}
	for _, child := range f.children {
		if !chosen[child.Digest] {
			continue
		}
		if err := c.add(ctx, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// addBlobs adds the configs and layers of a manifest. Those that clients can do without are optional.
func (c *closure) addBlobs(f *found) {
	without := image.Dispensable(f.body)
	for _, b := range f.children {
		if c.seen[b.Digest] {
			if !without[b.Digest] {
				delete(c.optional, b.Digest)
			}
			continue
		}
		c.seen[b.Digest] = true
		c.blobs = append(c.blobs, b)
		c.bytes += b.Size
		if without[b.Digest] {
			c.optional[b.Digest] = true
		}
	}
}

// addReferring adds what refers to a manifest. What can't be had of it is left out: the image is
// whole without it.
func (c *closure) addReferring(ctx context.Context, d digest.Digest) error {
	all, err := c.refer(ctx, d)
	if err != nil {
		return err
	}
	refer := c.refer
	c.refer = nil // what refers to a referring manifest isn't asked for in a pull
	defer func() { c.refer = refer }()
	for _, r := range all[:min(len(all), maxReferring)] {
		if err := c.add(ctx, image.Child{Digest: r, Role: image.RoleManifest}, closureDepth); err != nil && !saysNo(err) {
			return err
		}
	}
	return nil
}

// errPlatform says that an image isn't there for a platform.
var errPlatform = errors.New("not for this platform")

// choose returns the manifests of an index that the platforms need: the one that fits a platform
// best, as clients choose it, and its attestations. Where no manifest fits, those without a
// platform are chosen.
// Errors: errPlatform.
func choose(members []image.Member, wanted []v1.Platform) (map[digest.Digest]bool, error) {
	chosen := map[digest.Digest]bool{}
	for _, want := range wanted {
		best := bestOf(members, want)
		if best != "" {
			chosen[best] = true
			continue
		}
		anonymous := false
		for _, m := range members {
			if m.Platform == nil && m.Attests == "" {
				chosen[m.Digest], anonymous = true, true
			}
		}
		if !anonymous {
			return nil, fmt.Errorf("%w: there is none for %s, but for %s", errPlatform, platforms.Format(want), strings.Join(platformsOf(members), ", "))
		}
	}
	for _, m := range members {
		if chosen[m.Attests] {
			chosen[m.Digest] = true
		}
	}
	return chosen, nil
}

// bestOf returns the manifest that fits a platform best; "" if none does.
func bestOf(members []image.Member, want v1.Platform) (best digest.Digest) {
	fits := platforms.Only(want)
	var of v1.Platform
	for _, m := range members {
		if m.Platform == nil || m.Attests != "" || !fits.Match(*m.Platform) {
			continue
		}
		if best == "" || fits.Less(*m.Platform, of) {
			best, of = m.Digest, *m.Platform
		}
	}
	return best
}

// platformsOf returns the platforms of an index.
func platformsOf(members []image.Member) (names []string) {
	for _, m := range members {
		if isPlatform(m) {
			names = append(names, platforms.Format(*m.Platform))
		}
	}
	return names
}

// isPlatform reports whether a manifest is an image of a platform. Attestations have the platform
// unknown/unknown.
func isPlatform(m image.Member) bool {
	return m.Platform != nil && m.Attests == "" && m.Platform.OS != "unknown"
}

// cachedPlatforms returns those platforms of a cached index whose manifests are cached.
func (m *mirror) cachedPlatforms(ctx context.Context, index digest.Digest) (all []v1.Platform) {
	body, err := m.cachedBody(ctx, index)
	if err != nil {
		return nil
	}
	for _, member := range image.Members(body) {
		if e, ok := m.store.Entry(member.Digest); ok && e.Manifest && isPlatform(member) {
			all = append(all, *member.Platform)
		}
	}
	return all
}

// cachedBody returns the bytes of a cached manifest.
// Errors: those of reading the store, ctx's cause.
func (m *mirror) cachedBody(ctx context.Context, d digest.Digest) ([]byte, error) {
	s, err := m.store.Manifest(d)
	if err != nil {
		return nil, err
	}
	if s.Body != nil {
		return s.Body, nil
	}
	return m.readLarge(ctx, d)
}
