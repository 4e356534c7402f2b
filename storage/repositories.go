package storage

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
)

// repositories is what is known of repositories: their tags and visibility. What belongs to
// something cached is in the index. All else is in memory only, and bounded, because clients can
// invent the names of repositories, and ask for the headers of all tags that a registry has. That
// is the visibility of a repository without a link and without a tag in the index, and a tag
// whose manifest has never been cached.
//
// Methods that return an error, and those for a tag, read the index, and so can wait for a write;
// callers hold no lock then.
type repositories struct {
	catalogue *catalogue
	cached    func(manifest digest.Digest) bool
	files     *repoWriter
	tags      atomic.Int64 // number of tags in the index

	// mu guards what follows. It is never held during I/O or a read of the index, and of the
	// other locks only those of package index are taken while it is held.
	mu        sync.Mutex
	transient transient
	kept      map[string]bool // repositories that have a link or a tag in the index
	added     map[string]bool // those that got one since a sweep began; nil: none goes on
	swept     bool            // no other repository has its visibility in the index
}

// tag returns what a tag last resolved to. Errors: fs.ErrNotExist; that the index can't be
// read.
func (r *repositories) tag(repository, tag string) (Tag, error) {
	r.mu.Lock()
	t, ok := r.transient.tags.Get(taggedName{repository, tag})
	if now := time.Now(); ok && t.Checked.After(now) { // the clock was put back, as below
		t.Checked = now
		r.transient.addTag(repository, tag, t)
	}
	r.mu.Unlock()
	if ok {
		return t.Tag, nil
	}
	kept, err := r.keptTag(repository, tag)
	if now := time.Now(); err == nil && kept.Checked.After(now) {
		// The clock was put back. The tag counts as checked now, and grows old from now on.
		kept.Checked = now
		r.catalogue.index.Update(bucketTags, pair(repository, tag), func(old []byte) []byte {
			if now, err := decodeTag(old); err != nil || now.Digest != kept.Digest {
				return nil
			}
			return kept.encode()
		})
	}
	return kept, err
}

// keptTag is tag for the index alone.
func (r *repositories) keptTag(repository, tag string) (Tag, error) {
	v, err := r.catalogue.index.Get(bucketTags, pair(repository, tag))
	if err != nil {
		return Tag{}, err
	}
	if v == nil {
		return Tag{}, missing{"no such tag cached"}
	}
	return decodeTag(v)
}

// setTag keeps what a tag resolves to: in the index if its manifest is cached, or the index has
// the tag already. It reports whether that is new in the index; if only the time of the check is
// new, it is written with the next batch.
func (r *repositories) setTag(repository, tag string, t Tag) (moved bool) {
	old, err := r.keptTag(repository, tag)
	// First, so that whoever commits the manifest in this moment finds the tag.
	r.mu.Lock()
	r.transient.addTag(repository, tag, transientTag{t, err == nil})
	r.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) && !r.cached(t.Digest) {
		return false
	}
	r.keep(repository, func(name string, _ digest.Digest) bool { return name == tag })
	return err != nil || old.Digest != t.Digest
}

// restoreTag keeps in the index what the file of a repository says of a tag.
func (r *repositories) restoreTag(repository, tag string, t Tag) {
	if _, err := r.keptTag(repository, tag); err != nil {
		r.count(tag, 1)
	}
	r.catalogue.index.Set(bucketTags, pair(repository, tag), t.encode())
	r.catalogue.noteReferrers(repository, tag, t.Digest)
	r.keepVisibility(repository)
}

// keepTagsOf moves the tags that name manifest d from memory to the index, now that it is
// cached. A client that pulls asks for the tag first, and then for the manifest by digest.
func (r *repositories) keepTagsOf(repository string, d digest.Digest) {
	r.keep(repository, func(_ string, named digest.Digest) bool { return named == d })
}

// keepVisibility says that the repository has something in the index, and moves its visibility
// there.
func (r *repositories) keepVisibility(repository string) {
	r.keep(repository, func(string, digest.Digest) bool { return false })
}

