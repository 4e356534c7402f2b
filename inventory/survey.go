package inventory

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/bits"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/storage"
)

// survey is a look at all that is cached: the images, and what each needs. It reads each bucket of
// the index once, in order, and the files of those manifests alone of which something is missing.
//
// Blobs and manifests have numbers, because there may be a million of them: per blob it keeps 17 bytes
// and its mark, per manifest some sixty bytes and twenty for each child, and per image a row of the
// list. All of it is garbage once the list is made.
type survey struct {
	ctx    context.Context
	store  *storage.Store
	images []item // ordered by repository, tag and digest

	blobs     []blob   // all that is cached, ordered by mark; the place of a blob is its number
	starts    []uint32 // see find
	likely    []uint64 // see maybeManifest
	manifests []manifest
	children  []storage.RowChild // of the manifests, one after the other

	needed []uint32 // what the images need, one after the other
	ends   []int    // where in needed each image ends
	visits uint32   // number of walks so far

	referring map[string]map[storage.Mark]storage.Mark // by repository: of manifests, the lists of what refers to them
}

// item is an image.
type item struct {
	repository, tag string
	digest          digest.Digest
	mediaType       string
	id              uint32 // of its manifest
	complete        bool
	checked         int64 // Unix nanoseconds
	pulls           int64
}

func (i *item) reference() string { return wholeName(i.repository, i.tag, i.digest) }

// blob is a cached blob.
type blob struct {
	mark     storage.Mark
	size     int64
	images   uint32 // how many need it
	manifest uint32 // its number among the manifests, from 1 on; 0 for another blob
	visit    uint32 // the last walk that has come to it
}

// manifest is a cached manifest.
type manifest struct {
	digest     digest.Digest
	mediaType  string
	lastUse    int64  // Unix nanoseconds
	first, end uint32 // its children
	found      found  // by a walk
	visit      uint32 // that walk
}

// look makes a survey, without what the images need. Errors: ctx's; that the index can't be read.
func look(ctx context.Context, s *storage.Store) (*survey, error) {
	m := &survey{ctx: ctx, store: s, referring: map[string]map[storage.Mark]storage.Mark{}}
	// With room for all, so that nothing is copied while it grows.
	st := s.Stats()
	blobs := st.Blobs + st.Manifests
	m.blobs, m.manifests, m.children = make([]blob, 0, blobs), make([]manifest, 0, st.Manifests), make([]storage.RowChild, 0, blobs)
	m.images = make([]item, 0, st.Tags)
	if err := errors.Join(m.readReferrers(), m.readBlobs()); err != nil {
		return nil, err
	}
	// At the same time, since most of it is waiting for memory.
	var others sync.WaitGroup
	var usesErr, linksErr error
	var links []linked
	others.Go(func() { usesErr = m.readUses() })
	others.Go(func() { links, linksErr = m.readLinks() })
	err := m.readTags()
	others.Wait()
	if err := errors.Join(err, usesErr, linksErr); err != nil {
		return nil, err
	}
	m.addUntagged(links)
	slices.SortFunc(m.images, func(a, b item) int {
		return cmp.Or(strings.Compare(a.repository, b.repository), strings.Compare(a.tag, b.tag), strings.Compare(string(a.digest), string(b.digest)))
	})
	return m, nil
}

// digestLength is the length of a digest of SHA-256.
const digestLength = len("sha256:") + 64

func (m *survey) readReferrers() error {
	return m.store.EachReferrers(func(repository string, subject, list digest.Digest) error {
		if m.referring[repository] == nil {
			m.referring[repository] = map[storage.Mark]storage.Mark{}
		}
		m.referring[repository][storage.MarkOf(subject)] = storage.MarkOf(list)
		return m.ctx.Err()
	})
}

