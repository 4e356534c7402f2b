package inventory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Detail is all that the store knows of one image. All sizes are bytes.
type Detail struct {
	Image
	Freed      int64               // what a purge frees: the part of Size that no other image needs, and what refers to the image
	Visibility *storage.Visibility // nil: nobody has asked for it
	Index      bool                // Manifests are those that it names; else it is the only one itself
	Manifests  []Manifest
	Sharing    []Sharing // with whom it shares, the one with most bytes first; at most maxSharing
	Sharers    int       // how many images that are in all
}

// Manifest is a manifest for one platform, or an attestation of one.
type Manifest struct {
	Digest    digest.Digest
	MediaType string        // "" if it is absent
	Platform  *v1.Platform  // nil if nobody says which
	Attests   digest.Digest // the manifest that it is an attestation of; "" if it is none
	State     State
	Size      int64 // all of it and of what it names, as far as is known
	Cached    int64 // the part of Size that is here
	Parts     []Part
}

// Part is a manifest's config or one of its layers.
type Part struct {
	Digest       digest.Digest
	Config       bool   // else a layer
	MediaType    string // "" if the manifest says none
	State        State
	Size         int64     // as the manifest says, if it isn't here
	Cached       int64     // bytes that are here
	Arrived      time.Time // when it came in; zero if it isn't here as a whole
	Repositories []string  // under which the upstream has served it or answered for it; at most maxSources
	Images       int       // other images that need it
}

// Sharing is another image that needs some of the same blobs.
type Sharing struct {
	Reference string
	Bytes     int64
}

// State says how much of something is here.
type State string

// The values of State.
const (
	Whole   State = "whole"
	Partial State = "partial"
	Absent  State = "absent"
)

const (
	maxSharing = 20
	maxSources = 5
	// maxConfig is how much of an image's config is read for its platform. Real ones have some
	// kilobytes.
	maxConfig = 1 << 20
)

// notCached is an error for an image that isn't there. It is fs.ErrNotExist.
type notCached struct {
	ref name.Reference
	why string
}

func (e notCached) Error() string        { return e.ref.String() + " is not cached: " + e.why }
func (e notCached) Is(target error) bool { return target == fs.ErrNotExist }