// keep is keepVisibility, and moves to the index those tags that wanted names. Call it after
// that which the repository has has been set.
func (r *repositories) keep(repository string, wanted func(tag string, d digest.Digest) bool) {
	r.mu.Lock()
	if !r.kept[repository] {
		repository = strings.Clone(repository) // it may be a part of a longer string
		r.kept[repository] = true
	}
	if r.added != nil {
		r.added[repository] = true
	}
	v, visibility := r.transient.takeVisibility(repository)
	if visibility {
		r.catalogue.index.Set(bucketVisibility, []byte(repository), v.encode())
	}
	tags := r.transient.takeTags(repository, wanted)
	for tag, t := range tags {
		r.catalogue.index.Set(bucketTags, pair(repository, tag), t.encode())
		r.catalogue.noteReferrers(repository, tag, t.Digest)
		if !t.kept {
			r.count(tag, 1)
		}
	}
	r.mu.Unlock()
	switch {
	case visibility:
		r.files.changedNow(repository) // that it is private must outlive the index
	case len(tags) > 0:
		r.files.changed(repository)
	}
}

// deleteTag forgets a tag. It reports whether the index had it.
func (r *repositories) deleteTag(repository, tag string) bool {
	r.mu.Lock()
	r.transient.tags.Remove(taggedName{repository, tag})
	r.mu.Unlock()
	if _, err := r.keptTag(repository, tag); err != nil {
		return false
	}
	r.catalogue.index.Delete(bucketTags, pair(repository, tag))
	r.catalogue.dropReferrers(repository, tag)
	if !isReferrers(tag) {
		r.catalogue.index.Delete(bucketPulls, pair(repository, tag))
	}
	r.count(tag, -1)
	return true
}

// count counts a row among the tags, if it is a tag.
func (r *repositories) count(tag string, n int64) {
	if !isReferrers(tag) {
		r.tags.Add(n)
	}
}

// taggedName is a tag of a repository.
type taggedName struct{ repository, tag string }

// visibility returns whether the repository is public. Errors: fs.ErrNotExist; that the index
// can't be read.
func (r *repositories) visibility(repository string) (Visibility, error) {
	r.mu.Lock()
	v, ok := r.transient.visibility.Get(repository)
	r.mu.Unlock()
	if ok {
		return v, nil
	}
	encoded, err := r.catalogue.index.Get(bucketVisibility, []byte(repository))
	if err != nil {
		return Visibility{}, err
	}
	if encoded == nil {
		return Visibility{}, missing{"visibility not known"}
	}
	return decodeVisibility(encoded)
}

// setVisibility keeps whether the repository is public: in the index if it has something there.
func (r *repositories) setVisibility(repository string, v Visibility) {
	r.mu.Lock()
	kept := r.kept[repository]
	switch {
	case kept:
		r.transient.visibility.Remove(repository)
		r.catalogue.index.Set(bucketVisibility, []byte(repository), v.encode())
	default:
		r.transient.visibility.Add(strings.Clone(repository), v)
		if !r.swept { // an older one must not come back when this one is forgotten
			r.catalogue.index.Delete(bucketVisibility, []byte(repository))
		}
	}
	r.mu.Unlock()
	if kept {
		r.files.changedNow(repository)
	}
}

// load says that the index has something of a repository. It is called while the index is
// opened.
func (r *repositories) load(repository []byte) {
	if !r.kept[string(repository)] {
		r.kept[string(repository)] = true
	}
}

// knownVisibility is the visibility of a repository.
type knownVisibility struct {
	repository string
	Visibility
}

// sweep moves the visibility of repositories of which the index has nothing else to memory.
// Errors: that the index can't be read.
func (r *repositories) sweep() error {
	r.mu.Lock()
	r.added = map[string]bool{}
	r.mu.Unlock()
	kept := map[string]bool{}
	var errs []error
	for _, bucket := range [][]byte{bucketLinks, bucketTags} {
		names, err := r.catalogue.repositoriesIn(bucket)
		errs = append(errs, err)
		for _, name := range names {
			kept[name] = true
		}
	}
	var unneeded []knownVisibility
	errs = append(errs, r.catalogue.index.Each(bucketVisibility, nil, func(k, v []byte) error {
		known, err := decodeVisibility(v)
		if err == nil && !kept[string(k)] {
			unneeded = append(unneeded, knownVisibility{string(k), known})
		}
		return err
	}))
	// The newest last: the oldest are forgotten if they are too many.
	slices.SortFunc(unneeded, func(a, b knownVisibility) int { return a.At.Compare(b.At) })

	r.mu.Lock()
	defer r.mu.Unlock()
	added := r.added
	r.added = nil
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for name := range added {
		kept[name] = true
	}
	r.kept = kept
	for _, v := range unneeded {
		if kept[v.repository] {
			continue
		}
		if !r.transient.visibility.Contains(v.repository) { // what is there is newer
			r.transient.visibility.Add(v.repository, v.Visibility)
		}
		r.catalogue.index.Delete(bucketVisibility, []byte(v.repository))
	}
	r.swept = true
	return nil
}