func (m *survey) readBlobs() error {
	m.likely = make([]uint64, likelyBits/64)
	var digests strings.Builder // one string for all, of which each is a part
	digests.Grow(cap(m.manifests) * digestLength)
	err := m.store.EachBlob(func(r *storage.Row) error {
		b := blob{mark: r.Mark, size: r.Size}
		if len(r.Manifest) > 0 {
			first := uint32(len(m.children))
			m.children = append(m.children, r.Children...)
			begin := digests.Len()
			digests.Write(r.Manifest)
			m.manifests = append(m.manifests, manifest{digest: digest.Digest(digests.String()[begin:]), mediaType: r.MediaType, first: first, end: uint32(len(m.children))})
			b.manifest = uint32(len(m.manifests))
			at := likelyBit(r.Mark)
			m.likely[at/64] |= 1 << (at % 64)
		}
		m.blobs = append(m.blobs, b)
		return m.ctx.Err()
	})
	byMark := func(a, b blob) int { return bytes.Compare(a.mark[:], b.mark[:]) }
	if !slices.IsSortedFunc(m.blobs, byMark) { // there are digests of several algorithms
		slices.SortFunc(m.blobs, byMark)
	}
	m.starts = make([]uint32, 1<<prefixBits(len(m.blobs))+1)
	for n := range m.blobs {
		m.starts[m.prefix(m.blobs[n].mark)+1]++
	}
	for n := range m.starts[1:] {
		m.starts[n+1] += m.starts[n]
	}
	return err
}

// prefixBits is how many bits of the marks of so many blobs tell most of them apart.
func prefixBits(blobs int) int { return min(bits.Len(uint(blobs)), 24) }

// prefix returns the first bits of a mark, which say where in starts the places of its blob are.
func (m *survey) prefix(mark storage.Mark) uint32 {
	return binary.BigEndian.Uint32(mark[:]) >> (32 - prefixBits(len(m.blobs)))
}

// find returns the number of a cached blob. Digests are spread evenly, so it looks at one or two.
func (m *survey) find(mark storage.Mark) (id uint32, ok bool) {
	at := m.prefix(mark)
	id, end := m.starts[at], m.starts[at+1]
	if end-id > 8 {
		n, _ := slices.BinarySearchFunc(m.blobs[id:end], mark, func(b blob, mark storage.Mark) int { return bytes.Compare(b.mark[:], mark[:]) })
		id += uint32(n)
	}
	for ; id < end; id++ {
		if m.blobs[id].mark == mark {
			return id, true
		}
	}
	return 0, false
}

// maybeManifest reports whether a blob may be a manifest. Of a hundred thousand manifests it is wrong for
// one other blob in twenty, and it looks at a quarter of a megabyte, which stays in the CPU's caches.
// Most links are to other blobs, and to find one of these takes ten times as long.
func (m *survey) maybeManifest(mark storage.Mark) bool {
	at := likelyBit(mark)
	return m.likely[at/64]&(1<<(at%64)) != 0
}

const likelyBits = 1 << 21

// likelyBit returns the place of a mark in likely.
func likelyBit(mark storage.Mark) uint32 { return binary.BigEndian.Uint32(mark[:]) % likelyBits }

func (m *survey) readUses() error {
	next := uint32(0) // both are in the same order, as a rule
	return m.store.EachUse(func(mark storage.Mark, at int64) error {
		id, ok := next, int(next) < len(m.blobs) && m.blobs[next].mark == mark
		if !ok {
			id, ok = m.find(mark)
		}
		if ok {
			next = id + 1
			if n := m.blobs[id].manifest; n > 0 {
				m.manifests[n-1].lastUse = at
			}
		}
		return m.ctx.Err()
	})
}

// of returns the manifest with a digest; nil if no such one is cached.
func (m *survey) of(d digest.Digest) *manifest {
	id, ok := m.find(storage.MarkOf(d))
	if !ok || m.blobs[id].manifest == 0 {
		return nil
	}
	return &m.manifests[m.blobs[id].manifest-1]
}

