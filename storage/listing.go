package storage

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// Entry is what is known of a cached blob without a look at its file.
type Entry struct {
	Digest   digest.Digest // equal to the one that was asked for, and kept by the store anyway
	Size     int64         // bytes
	LastUse  time.Time
	Arrived  time.Time // when it came in
	Manifest bool
	Pinned   bool // it isn't evicted
}

// Entry returns what is known of blob d; ok is false when it isn't there. It is not a use.
func (s *Store) Entry(d digest.Digest) (e Entry, ok bool) { return s.room.entry(d) }

func (r *room) entry(d digest.Digest) (Entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.lru.Peek(d)
	if e == nil {
		return Entry{}, false
	}
	v := &e.Value
	return Entry{Digest: e.Key, Size: e.Size, LastUse: time.Unix(0, v.used), Arrived: time.Unix(0, v.mtime), Manifest: v.has(isManifest), Pinned: r.lru.IsPinned(e.Key)}, true
}

// Arrived returns how many bytes are here of a blob that isn't here as a whole: it is coming in, or
// its download has stopped.
func (s *Store) Arrived(d digest.Digest) (bytes int64) {
	s.files.mu.Lock()
	in := s.files.ingests[d]
	s.files.mu.Unlock()
	if in != nil {
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.have.bytes()
	}
	size, missing := s.Partial(d)
	for _, m := range missing {
		size -= m.To - m.From
	}
	return size
}

// Children returns the media type of a cached manifest and what it names, as the index has it,
// without a look at the file. Errors: fs.ErrNotExist; that the index can't be read.
func (s *Store) Children(manifest digest.Digest) (mediaType string, children []image.Child, err error) {
	r, err := s.catalogue.record(manifest)
	return r.mediaType, r.children, err
}

// EachLink calls f for every blob that a repository has, cached or not, ordered by repository. f
// must not call methods that read the index. Errors: those of f; that the index can't be read.
func (s *Store) EachLink(f func(repository string, d digest.Digest, l Link) error) error {
	var keys orderedPairs
	return s.catalogue.index.Each(bucketLinks, nil, func(k, v []byte) error {
		repository, d := keys.unpair(k)
		l, err := decodeLink(v)
		if err != nil {
			return err
		}
		return f(repository, digest.Digest(d), l)
	})
}
