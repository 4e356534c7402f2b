package storage

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
)

// A repository's name, here as everywhere in this package, begins with its registry:
// "docker.io/library/redis".

// catalogue is what the index knows: the records and last uses of blobs, and of repositories
// the links, tags and visibility. Methods that return an error read the index, and so can wait
// for a write; callers hold no lock then.
type catalogue struct {
	index *index.Index // set by load, before anything else runs
	tags  atomic.Int64 // number of tags

	// mu guards what follows. It is never held during I/O or a read of the index, and no other
	// lock of this package is taken while it is held.
	mu     sync.Mutex
	sweeps int64           // number of sweeps that have begun
	linked map[string]bool // keys of links that were set or found good since a sweep began; nil: none goes on
}

// record returns the record of d. Errors: fs.ErrNotExist; that the index can't be read.
func (c *catalogue) record(d digest.Digest) (record, error) {
	v, err := c.index.Get(bucketBlobs, []byte(d))
	if err != nil {
		return record{}, err
	}
	if v == nil {
		return record{}, missing{"not in the index"}
	}
	return decodeRecord(v)
}

func (c *catalogue) setRecord(d digest.Digest, r record) {
	c.index.Set(bucketBlobs, []byte(d), r.encode())
}

// amend changes the record of d, if there is one. change may be called more than once.
func (c *catalogue) amend(d digest.Digest, change func(*record)) {
	c.index.Update(bucketBlobs, []byte(d), func(old []byte) []byte {
		if old == nil {
			return nil
		}
		r, err := decodeRecord(old)
		if err != nil {
			return nil
		}
		change(&r)
		return r.encode()
	})
}

func (c *catalogue) setUse(d digest.Digest, t time.Time) {
	c.index.Set(bucketUses, []byte(d), encodeTime(t))
}

// forget removes the record and the last use of d.
func (c *catalogue) forget(d digest.Digest) {
	c.index.Delete(bucketBlobs, []byte(d))
	c.index.Delete(bucketUses, []byte(d))
}

// linkOf returns what links blob d to the repository. Errors: fs.ErrNotExist; that the index
// can't be read.
func (c *catalogue) linkOf(repository string, d digest.Digest) (Link, error) {
	v, err := c.index.Get(bucketLinks, pair(repository, string(d)))
	if err != nil {
		return Link{}, err
	}
	if v == nil {
		return Link{}, missing{"not linked to " + repository}
	}
	return decodeLink(v)
}

// link links d to the repository, unless there is a better link. It reports whether it has
// changed something.
func (c *catalogue) link(repository string, d digest.Digest, l Link) (set bool) {
	key := pair(repository, string(d))
	better := func(old []byte) []byte {
		if o, err := decodeLink(old); old != nil && err == nil && (o == l || o.Confirmed && (!l.Confirmed || l.Size < 0)) {
			return nil
		}
		return l.encode()
	}
	for before := c.needLink(key); ; {
		changed, err := c.index.Update(bucketLinks, key, better)
		if err != nil {
			c.index.Set(bucketLinks, key, l.encode())
			changed = true
		}
		set = set || changed
		// A sweep that began meanwhile doesn't know that the link is needed, and may have
		// removed the one that was found good.
		now := c.needLink(key)
		if now == before {
			return set
		}
		before = now
	}
}

// needLink tells a sweep that is going on that the link of key is needed. It returns the
// number of sweeps so far.
func (c *catalogue) needLink(key []byte) (sweeps int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.linked != nil {
		c.linked[string(key)] = true
	}
	return c.sweeps
}

// linkCommitted links blob d, of so many bytes, to the repository that it has just come in
// from. No link is better, so there is no need to read the old one.
func (c *catalogue) linkCommitted(repository string, d digest.Digest, size int64) {
	key := pair(repository, string(d))
	c.needLink(key)
	c.index.Set(bucketLinks, key, Link{true, size}.encode())
}

// linkChildren links what a manifest names, as named, unless there are better links.
func (c *catalogue) linkChildren(repository string, children []image.Child) {
	for _, child := range children {
		c.link(repository, child.Digest, Link{false, child.Size})
	}
}

