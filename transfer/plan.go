package transfer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/image"
)

const (
	// maxManifest is how many bytes of a manifest are read. Registries take 4 MiB.
	maxManifest = 4 << 20

	// maxDepth is how many levels of indexes are followed, as in package storage.
	maxDepth = 4
)

// Plan is what an import brings in.
type Plan struct {
	Images   []Planned // the oldest first
	NoRoom   []Image   // for which the budget has no room: the oldest
	Problems []string  // what is damaged or has no name, each with where it is

	Bytes int64 // that come in; what is there already doesn't count
}

// Planned is an image that an import brings in.
type Planned struct {
	Image
	Partial   bool // something that a manifest of it names isn't in the source
	parts     []part
	referrers map[digest.Digest][]v1.Descriptor // of its manifests: what refers to them
}

// part is a blob or manifest.
type part struct {
	digest    digest.Digest
	size      int64
	manifest  bool
	mediaType string // of a manifest
}

// Holder knows what is there already: a store.
type Holder interface {
	Has(digest.Digest) (size int64, ok bool)
}

// MakePlan says what an import from src would bring into a store with so many bytes of free room.
// What is in the store stays; among the images of the source, the ones that were used last come in.
// A nil store is an empty one.
// Errors: those of ctx; that the source can't be read.
func MakePlan(ctx context.Context, src Source, store Holder, room int64) (*Plan, error) {
	images, problems, err := src.Images()
	if err != nil {
		return nil, err
	}
	p := &planner{src: src, store: store, coming: map[digest.Digest]bool{}, named: map[string]bool{}}
	p.Problems = problems
	var all []Planned
	for _, i := range images {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		full := i.Repository + "@" + i.Digest.String()
		if i.Tag == "" && p.named[full] {
			continue
		}
		p.named[full] = i.Tag != ""
		planned, err := p.read(i)
		if err != nil {
			p.Problems = append(p.Problems, fmt.Sprintf("%s: %v", i.Reference(), err))
			continue
		}
		all = append(all, planned)
	}
	// What has no tag is an image of its own only if nothing else of the repository names it.
	all = slices.DeleteFunc(all, func(i Planned) bool { return i.Tag == "" && p.named[i.Repository+"@"+i.Digest.String()] })
	slices.SortStableFunc(all, func(a, b Planned) int {
		return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Reference(), b.Reference()))
	})
	p.choose(all, room)
	slices.Reverse(p.Images)
	return &p.Plan, nil
}

type planner struct {
	Plan
	src    Source
	store  Holder
	coming map[digest.Digest]bool
	named  map[string]bool // "repository@digest" of what a tag or a manifest names
}

// read finds out what an image is made of.
func (p *planner) read(i Image) (Planned, error) {
	out := Planned{Image: i}
	seen := map[digest.Digest]bool{}
	if err := p.walk(&out, i.Digest, i.MediaType, seen, 0); err != nil {
		return out, err
	}
	if i.MediaType == "" {
		out.MediaType = out.parts[len(out.parts)-1].mediaType
	}
	p.refer(&out, seen)
	return out, nil
}

// refer adds what refers to the manifests of an image, and to that. An image comes in without what of it
// is damaged or incomplete.
func (p *planner) refer(out *Planned, seen map[digest.Digest]bool) {
	out.referrers = map[digest.Digest][]v1.Descriptor{}
	for n := 0; n < len(out.parts); n++ { // they become more
		subject := out.parts[n]
		if !subject.manifest {
			continue
		}
		for _, d := range p.src.Referrers(subject.digest) {
			before, partial := len(out.parts), out.Partial
			out.Partial = false
			err := p.walk(out, d.Digest, d.MediaType, seen, 0)
			if err != nil || out.Partial {
				out.parts = out.parts[:before]
			} else {
				out.referrers[subject.digest] = append(out.referrers[subject.digest], d)
			}
			out.Partial = partial
			if err != nil {
				p.Problems = append(p.Problems, fmt.Sprintf("%s: what refers to it: %v", out.Reference(), err))
			}
		}
	}
}

