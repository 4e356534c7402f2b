package storage

import (
	"bytes"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// tagsKept is how long a tag is remembered after its manifest has left: the next pull
// has to fetch that anyway.
const tagsKept = 30 * 24 * time.Hour

// sweep forgets the links of blobs that are neither here nor named by a manifest that is,
// and old tags whose manifests have left. Eviction leaves them, since a blob that comes
// back to a manifest that stayed needs its links.
func (s *Store) sweep(now time.Time) {
	s.linking.Lock()
	s.linked = map[string]bool{}
	s.linking.Unlock()
	s.flush()
	// One repository at a time is in memory.
	var repositories []string
	err := s.index.Each(bucketLinks, nil, func(k, _ []byte) error {
		name, _ := unpair(k)
		if n := len(repositories); n == 0 || repositories[n-1] != name {
			repositories = append(repositories, name)
		}
		return nil
	})
	var keys [][]byte
	for _, name := range repositories {
		links := map[digest.Digest][]byte{}
		err = errors.Join(err, s.index.Each(bucketLinks, pair(name, ""), func(k, _ []byte) error {
			_, d := unpair(k)
			links[digest.Digest(d)] = bytes.Clone(k)
			return nil
		}))
		for _, key := range s.unneeded(links) {
			keys = append(keys, key)
		}
	}
	s.linking.Lock()
	if err == nil {
		for _, k := range keys {
			if s.linked[string(k)] {
				continue
			}
			s.index.Delete(bucketLinks, k)
			name, _ := unpair(k)
			s.repoChanged(name) // or it comes back with a rebuild
		}
	}
	s.linked = nil
	s.linking.Unlock()
	if err != nil {
		s.diskFailed(err)
		return
	}
	s.sweepTags(now)
	s.flush()
}

// unneeded returns those of a repository's links that nothing needs.
func (s *Store) unneeded(links map[digest.Digest][]byte) map[digest.Digest][]byte {
	gone := map[digest.Digest][]byte{}
	named := map[digest.Digest]bool{}
	for d, key := range links {
		s.mu.Lock()
		e := s.lru.Peek(d)
		manifest := e != nil && e.Value.has(isManifest)
		coming := s.ingests[d] != nil || s.lru.HasPartial(d)
		s.mu.Unlock()
		switch {
		case manifest:
			if r, err := s.record(d); err == nil {
				for _, c := range r.children {
					named[c.Digest] = true
				}
			}
		case e == nil && !coming:
			gone[d] = key
		}
	}
	for d := range gone {
		if named[d] {
			delete(gone, d)
		}
	}
	return gone
}

func (s *Store) sweepTags(now time.Time) {
	type tag struct{ repository, name string }
	var old []tag
	err := s.index.Each(bucketTags, nil, func(k, v []byte) error {
		t, err := decodeTag(v)
		if _, here := s.Has(t.Digest); !here && now.Sub(t.Checked) > tagsKept {
			repository, name := unpair(k)
			old = append(old, tag{repository, name})
		}
		return err
	})
	if err != nil {
		s.diskFailed(err)
	}
	for _, t := range old {
		s.DeleteTag(t.repository, t.name)
	}
}
