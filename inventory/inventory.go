// Package inventory says which images the store has: what a tag or a digest takes on disk, what
// it shares with others, and whether it is there as a whole.
//
// An image is a tag of a repository whose manifest is cached, or a cached manifest that the
// repository has without a tag and that no other manifest of the repository names. That is what
// a swarm pulls: it asks by digest.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
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
func (i Image) Reference() string {
	if i.Tag == "" {
		return i.Repository + "@" + i.Digest.String()
	}
	return i.Repository + ":" + i.Tag
}

// List is all that a store has.
type List struct {
	Images []Image // ordered by repository, tag and digest
	Other  int64   // bytes that belong to no image: partial downloads, lists of referrers, blobs whose images have gone
}

// Make lists what the store has. It reads the index, and the files of those manifests alone of
// which something is missing. It takes about a second for 100,000 images; images that come and go
// meanwhile may be missing, or have another size.
//
// Errors: ctx's; that the index can't be read.
func Make(ctx context.Context, s *storage.Store) (*List, error) {
	m, err := survey(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := m.countPulls(); err != nil {
		return nil, err
	}
	for at := range m.images {
		for _, id := range m.needs(at) {
			b := m.blobs[id]
			m.images[at].Size += b.size
			if b.images > 1 {
				m.images[at].Shared += b.size
			}
		}
	}
	if err := m.markPinned(m.images); err != nil {
		return nil, err
	}
	other := s.Stats().Bytes
	for _, b := range m.blobs {
		other -= b.size
	}
	return &List{Images: m.images, Other: max(0, other)}, nil
}

// survey finds all images, and what each needs.
func survey(ctx context.Context, s *storage.Store) (*maker, error) {
	m := newMaker(ctx, s)
	// With room for all, so that nothing is copied while it grows.
	st := s.Stats()
	blobs := st.Blobs + st.Manifests
	m.images, m.blobs, m.needed, m.ids = make([]Image, 0, st.Tags), make([]blob, 0, blobs), make([]uint32, 0, blobs), make(map[digest.Digest]uint32, blobs)
	if err := m.collect(); err != nil {
		return nil, err
	}
	m.ends = make([]int, len(m.images))
	for at := range m.images {
		if err := m.ctx.Err(); err != nil {
			return nil, err
		}
		clear(m.seen)
		clear(m.known)
		found, err := m.visit(m.images[at].Digest, 0)
		if err != nil {
			return nil, err
		}
		m.images[at].Complete = found.complete()
		m.ends[at] = len(m.needed)
	}
	return m, nil
}

// needs returns what the image at that place needs.
func (m *maker) needs(at int) []uint32 {
	begin := 0
	if at > 0 {
		begin = m.ends[at-1]
	}
	return m.needed[begin:m.ends[at]]
}

// markPinned says which of some images are pinned.
func (m *maker) markPinned(images []Image) error {
	pins, err := m.store.Pins()
	if err != nil || len(pins) == 0 {
		return err
	}
	pinned, protected := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, p := range pins {
		pinned[p.Digest] = true
		protected[p.Digest] = protected[p.Digest] || p.Protected
	}
	for at := range images {
		i := &images[at]
		i.Pinned, i.Protected = pinned[i.Digest], protected[i.Digest]
	}
	return nil
}

// maker makes a List. Blobs have numbers, because a number takes a twentieth of the memory of a
// digest.
type maker struct {
	ctx    context.Context
	store  *storage.Store
	images []Image
	ids    map[digest.Digest]uint32 // of each blob that an image needs, its place in blobs
	blobs  []blob
	needed []uint32                // what the images need, one image after the other
	ends   []int                   // where in needed each image ends
	seen   map[uint32]bool         // what the image that is looked at needs so far
	known  map[digest.Digest]found // of the manifests of that image, so that each is looked at once

	types     map[string]string                 // media types, by themselves
	referring map[string]map[digest.Digest]bool // by repository: lists of what refers to an image, which are no images
}

func newMaker(ctx context.Context, s *storage.Store) *maker {
	return &maker{ctx: ctx, store: s, ids: map[digest.Digest]uint32{}, seen: map[uint32]bool{}, known: map[digest.Digest]found{}, types: map[string]string{}, referring: map[string]map[digest.Digest]bool{}}
}

// blob is a blob that so many images need.
type blob struct {
	size   int64
	images uint32
}

// need notes that the image that is looked at needs a blob.
func (m *maker) need(e storage.Entry) {
	id, ok := m.ids[e.Digest]
	if !ok {
		id = uint32(len(m.blobs))
		m.ids[e.Digest] = id
		m.blobs = append(m.blobs, blob{size: e.Size})
	}
	if m.seen[id] {
		return
	}
	m.seen[id] = true
	m.blobs[id].images++
	m.needed = append(m.needed, id)
}

// found is what visit finds of one manifest.
type found struct {
	index            bool
	platforms, whole int  // of an index: how many of its manifests are cached, and how many of these as a whole
	layers           bool // of another manifest: it is there as a whole
}

// complete is Image.Complete.
func (f found) complete() bool {
	if f.index {
		return f.platforms > 0 && f.whole == f.platforms
	}
	return f.layers
}

// collect finds the images.
func (m *maker) collect() error {
	err := m.store.EachReferrers(func(repository string, _, list digest.Digest) error {
		if m.referring[repository] == nil {
			m.referring[repository] = map[digest.Digest]bool{}
		}
		m.referring[repository][list] = true
		return m.ctx.Err()
	})
	if err != nil {
		return err
	}
	tagged := map[string]map[digest.Digest]bool{}
	err = m.store.EachTag(func(repository, tag string, t storage.Tag) error {
		e, ok := m.store.Entry(t.Digest)
		if !ok || !e.Manifest {
			return m.ctx.Err()
		}
		if tagged[repository] == nil {
			tagged[repository] = map[digest.Digest]bool{}
		}
		tagged[repository][e.Digest] = true
		m.images = append(m.images, Image{Repository: repository, Tag: tag, Digest: e.Digest, MediaType: m.once(t.MediaType), LastUse: e.LastUse, Checked: t.Checked})
		return m.ctx.Err()
	})
	if err != nil {
		return err
	}
	var others []Image // manifests without a tag
	err = m.store.EachLink(func(repository string, d digest.Digest, _ storage.Link) error {
		if e, ok := m.store.Entry(d); ok && e.Manifest && !tagged[repository][d] && !m.referring[repository][d] {
			others = append(others, Image{Repository: repository, Digest: e.Digest, LastUse: e.LastUse})
		}
		return m.ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := m.addUntagged(others, tagged); err != nil {
		return err
	}
	slices.SortFunc(m.images, func(a, b Image) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Tag, b.Tag), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	return nil
}

// countPulls sets the pulls of the images, which are in order.
func (m *maker) countPulls() error {
	return m.store.EachPulls(func(repository, reference string, n int64) error {
		at, found := slices.BinarySearchFunc(m.images, reference, func(i Image, reference string) int {
			of := i.Tag
			if i.Tag == "" {
				of = string(i.Digest)
			}
			return cmp.Or(strings.Compare(i.Repository, repository), strings.Compare(of, reference))
		})
		if found {
			m.images[at].Pulls = n
		}
		return m.ctx.Err()
	})
}

// once returns the one string that the list has for a media type. There are few of them.
func (m *maker) once(mediaType string) string {
	if s, ok := m.types[mediaType]; ok {
		return s
	}
	m.types[mediaType] = mediaType
	return mediaType
}

// addUntagged adds those manifests without a tag that no other manifest of their repository names.
// others are ordered by repository.
func (m *maker) addUntagged(others []Image, tagged map[string]map[digest.Digest]bool) error {
	for len(others) > 0 {
		n := 1
		for n < len(others) && others[n].Repository == others[0].Repository {
			n++
		}
		named := map[digest.Digest]bool{}
		note := func(d digest.Digest) error {
			_, children, err := m.store.Children(d)
			for _, c := range children {
				if c.Role == image.RoleManifest && c.Digest != d {
					named[c.Digest] = true
				}
			}
			return gone(err)
		}
		for _, more := range []map[digest.Digest]bool{tagged[others[0].Repository], m.referring[others[0].Repository]} {
			for d := range more {
				if err := note(d); err != nil {
					return err
				}
			}
		}
		for _, i := range others[:n] {
			if err := errors.Join(note(i.Digest), m.ctx.Err()); err != nil {
				return err
			}
		}
		for _, i := range others[:n] {
			if named[i.Digest] {
				continue
			}
			mediaType, _, err := m.store.Children(i.Digest)
			if err = gone(err); err != nil {
				return err
			}
			i.MediaType = m.once(mediaType)
			m.images = append(m.images, i)
		}
		others = others[n:]
	}
	return nil
}

// gone makes it no error that something has just left the store.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// maxDepth is how many levels of indexes are followed, as in package storage.
const maxDepth = 4

// visit notes a manifest and all that is cached of what it names.
func (m *maker) visit(d digest.Digest, depth int) (f found, err error) {
	if f, ok := m.known[d]; ok {
		return f, nil
	}
	e, ok := m.store.Entry(d)
	if !ok {
		return f, nil
	}
	m.need(e)
	_, children, err := m.store.Children(d)
	if err != nil || depth == maxDepth {
		return f, gone(err)
	}
	defer func() { m.known[d] = f }()
	f.layers = true
	var without map[digest.Digest]bool // what clients can do without; read only if something is missing
	for _, c := range children {
		e, cached := m.store.Entry(c.Digest)
		switch {
		case c.Role == image.RoleManifest:
			f.index = true
			if !cached || !e.Manifest {
				continue
			}
			child, err := m.visit(c.Digest, depth+1)
			if err != nil {
				return f, err
			}
			f.platforms++
			if child.complete() {
				f.whole++
			}
		case cached:
			m.need(e)
		case f.layers:
			if without == nil {
				if without, err = m.dispensable(d); err != nil {
					return f, err
				}
			}
			f.layers = without[c.Digest]
		}
	}
	return f, nil
}

// dispensable returns what clients of a cached manifest can do without, never nil.
func (m *maker) dispensable(d digest.Digest) (map[digest.Digest]bool, error) {
	body, err := m.body(d)
	if err != nil {
		return nil, err
	}
	without := image.Dispensable(body)
	if without == nil {
		without = map[digest.Digest]bool{}
	}
	return without, nil
}

// maxManifest, in bytes, is the largest manifest that the pull API serves.
const maxManifest = 4 << 20

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