// walk adds a manifest and what it names; the manifest comes after what it names. Children of an
// index may be missing: whoever made the source had no need of them.
func (p *planner) walk(out *Planned, d digest.Digest, mediaType string, seen map[digest.Digest]bool, depth int) error {
	if seen[d] {
		return nil
	}
	seen[d] = true
	body, err := readManifest(p.src, d)
	if err != nil {
		return err
	}
	without := image.Dispensable(body)
	types := map[digest.Digest]string{}
	for _, m := range image.Members(body) {
		types[m.Digest] = m.MediaType
	}
	for _, c := range image.Children(body) {
		if c.Role == image.RoleManifest && depth < maxDepth {
			p.named[out.Repository+"@"+c.Digest.String()] = true
			err := p.walk(out, c.Digest, types[c.Digest], seen, depth+1)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				p.Problems = append(p.Problems, fmt.Sprintf("%s: %v", out.Reference(), err))
			}
			continue
		}
		if seen[c.Digest] {
			continue
		}
		seen[c.Digest] = true
		size, err := p.size(c.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			out.Partial = out.Partial || !without[c.Digest]
			continue
		}
		if err != nil {
			return err
		}
		out.parts = append(out.parts, part{digest: c.Digest, size: size})
	}
	out.parts = append(out.parts, part{digest: d, size: int64(len(body)), manifest: true, mediaType: mediaTypeOf(body, mediaType)})
	return nil
}

// size is that of a blob in the store or in the source.
func (p *planner) size(d digest.Digest) (int64, error) {
	if p.store != nil {
		if size, ok := p.store.Has(d); ok {
			return size, nil
		}
	}
	b, err := p.src.Open(d)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	return b.Size, nil
}

// choose takes images, the last used first, until there is no room for one. One that is larger than
// all the room is left out alone, since no older ones can be left for it.
func (p *planner) choose(all []Planned, room int64) {
	free, full := room, false
	for _, i := range all {
		var bytes int64
		for _, part := range i.parts {
			if !p.here(part.digest) {
				bytes += part.size
			}
		}
		if bytes > free {
			full = full || bytes <= room
		}
		if full || bytes > free {
			p.NoRoom = append(p.NoRoom, i.Image)
			continue
		}
		for _, part := range i.parts {
			p.coming[part.digest] = true
		}
		free -= bytes
		p.Bytes += bytes
		p.Images = append(p.Images, i)
	}
}

// here reports whether a blob is in the store already, or comes with another image.
func (p *planner) here(d digest.Digest) bool {
	if p.coming[d] {
		return true
	}
	if p.store == nil {
		return false
	}
	_, ok := p.store.Has(d)
	return ok
}

// errDamaged: the bytes have another digest than their name says.
var errDamaged = errors.New("is damaged: its bytes have another digest")

// readManifest reads a manifest and checks its digest. Errors: fs.ErrNotExist; that it is damaged
// or too large.
func readManifest(src Source, d digest.Digest) ([]byte, error) {
	b, err := src.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size > maxManifest {
		return nil, fmt.Errorf("%s is too large for a manifest: %d bytes", d, b.Size)
	}
	body := make([]byte, b.Size)
	if _, err := io.ReadFull(io.NewSectionReader(b, 0, b.Size), body); err != nil {
		return nil, fmt.Errorf("reading %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(body) != d {
		return nil, fmt.Errorf("%s %w", d, errDamaged)
	}
	return body, nil
}

// mediaTypeOf is what a manifest says of itself, else what named it says of it, else what an OCI
// manifest of its shape has; that is what a registry does that keeps no media types.
func mediaTypeOf(body []byte, said string) string {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	_ = json.Unmarshal(body, &m) // whatever it is, it has some media type
	switch {
	case m.MediaType != "":
		return m.MediaType
	case said != "":
		return said
	case m.Manifests != nil:
		return v1.MediaTypeImageIndex
	}
	return v1.MediaTypeImageManifest
}