// names returns the names, sorted, of those under a registry that have a tag whose
// manifest is cached. Errors: that the index can't be read.
func (r *repositories) names(registry string) ([]string, error) {
	var names []string
	err := r.catalogue.index.Each(bucketTags, []byte(registry+"/"), func(k, v []byte) error {
		name, tag := unpair(k)
		if len(names) > 0 && names[len(names)-1] == name || isReferrers(tag) {
			return nil
		}
		t, err := decodeTag(v)
		if r.cached(t.Digest) {
			names = append(names, name)
		}
		return err
	})
	// In the index a name ends in \0, which sorts before - and . and /, so the order there is
	// another one.
	slices.Sort(names)
	return names, err
}

// transient is what is in memory only. Beyond its limits it forgets what was used least recently;
// that is asked for again. Not safe for concurrent use.
type transient struct {
	visibility *simplelru.LRU[string, Visibility] // by repository
	tags       *simplelru.LRU[taggedName, transientTag]
	tagsOf     map[string]map[string]bool // repository → those of its tags that are in tags
}

// transientTag is a tag that may be moved to the index.
type transientTag struct {
	Tag
	kept bool // the index has an older value of it
}

const (
	// maxTransient is how many repositories, and how many tags, a transient remembers. They
	// take 10 MB if all names are as long as they can be.
	maxTransient = 10_000
	// maxTransientTags is how many tags of one repository it remembers, so that who asks for
	// all tags of one pushes out little of what is known of others.
	maxTransientTags = 1000
)

func newTransient() transient {
	m := transient{tagsOf: map[string]map[string]bool{}}
	// The only error is a size of 0.
	m.visibility, _ = simplelru.NewLRU[string, Visibility](maxTransient, nil)
	m.tags, _ = simplelru.NewLRU(maxTransient, func(t taggedName, _ transientTag) {
		delete(m.tagsOf[t.repository], t.tag)
		if len(m.tagsOf[t.repository]) == 0 {
			delete(m.tagsOf, t.repository)
		}
	})
	return m
}

// addTag adds or replaces a tag.
func (m *transient) addTag(repository, tag string, t transientTag) {
	repository, tag = strings.Clone(repository), strings.Clone(tag) // they may be parts of a longer string
	if !m.tagsOf[repository][tag] && len(m.tagsOf[repository]) >= maxTransientTags {
		for other := range m.tagsOf[repository] { // any one
			m.tags.Remove(taggedName{repository, other})
			break
		}
	}
	m.tags.Add(taggedName{repository, tag}, t)
	if m.tagsOf[repository] == nil {
		m.tagsOf[repository] = map[string]bool{}
	}
	m.tagsOf[repository][tag] = true
}

// takeVisibility removes and returns the visibility of a repository.
func (m *transient) takeVisibility(repository string) (v Visibility, ok bool) {
	v, ok = m.visibility.Peek(repository)
	if ok {
		m.visibility.Remove(repository)
	}
	return v, ok
}

// takeTags removes and returns the tags of a repository that wanted names.
func (m *transient) takeTags(repository string, wanted func(tag string, d digest.Digest) bool) map[string]transientTag {
	var taken map[string]transientTag
	for tag := range m.tagsOf[repository] {
		t, _ := m.tags.Peek(taggedName{repository, tag})
		if !wanted(tag, t.Digest) {
			continue
		}
		if taken == nil {
			taken = map[string]transientTag{}
		}
		taken[tag] = t
	}
	for tag := range taken {
		m.tags.Remove(taggedName{repository, tag})
	}
	return taken
}
