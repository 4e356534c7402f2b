// Package inventory says which images the store has: what a tag or a digest takes on disk, what
// it shares with others, and whether it is there as a whole.
//
// An image is a tag of a repository whose manifest is cached, or a cached manifest that the
// repository has without a tag and that no other manifest of the repository names. That is what
// a swarm pulls: it asks by digest.
package inventory

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Image is one image of the store. All sizes are bytes on disk.
type Image struct {
	Repository string        // with its registry: docker.io/library/redis
	Tag        string        // "" for an image that is known by its digest alone
	Digest     digest.Digest // of its index, or of its one manifest
	MediaType  string
	Size       int64 // all that is cached of it, each blob once
	Shared     int64 // the part of Size that other images need too
	Complete   bool  // every platform that is cached is there as a whole, and at least one is
	Pinned     bool  // a pin names it: by this tag, by another one that names the same, or by its digest
	Protected  bool  // the pin keeps it from being evicted
	Pulls      int64 // how often it was asked for by its tag, or, without one, by its digest
	LastUse    time.Time
	Checked    time.Time // when the upstream last said what the tag names; zero without a tag
}

// Reference is the whole name: docker.io/library/redis:7, or with @ and the digest.
func (i Image) Reference() string { return wholeName(i.Repository, i.Tag, i.Digest) }

func wholeName(repository, tag string, d digest.Digest) string {
	if tag == "" {
		return repository + "@" + string(d)
	}
	return repository + ":" + tag
}

// Make lists what the store has. It reads the index, and the files of those manifests alone of
// which something is missing. It takes about a third of a second for 100,000 images; images that come
// and go meanwhile may be missing, or have another size.
//
// Errors: ctx's; that the index can't be read.
func Make(ctx context.Context, s *storage.Store) (*List, error) {
	m, err := look(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := m.addNeeds(); err != nil {
		return nil, err
	}
	if err := m.countPulls(); err != nil {
		return nil, err
	}
	pinned, err := pinsOf(s)
	if err != nil {
		return nil, err
	}
	b := newListBuilder(len(m.images))
	for at := range m.images {
		b.add(pinned.mark(m.image(at)))
	}
	other := s.Stats().Bytes
	for _, b := range m.blobs {
		if b.images > 0 {
			other -= b.size
		}
	}
	return b.list(max(0, other)), nil
}

// image describes the image at that place, but for its pins.
func (m *survey) image(at int) Image {
	i := &m.images[at]
	out := Image{
		Repository: i.repository, Tag: i.tag, Digest: i.digest, MediaType: i.mediaType, Complete: i.complete, Pulls: i.pulls,
		LastUse: time.Unix(0, m.manifests[m.blobs[i.id].manifest-1].lastUse),
	}
	if i.tag != "" {
		out.Checked = time.Unix(0, i.checked)
	}
	for _, id := range m.needs(at) {
		b := m.blobs[id]
		out.Size += b.size
		if b.images > 1 {
			out.Shared += b.size
		}
	}
	return out
}

// pinned says of digests that pins name whether they are protected.
type pinned map[digest.Digest]bool

func pinsOf(s *storage.Store) (pinned, error) {
	pins, err := s.Pins()
	p := pinned{}
	for _, pin := range pins {
		p[pin.Digest] = p[pin.Digest] || pin.Protected
	}
	return p, err
}

// mark says of an image whether it is pinned.
func (p pinned) mark(i Image) Image {
	if len(p) > 0 {
		i.Protected, i.Pinned = p[i.Digest]
	}
	return i
}

// HasPrefix reports whether the reference of an image begins with text, in one of the spellings that
// people use.
func (i Image) HasPrefix(text string) bool {
	return text == "" || name.Begins(i.Reference(), text) != ""
}

// Match reports whether an image matches a pattern as people write it: redis, redis:7*,
// library/*, ghcr.io/*/*. A * doesn't match a slash, docker.io is understood, and a pattern
// without a tag matches every tag. The empty pattern and * alone match everything. A malformed pattern
// matches nothing; check it with path.Match.
func (i Image) Match(pattern string) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	repository, tag := pattern, ""
	if at := strings.LastIndexByte(pattern, ':'); at > strings.LastIndexByte(pattern, '/') {
		repository, tag = pattern[:at], pattern[at+1:]
	}
	if tag != "" {
		if ok, _ := path.Match(tag, i.Tag); !ok || i.Tag == "" {
			return false
		}
	}
	if ok, _ := path.Match(repository, i.Repository); ok {
		return true
	}
	hubName, onHub := strings.CutPrefix(i.Repository, "docker.io/")
	if !onHub {
		return false
	}
	ok, _ := path.Match(name.NormalizePattern(repository), hubName)
	return ok
}