// linkedRepositories returns the names of the repositories that have links.
func (c *catalogue) linkedRepositories() (names []string, err error) {
	err = c.index.Each(bucketLinks, nil, func(k, _ []byte) error {
		name, _ := unpair(k)
		if n := len(names); n == 0 || names[n-1] != name {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// links returns the keys of a repository's links, by digest.
func (c *catalogue) links(repository string) (map[digest.Digest][]byte, error) {
	links := map[digest.Digest][]byte{}
	err := c.index.Each(bucketLinks, pair(repository, ""), func(k, _ []byte) error {
		_, d := unpair(k)
		links[digest.Digest(d)] = bytes.Clone(k)
		return nil
	})
	return links, err
}

// beginSweep begins to note which links are needed.
func (c *catalogue) beginSweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweeps++
	c.linked = map[string]bool{}
}

// endSweep removes the links of these keys that were not needed since beginSweep, and returns
// the repositories that have lost one.
func (c *catalogue) endSweep(keys [][]byte) (changed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		if c.linked[string(k)] {
			continue
		}
		c.index.Delete(bucketLinks, k)
		name, _ := unpair(k)
		changed = append(changed, name)
	}
	c.linked = nil
	return changed
}

// tag returns what a tag last resolved to. Errors: fs.ErrNotExist; that the index can't be
// read.
func (c *catalogue) tag(repository, tag string) (Tag, error) {
	v, err := c.index.Get(bucketTags, pair(repository, tag))
	if err != nil {
		return Tag{}, err
	}
	if v == nil {
		return Tag{}, missing{"no such tag cached"}
	}
	return decodeTag(v)
}

// setTag keeps what a tag resolves to. It reports whether that is new; if only the time of the
// check is new, it is written with the next batch.
func (c *catalogue) setTag(repository, tag string, t Tag) (moved bool) {
	old, err := c.tag(repository, tag)
	c.index.Set(bucketTags, pair(repository, tag), t.encode())
	if err != nil {
		c.tags.Add(1)
	}
	return err != nil || old.Digest != t.Digest
}

// deleteTag forgets a tag. It reports whether there was one.
func (c *catalogue) deleteTag(repository, tag string) bool {
	if _, err := c.tag(repository, tag); err != nil {
		return false
	}
	c.index.Delete(bucketTags, pair(repository, tag))
	c.tags.Add(-1)
	return true
}

// taggedName is a tag of a repository.
type taggedName struct{ repository, tag string }

// staleTags returns the tags whose manifests are not cached and that were last checked before
// that time.
func (c *catalogue) staleTags(before time.Time, cached func(digest.Digest) bool) (stale []taggedName, err error) {
	err = c.index.Each(bucketTags, nil, func(k, v []byte) error {
		t, err := decodeTag(v)
		if !cached(t.Digest) && t.Checked.Before(before) {
			repository, tag := unpair(k)
			stale = append(stale, taggedName{repository, tag})
		}
		return err
	})
	return stale, err
}

// visibility returns whether the repository is public. Errors: fs.ErrNotExist; that the index
// can't be read.
func (c *catalogue) visibility(repository string) (Visibility, error) {
	v, err := c.index.Get(bucketVisibility, []byte(repository))
	if err != nil {
		return Visibility{}, err
	}
	if v == nil {
		return Visibility{}, missing{"visibility not known"}
	}
	return decodeVisibility(v)
}

func (c *catalogue) setVisibility(repository string, v Visibility) {
	c.index.Set(bucketVisibility, []byte(repository), v.encode())
}

// repositories returns the names, sorted, of those under a registry that have a tag whose
// manifest is cached. Errors: that the index can't be read.
func (c *catalogue) repositories(registry string, cached func(digest.Digest) bool) ([]string, error) {
	var names []string
	err := c.index.Each(bucketTags, []byte(registry+"/"), func(k, v []byte) error {
		name, _ := unpair(k)
		if len(names) > 0 && names[len(names)-1] == name {
			return nil
		}
		t, err := decodeTag(v)
		if cached(t.Digest) {
			names = append(names, name)
		}
		return err
	})
	// In the index a name ends in \0, which sorts before - and . and /, so the order there is
	// another one.
	slices.Sort(names)
	return names, err
}

// describe returns what the file of a repository is to say. Errors: that the index can't be
// read.
func (c *catalogue) describe(name string, isManifest func(digest.Digest) bool) (repoFile, error) {
	file := repoFile{Schema: repoVersion, Repository: name, Tags: map[string]tagInFile{}, Manifests: map[digest.Digest]string{}}
	v, err := c.visibility(name)
	if err == nil {
		file.Public, file.VerdictAt = &v.Public, v.At
	}
	prefix := pair(name, "")
	err = c.index.Each(bucketTags, prefix, func(k, v []byte) error {
		_, tag := unpair(k)
		t, err := decodeTag(v)
		file.Tags[tag] = tagInFile{t.Digest, t.Size, t.MediaType, t.Checked}
		return err
	})
	if err != nil {
		return file, err
	}
	var manifests []digest.Digest
	err = c.index.Each(bucketLinks, prefix, func(k, v []byte) error {
		_, d := unpair(k)
		l, err := decodeLink(v)
		// A manifest that an index only names comes back with the index, and its link with it.
		if l.Confirmed && isManifest(digest.Digest(d)) {
			manifests = append(manifests, digest.Digest(d))
		}
		return err
	})
	if err != nil {
		return file, err
	}
	for _, d := range manifests {
		if r, err := c.record(d); err == nil {
			file.Manifests[d] = r.mediaType
		}
	}
	return file, nil
}

// isBuilt reports whether the index has once been made from the files. Errors: that it can't be
// read.
func (c *catalogue) isBuilt() (bool, error) {
	built, err := c.index.Get(bucketMeta, keyBuilt)
	return built != nil, err
}

func (c *catalogue) setBuilt() { c.index.Set(bucketMeta, keyBuilt, []byte{1}) }
