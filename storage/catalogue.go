package storage

import (
	"bytes"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
)

// A repository's name, here as everywhere in this package, begins with its registry:
// "docker.io/library/redis".

// catalogue is what the index knows of blobs: their records and last uses, and which
// repositories they are linked to. Methods that return an error read the index, and so can wait
// for a write; callers hold no lock then.
type catalogue struct {
	index        *index.Index // set by load, before anything else runs
	repositories *repositories

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
	defer c.repositories.keepVisibility(repository)
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
	c.repositories.keepTagsOf(repository, d)
}

// linkChildren links what a manifest names, as named, unless there are better links.
func (c *catalogue) linkChildren(repository string, children []image.Child) {
	for _, child := range children {
		c.link(repository, child.Digest, Link{false, child.Size})
	}
}

// repositoriesIn returns the names of the repositories that have a key in a bucket.
func (c *catalogue) repositoriesIn(bucket []byte) (names []string, err error) {
	err = c.index.Each(bucket, nil, func(k, _ []byte) error {
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

// isBuilt reports whether the index has once been made from the files. Errors: that it can't be
// read.
func (c *catalogue) isBuilt() (bool, error) {
	built, err := c.index.Get(bucketMeta, keyBuilt)
	return built != nil, err
}