// Inspect tells all that the store knows of one image. To know what it shares, it looks at all
// images, and takes as long as Make. It is not a use.
//
// Errors: fs.ErrNotExist with the reference and the reason; ctx's; that the index or a manifest
// can't be read.
func Inspect(ctx context.Context, s *storage.Store, ref name.Reference) (*Detail, error) {
	i, err := find(s, ref)
	if err != nil {
		return nil, err
	}
	all, err := look(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := all.addNeeds(); err != nil {
		return nil, err
	}
	id, ok := all.find(storage.MarkOf(i.Digest))
	if !ok {
		return nil, notCached{ref, left}
	}
	var own []uint32 // blobs of the image
	found, err := all.walk(id, "", func(id uint32) { own = append(own, id) })
	if err != nil {
		return nil, err
	}
	i.Complete = found.complete()
	pinned, err := pinsOf(s)
	if err != nil {
		return nil, err
	}
	d := &Detail{Image: pinned.mark(i), Index: found.index}
	others := d.share(own, all)
	if err := d.free(id, all); err != nil {
		return nil, err
	}
	v, err := s.Visibility(i.Repository)
	switch {
	case err == nil:
		d.Visibility = &v
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	sources, err := all.sources(own)
	if err != nil {
		return nil, err
	}
	e := examiner{survey: all, others: others, sources: sources}
	if err := e.examine(image.Member{Digest: i.Digest}, 0); err != nil {
		return nil, err
	}
	d.Manifests = e.manifests
	return d, nil
}

// left says why an image isn't there whose tag or link is.
const left = "its manifest has left the cache, or has never been here"

// find finds the image that a reference names, without its sizes. Errors: notCached; that the index
// can't be read.
func find(s *storage.Store, ref name.Reference) (Image, error) {
	i := Image{Repository: ref.Repository, Tag: ref.Tag, Digest: ref.Digest}
	if ref.Tag != "" {
		t, err := s.Tag(ref.Repository, ref.Tag)
		if errors.Is(err, fs.ErrNotExist) {
			return i, notCached{ref, "nobody has pulled this tag"}
		}
		if err != nil {
			return i, err
		}
		i.Digest, i.Checked = t.Digest, t.Checked
	}
	e, ok := s.Entry(i.Digest)
	_, err := s.Link(i.Repository, i.Digest)
	switch {
	case ok && !e.Manifest:
		return i, notCached{ref, "the digest is that of a layer or a config"}
	case !ok || errors.Is(err, fs.ErrNotExist):
		return i, notCached{ref, left}
	case err != nil:
		return i, err
	}
	i.LastUse = e.LastUse
	reference := cmp.Or(ref.Tag, string(ref.Digest))
	if i.Pulls, err = s.Pulls(i.Repository, reference); err != nil {
		return i, err
	}
	i.MediaType, _, err = s.Children(i.Digest)
	return i, gone(err)
}

// share fills in what the image takes, which needs those blobs, and what it shares. It returns by how
// many other images each blob is needed.
func (d *Detail) share(own []uint32, all *survey) (others map[uint32]int) {
	others = map[uint32]int{}
	listed := 0
	if slices.ContainsFunc(all.images, d.is) {
		listed = 1
	}
	for _, id := range own {
		others[id] = int(all.blobs[id].images) - listed
		d.Size += all.blobs[id].size
		if others[id] > 0 {
			d.Shared += all.blobs[id].size
		}
	}
	for at := range all.images {
		sum := int64(0)
		for _, id := range all.needs(at) {
			if _, ok := others[id]; ok {
				sum += all.blobs[id].size
			}
		}
		if i := all.images[at]; sum > 0 && !d.is(i) {
			d.Sharing = append(d.Sharing, Sharing{i.reference(), sum})
		}
	}
	d.Sharers = len(d.Sharing)
	slices.SortStableFunc(d.Sharing, func(a, b Sharing) int { return cmp.Compare(b.Bytes, a.Bytes) })
	d.Sharing = slices.Clip(d.Sharing[:min(len(d.Sharing), maxSharing)])
	return others
}

// is reports whether it is about that image.
func (d *Detail) is(i item) bool {
	return i.repository == d.Repository && i.tag == d.Tag && (i.tag != "" || i.digest == d.Digest)
}

// free fills in what a purge of the image frees. id is its manifest.
func (d *Detail) free(id uint32, all *survey) error {
	goes := map[uint32]bool{}
	if _, err := all.walk(id, d.Repository, func(id uint32) { goes[id] = true }); err != nil {
		return err
	}
	if err := all.shared(goes, func(i *item) bool { return d.is(*i) }, func(_ *item, id uint32) { goes[id] = false }); err != nil {
		return err
	}
	for id, alone := range goes {
		if alone {
			d.Freed += all.blobs[id].size
		}
	}
	return nil
}

// sources returns the repositories under which the upstream has served some blobs, or has answered for
// them.
func (m *survey) sources(blobs []uint32) (map[uint32][]string, error) {
	sources := map[uint32][]string{}
	for _, id := range blobs {
		sources[id] = nil
	}
	err := m.store.EachLinkMark(func(repository string, mark storage.Mark, confirmed bool) error {
		id, ok := m.find(mark)
		if have, of := sources[id]; ok && of && confirmed && len(have) < maxSources {
			sources[id] = append(have, repository)
		}
		return m.ctx.Err()
	})
	return sources, err
}

// examiner describes the manifests of an image that the maker has visited.
type examiner struct {
	*survey
	others    map[uint32]int
	sources   map[uint32][]string
	manifests []Manifest
}

// examine describes a manifest, or those that it names if it is an index.
func (e *examiner) examine(m image.Member, depth int) error {
	entry, ok := e.store.Entry(m.Digest)
	if !ok || !entry.Manifest {
		e.manifests = append(e.manifests, Manifest{Digest: m.Digest, Platform: m.Platform, Attests: m.Attests, State: Absent})
		return e.ctx.Err()
	}
	body, err := readBody(e.store, m.Digest)
	if err != nil {
		return err
	}
	mediaType, children, err := e.store.Children(m.Digest)
	if err = gone(err); err != nil {
		return err
	}
	if members := image.Members(body); len(members) > 0 && depth < maxDepth {
		for _, member := range members {
			if err := e.examine(member, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	d := Manifest{Digest: m.Digest, MediaType: mediaType, Platform: m.Platform, Attests: m.Attests, Size: entry.Size, Cached: entry.Size, State: Partial}
	if of := e.of(m.Digest); of != nil && of.found.complete() {
		d.State = Whole
	}
	types := mediaTypes(body)
	for _, c := range children {
		p := e.part(c)
		p.MediaType = types[c.Digest]
		d.Size += p.Size
		d.Cached += p.Cached
		d.Parts = append(d.Parts, p)
		if c.Role == image.RoleConfig && d.Platform == nil && p.State == Whole && p.Size <= maxConfig {
			d.Platform = e.platform(c.Digest)
		}
	}
	e.manifests = append(e.manifests, d)
	return nil
}

// part describes a config or a layer.
func (e *examiner) part(c image.Child) Part {
	p := Part{Digest: c.Digest, Config: c.Role == image.RoleConfig, State: Absent, Size: c.Size}
	if id, ok := e.find(storage.MarkOf(c.Digest)); ok {
		p.Images, p.Repositories = e.others[id], e.sources[id]
	}
	if entry, ok := e.store.Entry(c.Digest); ok {
		p.State, p.Size, p.Cached, p.Arrived = Whole, entry.Size, entry.Size, entry.Arrived
	} else if have := e.store.Arrived(c.Digest); have > 0 {
		p.State, p.Cached = Partial, have
	}
	return p
}

// platform reads the platform in the config of an image; nil if it says none.
func (e *examiner) platform(config digest.Digest) *v1.Platform {
	body, err := readBody(e.store, config)
	var p v1.Platform
	if err != nil || json.Unmarshal(body, &p) != nil || p.OS == "" || p.Architecture == "" {
		return nil
	}
	return &p
}

// mediaTypes returns the media types of what the manifest in body names.
func mediaTypes(body []byte) map[digest.Digest]string {
	var m v1.Manifest
	if json.Unmarshal(body, &m) != nil {
		return nil // the parts are described without
	}
	types := map[digest.Digest]string{m.Config.Digest: m.Config.MediaType}
	for _, l := range m.Layers {
		types[l.Digest] = l.MediaType
	}
	return types
}

// readBody reads a cached manifest or config; nil if it has just left.
func readBody(s *storage.Store, d digest.Digest) ([]byte, error) {
	b, err := s.Open(d)
	if err != nil {
		return nil, gone(err)
	}
	defer b.Close()
	return io.ReadAll(io.LimitReader(b.File, maxManifest))
}
