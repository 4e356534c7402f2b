package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Purge is what a purge removes, or has removed. Sizes are in bytes on disk.
type Purge struct {
	References []string        // whole: what is forgotten; empty if a single blob is purged
	Blobs      []digest.Digest // what leaves the disk, in order
	Freed      int64           // bytes of Blobs
	Kept       int64           // bytes of the image that stay, because other images need them
	KeptFor    []string        // those images, in order
	Partial    []string        // images that lack something from then on; of a single blob only
	Unpinned   []string        // pins that are taken back

	removal storage.Removal
	pins    []storage.Pin
}

// PinnedError says that a purge would remove what is pinned.
type PinnedError struct{ By []string } // references of pins

// Error names the pins, and says what to do.
func (e *PinnedError) Error() string {
	return fmt.Sprintf("it is pinned (%s): unpin it first, or add --unpin", strings.Join(e.By, ", "))
}

// PartError says that what is to be purged is a part of other images.
type PartError struct{ Of []string } // their references

// Error names them, and says what to do.
func (e *PartError) Error() string {
	return fmt.Sprintf("it is a part of %s: purge that, or the digest alone to drop this one manifest", strings.Join(e.Of, ", "))
}

// PlanPurge finds out what the purge of an image removes: a tag, or, by digest, an image with all
// tags of its repository that name it. Other images keep what they need, and so do pins. unpin takes
// back the pins of the image itself.
//
// Errors: fs.ErrNotExist when nothing of it is cached; *PinnedError; *PartError for a digest that is
// only a part of other images of the repository; ctx's; that the index can't be read.
func PlanPurge(ctx context.Context, s *storage.Store, ref name.Reference, unpin bool) (*Purge, error) {
	m, err := look(ctx, s)
	if err != nil {
		return nil, err
	}
	targets, d, err := m.targets(ref)
	if err != nil {
		return nil, err
	}
	p := &Purge{removal: storage.Removal{Repository: ref.Repository}}
	for _, i := range targets {
		p.References = append(p.References, i.reference())
		if i.tag != "" {
			p.removal.Tags = append(p.removal.Tags, i.tag)
		}
	}
	pins, err := p.splitPins(s, ref, unpin)
	if err != nil {
		return nil, err
	}
	goes, err := s.Closure(ref.Repository, d)
	if err != nil {
		return nil, err
	}
	if err := m.keep(p, goes, targets, pins); err != nil {
		return nil, err
	}
	return p, nil
}

// targets returns the images that a reference means, and their digest.
func (m *survey) targets(ref name.Reference) (targets []item, d digest.Digest, err error) {
	for _, i := range m.images {
		if i.repository == ref.Repository && (ref.Tag != "" && i.tag == ref.Tag || ref.Digest != "" && i.digest == ref.Digest) {
			targets = append(targets, i)
		}
	}
	if len(targets) > 0 {
		return targets, targets[0].digest, nil
	}
	if ref.Tag != "" {
		t, err := m.store.Tag(ref.Repository, ref.Tag) // its manifest has left
		return []item{{repository: ref.Repository, tag: ref.Tag}}, t.Digest, err
	}
	if _, err := m.store.Link(ref.Repository, ref.Digest); err != nil {
		return nil, "", err
	}
	if e, ok := m.store.Entry(ref.Digest); !ok || !e.Manifest {
		return nil, "", fs.ErrNotExist
	}
	var of []string
	for _, i := range m.images {
		if i.repository != ref.Repository {
			continue
		}
		c, err := m.store.Closure(i.repository, i.digest)
		if err != nil {
			return nil, "", err
		}
		if _, ok := c[ref.Digest]; ok {
			of = append(of, i.reference())
		}
	}
	if len(of) == 0 {
		return []item{{repository: ref.Repository, digest: ref.Digest}}, ref.Digest, nil
	}
	return nil, "", &PartError{of}
}

// splitPins notes which pins the purge takes back, and returns the others.
// Errors: *PinnedError, if none may be taken back; that the index can't be read.
func (p *Purge) splitPins(s *storage.Store, ref name.Reference, unpin bool) (others []storage.PinState, err error) {
	all, err := s.Pins()
	if err != nil {
		return nil, err
	}
	for _, pin := range all {
		if slices.Contains(p.References, pin.Reference()) || pin.Reference() == ref.String() {
			p.pins = append(p.pins, pin.Pin)
			p.Unpinned = append(p.Unpinned, pin.Reference())
		} else {
			others = append(others, pin)
		}
	}
	if len(p.pins) > 0 && !unpin {
		return nil, &PinnedError{p.Unpinned}
	}
	return others, nil
}

