package inventory

import (
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/storage"
)

// found is what a walk finds of one manifest.
type found struct {
	index            bool
	platforms, whole uint16 // of an index: how many of its manifests are cached, and how many of these as a whole
	layers           bool   // of another manifest: it is there as a whole
}

// complete is Image.Complete.
func (f found) complete() bool {
	if f.index {
		return f.platforms > 0 && f.whole == f.platforms
	}
	return f.layers
}

// addNeeds finds out what the images need, and which are complete.
func (m *survey) addNeeds() error {
	m.ends, m.needed = make([]int, len(m.images)), make([]uint32, 0, len(m.blobs))
	for at := range m.images {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		f, err := m.walk(m.images[at].id, "", func(id uint32) {
			m.blobs[id].images++
			m.needed = append(m.needed, id)
		})
		if err != nil {
			return err
		}
		m.images[at].complete = f.complete()
		m.ends[at] = len(m.needed)
	}
	return nil
}

// needs returns what the image at that place needs.
func (m *survey) needs(at int) []uint32 {
	begin := 0
	if at > 0 {
		begin = m.ends[at-1]
	}
	return m.needed[begin:m.ends[at]]
}

// walk calls f once for a blob and all that is cached of what it names, if it is a manifest, and, unless
// repository is "", of what refers to it there.
// Errors: that a manifest's file can't be read.
func (m *survey) walk(id uint32, repository string, f func(id uint32)) (found, error) {
	m.visits++
	w := walker{survey: m, referring: m.referring[repository], f: f}
	return w.visit(id, 0)
}

// shared calls f for those of some blobs that other images than those of skip need, or what refers to
// these. Errors: ctx's; those of walk.
func (m *survey) shared(blobs map[uint32]bool, skip func(*item) bool, f func(i *item, id uint32)) error {
	for at := range m.images {
		i := &m.images[at]
		if skip(i) {
			continue
		}
		_, err := m.walk(i.id, i.repository, func(id uint32) {
			if blobs[id] {
				f(i, id)
			}
		})
		if err := errors.Join(err, m.ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// walker is one walk.
type walker struct {
	*survey
	referring map[storage.Mark]storage.Mark
	f         func(id uint32)
}

const (
	// maxDepth is how many levels are followed, as in package storage: indexes, and what refers to a
	// manifest.
	maxDepth = 8
	// maxManifest, in bytes, is the largest manifest that the pull API serves.
	maxManifest = 4 << 20
)

// reach notes that the walk has come to a blob.
func (w *walker) reach(id uint32) {
	if b := &w.blobs[id]; b.visit != w.visits {
		b.visit = w.visits
		w.f(id)
	}
}

// visit goes to a manifest and on to what it names. Of another blob it finds nothing.
func (w *walker) visit(id uint32, depth int) (f found, err error) {
	w.reach(id)
	if w.blobs[id].manifest == 0 || depth > maxDepth {
		return f, nil
	}
	of := &w.manifests[w.blobs[id].manifest-1]
	if of.visit == w.visits {
		return of.found, nil
	}
	f.layers = true
	var without map[storage.Mark]bool // what clients can do without; read only if something is missing
	for _, c := range w.children[of.first:of.end] {
		child, cached := w.find(c.Mark)
		switch {
		case c.Role == image.RoleManifest:
			f.index = true
			if !cached || w.blobs[child].manifest == 0 {
				continue
			}
			of, err := w.visit(child, depth+1)
			if err != nil {
				return f, err
			}
			f.platforms++
			if of.complete() {
				f.whole++
			}
		case cached:
			w.reach(child)
		case f.layers && of.visit > 0: // an earlier walk has found out
			f.layers = of.found.layers
		case f.layers:
			if without == nil {
				if without, err = w.dispensable(of.digest); err != nil {
					return f, err
				}
			}
			f.layers = without[c.Mark]
		}
	}
	of.found, of.visit = f, w.visits
	return f, w.visitReferrers(of.digest, depth)
}

// visitReferrers goes on to what refers to a manifest.
func (w *walker) visitReferrers(d digest.Digest, depth int) error {
	if len(w.referring) == 0 {
		return nil
	}
	if list, ok := w.referring[storage.MarkOf(d)]; ok {
		if id, cached := w.find(list); cached {
			_, err := w.visit(id, depth+1)
			return err
		}
	}
	return nil
}

// dispensable returns what clients of a cached manifest can do without, never nil.
func (m *survey) dispensable(d digest.Digest) (map[storage.Mark]bool, error) {
	body, err := readBody(m.store, d)
	if err != nil {
		return nil, err
	}
	without := map[storage.Mark]bool{}
	for d := range image.Dispensable(body) {
		without[storage.MarkOf(d)] = true
	}
	return without, nil
}