func (m *survey) readTags() error {
	return m.store.EachTag(func(t storage.TagRow) error {
		if id, ok := m.find(t.Manifest); ok {
			m.add(item{repository: t.Repository, tag: t.Tag, id: id, mediaType: t.MediaType, checked: t.Checked.UnixNano()})
		}
		return m.ctx.Err()
	})
}

// add adds an image, if its blob is a manifest. Its digest is filled in, and its media type if it has none.
func (m *survey) add(i item) {
	if n := m.blobs[i.id].manifest; n > 0 {
		of := &m.manifests[n-1]
		i.digest, i.mediaType = of.digest, cmp.Or(i.mediaType, of.mediaType)
		m.images = append(m.images, i)
	}
}

// linked is a manifest that a repository has.
type linked struct {
	repository string
	id         uint32
}

// readLinks finds the manifests that each repository has.
func (m *survey) readLinks() (all []linked, err error) {
	all = make([]linked, 0, len(m.manifests))
	err = m.store.EachLinkMark(func(repository string, mark storage.Mark, _ bool) error {
		if !m.maybeManifest(mark) {
			return nil
		}
		if id, ok := m.find(mark); ok && m.blobs[id].manifest > 0 {
			all = append(all, linked{repository, id})
		}
		return m.ctx.Err()
	})
	return all, err
}

// addUntagged adds the manifests of each repository that have no tag there, and that no other manifest
// of the repository names. links are ordered by repository, as the images are so far.
func (m *survey) addUntagged(links []linked) {
	tagged := m.images
	for len(links) > 0 {
		repository, n := links[0].repository, 0
		for n < len(links) && links[n].repository == repository {
			n++
		}
		for len(tagged) > 0 && tagged[0].repository < repository {
			tagged = tagged[1:]
		}
		end := 0
		for end < len(tagged) && tagged[end].repository == repository {
			end++
		}
		m.addUntaggedOf(repository, links[:n], tagged[:end])
		links, tagged = links[n:], tagged[end:]
	}
}

// addUntaggedOf is addUntagged for one repository.
func (m *survey) addUntaggedOf(repository string, links []linked, tagged []item) {
	named := make(map[uint32]bool, len(links))
	for n := range tagged {
		named[tagged[n].id] = true
		m.name(tagged[n].id, named)
	}
	for _, mark := range m.referring[repository] {
		if list, ok := m.find(mark); ok {
			named[list] = true
			m.name(list, named)
		}
	}
	for _, l := range links {
		m.name(l.id, named)
	}
	for _, l := range links {
		if !named[l.id] {
			m.add(item{repository: repository, id: l.id})
		}
	}
}

// name notes which other manifests a manifest names.
func (m *survey) name(id uint32, named map[uint32]bool) {
	n := m.blobs[id].manifest
	if n == 0 {
		return
	}
	for _, c := range m.children[m.manifests[n-1].first:m.manifests[n-1].end] {
		if c.Role != image.RoleManifest {
			continue
		}
		if child, ok := m.find(c.Mark); ok && child != id {
			named[child] = true
		}
	}
}

// countPulls sets the pulls of the images.
func (m *survey) countPulls() error {
	images, repository := m.images, "" // those of that repository
	return m.store.EachPulls(func(name, reference string, n int64) error {
		if name != repository {
			begin, _ := slices.BinarySearchFunc(m.images, name, func(i item, name string) int { return strings.Compare(i.repository, name) })
			end := begin
			for end < len(m.images) && m.images[end].repository == name {
				end++
			}
			images, repository = m.images[begin:end], name
		}
		tag, d := reference, ""
		if strings.Contains(reference, ":") {
			tag, d = "", reference
		}
		at, found := slices.BinarySearchFunc(images, tag, func(i item, tag string) int {
			return cmp.Or(strings.Compare(i.tag, tag), strings.Compare(string(i.digest), d)*min(len(d), 1))
		})
		if found {
			images[at].pulls = n
		}
		return m.ctx.Err()
	})
}

// gone makes it no error that something has just left the store.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