// keep finds out which of the blobs that go other images and pins need, and which links of the
// repository. What isn't needed is removed.
func (m *survey) keep(p *Purge, goes map[digest.Digest]int64, targets []item, pins []storage.PinState) error {
	kept, linked := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	need := func(repository string, d digest.Digest, reference string) {
		kept[d] = true
		linked[d] = linked[d] || repository == p.removal.Repository
		// One image after the other: there may be a hundred thousand that need the same base.
		if n := len(p.KeptFor); n == 0 || p.KeptFor[n-1] != reference {
			p.KeptFor = append(p.KeptFor, reference)
		}
	}
	digests, ids := map[uint32]digest.Digest{}, map[uint32]bool{}
	for d := range goes {
		if id, ok := m.find(storage.MarkOf(d)); ok {
			digests[id], ids[id] = d, true
		}
	}
	target := func(i *item) bool {
		return i.repository == p.removal.Repository && slices.ContainsFunc(targets, func(t item) bool { return t.reference() == i.reference() })
	}
	err := m.shared(ids, target, func(i *item, id uint32) { need(i.repository, digests[id], i.reference()) })
	if err != nil {
		return err
	}
	for _, pin := range pins {
		c, err := m.store.Closure(pin.Repository, pin.Digest)
		if err != nil {
			return err
		}
		for d := range goes {
			if _, ok := c[d]; ok {
				need(pin.Repository, d, pin.Reference())
			}
		}
	}
	p.KeptFor = onceEach(p.KeptFor)
	for _, d := range slices.Sorted(maps.Keys(goes)) {
		if !linked[d] {
			p.removal.Links = append(p.removal.Links, d)
			p.removal.Tags = append(p.removal.Tags, string(d)) // the list of what refers to it, if there is one
		}
		if kept[d] {
			p.Kept += goes[d]
			continue
		}
		p.Freed += goes[d]
		p.Blobs = append(p.Blobs, d)
	}
	p.removal.Blobs = p.Blobs
	return nil
}

// onceEach returns texts without those that were there before, in their order.
func onceEach(texts []string) []string {
	seen := make(map[string]bool, len(texts))
	return slices.DeleteFunc(texts, func(t string) bool {
		had := seen[t]
		seen[t] = true
		return had
	})
}

// PlanPurgeBlob finds out what the purge of one blob or manifest removes, whatever needs it. unpin
// takes back the pins of the images that need it.
//
// Errors: fs.ErrNotExist; *PinnedError; ctx's; that the index can't be read.
func PlanPurgeBlob(ctx context.Context, s *storage.Store, d digest.Digest, unpin bool) (*Purge, error) {
	e, ok := s.Entry(d)
	if !ok {
		return nil, fs.ErrNotExist
	}
	m, err := look(ctx, s)
	if err != nil {
		return nil, err
	}
	p := &Purge{Blobs: []digest.Digest{e.Digest}, Freed: e.Size, removal: storage.Removal{Blobs: []digest.Digest{e.Digest}}}
	if id, ok := m.find(storage.MarkOf(d)); ok {
		nobody := func(*item) bool { return false }
		if err := m.shared(map[uint32]bool{id: true}, nobody, func(i *item, _ uint32) { p.Partial = append(p.Partial, i.reference()) }); err != nil {
			return nil, err
		}
	}
	pins, err := s.Pins()
	if err != nil {
		return nil, err
	}
	for _, pin := range pins {
		c, err := s.Closure(pin.Repository, pin.Digest)
		if err != nil {
			return nil, err
		}
		if _, ok := c[d]; ok {
			p.pins = append(p.pins, pin.Pin)
			p.Unpinned = append(p.Unpinned, pin.Reference())
		}
	}
	if len(p.pins) > 0 && !unpin {
		return nil, &PinnedError{p.Unpinned}
	}
	return p, nil
}

// Run does what was planned. What has come in since the plan was made isn't touched; an image that
// came in since and shares a layer has to fetch it again.
//
// Errors: storage.ErrPinned when something has been pinned since; storage.ErrDisk when a pin can't
// be taken back. In both cases nothing is removed.
func (p *Purge) Run(s *storage.Store) error {
	for _, pin := range p.pins {
		if _, err := s.Unpin(pin.Repository, pin.Tag, pin.Digest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.Purge(p.removal)
}
