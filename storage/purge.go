package storage

import (
	"errors"

	"github.com/opencontainers/go-digest"
)

// ErrPinned: something is pinned that was to be removed.
var ErrPinned = errors.New("pinned")

// Removal is what Purge forgets and removes.
type Removal struct {
	Repository string
	Tags       []string        // of the repository, and lists of referrers by the digest of their manifest
	Links      []digest.Digest // blobs that the repository doesn't have any more
	Blobs      []digest.Digest // what leaves the disk
}

// Purge forgets tags and links of a repository, and removes blobs. Who reads one of them can read
// on, and its room comes back when the last reader has closed it. A download that is under way
// goes on, since clients wait for it.
//
// The tags and links go first, durably: a crash in between leaves blobs that no image needs, which
// are evicted in time.
//
// Errors: ErrPinned when one of the blobs is pinned; then nothing has changed.
func (s *Store) Purge(r Removal) error {
	s.pins.changing.Lock() // so that nothing of it is pinned meanwhile
	defer s.pins.changing.Unlock()
	defer s.pins.kick()
	for _, d := range r.Blobs {
		if s.room.isPinned(d) {
			return ErrPinned
		}
	}
	for _, tag := range r.Tags {
		s.repos.deleteTag(r.Repository, tag)
	}
	for _, d := range r.Links {
		s.catalogue.index.Delete(bucketLinks, pair(r.Repository, string(d)))
	}
	if len(r.Tags)+len(r.Links) > 0 {
		s.house.repos.changedNow(r.Repository) // or they would come back with a rebuild
		s.house.flush()
	}
	for _, d := range r.Blobs {
		s.room.remove(d, nil)
	}
	s.house.flush()
	return nil
}

// Closure returns what is cached of the image with a manifest in a repository, with what refers to
// it there, and the sizes on disk in bytes; nothing when the manifest isn't cached.
// Errors: that the index or a manifest can't be read.
func (s *Store) Closure(repository string, manifest digest.Digest) (map[digest.Digest]int64, error) {
	c, err := s.closure(repository, manifest)
	return c.cached, err
}

// EachReferrers calls f for every list of what refers to a manifest in a repository. Lists belong
// to the images of their manifests. Errors: those of f; that the index can't be read.
func (s *Store) EachReferrers(f func(repository string, subject, list digest.Digest) error) error {
	lists, err := s.catalogue.referrersOf("")
	if err != nil {
		return err
	}
	for row, list := range lists {
		if err := f(row.repository, digest.Digest(row.tag), list); err != nil {
			return err
		}
	}
	return nil
}
