package storage

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/index"
)

// pulls counts how often images were asked for, by repository and tag or digest. A count is a row
// of a bucket of its own. It isn't in the row of the tag, because that would be a new format of
// these rows, and images that are known by digest alone have none. It isn't in the files of the
// repositories, because a busy cache would write them all the time. So a crash loses the counts
// since the index was written, ten seconds at most, and a lost index loses all of them: nothing
// that a client gets depends on them.
//
// Counts for what the store doesn't have are dropped: clients can invent names.
type pulls struct {
	catalogue *catalogue
	has       func(repository, reference string) bool // reports whether the index has the tag, or the manifest is linked
	full      func()                                  // says that the counts should be written soon

	// noting queues those who move counts to the index. It guards no data, and is held while the
	// index is read. Taken before all other locks.
	noting sync.Mutex

	// mu guards what follows. It is never held during I/O, and no other lock is taken while it is
	// held.
	mu     sync.Mutex
	counts map[taggedName]unnotedPulls // by repository, and tag or digest
	spare  map[taggedName]unnotedPulls // an empty one for the next batch, so that a hit allocates nothing; or nil
}

// unnotedPulls is a count that isn't in the index.
type unnotedPulls struct {
	n     int64
	since int64 // Unix seconds
}

const (
	// maxUnnoted is how many images can have counts that aren't in the index: 20,000 take about 5 MB.
	// Pulls of further ones aren't counted until half of them have been noted, which takes
	// milliseconds.
	maxUnnoted = 20_000
	// pullPatience is how long, in seconds, a count waits for its image: a client asks for the tag
	// first, and then for the manifest.
	pullPatience = 60
)

// add counts a pull. Both strings are kept.
func (p *pulls) add(repository, reference string) {
	key := taggedName{repository, reference}
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.counts[key]
	if !ok {
		if len(p.counts) >= maxUnnoted {
			return
		}
		if len(p.counts) == maxUnnoted/2 {
			p.full()
		}
		c.since = time.Now().Unix()
	}
	c.n++
	p.counts[key] = c
}

// note moves the counts to the index, which then has them to write. Callers hold no lock.
func (p *pulls) note() {
	p.noting.Lock()
	defer p.noting.Unlock()
	p.mu.Lock()
	batch := p.counts
	if len(batch) == 0 {
		p.mu.Unlock()
		return
	}
	p.counts, p.spare = p.spare, nil
	if p.counts == nil {
		p.counts = map[taggedName]unnotedPulls{}
	}
	p.mu.Unlock()
	now := time.Now().Unix()
	for key, c := range batch {
		if p.has(key.repository, key.tag) {
			p.catalogue.index.Update(bucketPulls, pair(key.repository, key.tag), func(old []byte) []byte {
				n, _ := decodePulls(old) // of a row that can't be read nothing is left
				return encodePulls(n + c.n)
			})
		} else if age := now - c.since; age >= 0 && age < pullPatience {
			p.putBack(key, c)
		}
	}
	if len(batch) <= maxUnnoted/10 {
		clear(batch)
		p.mu.Lock()
		p.spare = batch
		p.mu.Unlock()
	}
}

// putBack adds a count to those that aren't in the index.
func (p *pulls) putBack(key taggedName, c unnotedPulls) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if newer, ok := p.counts[key]; ok || len(p.counts) < maxUnnoted {
		c.n += newer.n
		p.counts[key] = c
	}
}

// of returns the count of a tag or digest of a repository. Errors: that the index can't be read.
func (p *pulls) of(repository, reference string) (int64, error) {
	p.note()
	v, err := p.catalogue.index.Get(bucketPulls, pair(repository, reference))
	if v == nil || err != nil {
		return 0, err
	}
	return decodePulls(v)
}

// sweep forgets the counts of what has gone. Errors: that the index can't be read.
func (p *pulls) sweep() error {
	repositories, err := p.catalogue.repositoriesIn(bucketPulls)
	for _, repository := range repositories { // the rows of one repository at a time are in memory
		var references []string
		err = errors.Join(err, p.catalogue.index.Each(bucketPulls, pair(repository, ""), func(k, _ []byte) error {
			_, reference := unpair(k)
			references = append(references, reference)
			return nil
		}))
		for _, reference := range references {
			if !p.has(repository, reference) {
				p.catalogue.index.Delete(bucketPulls, pair(repository, reference))
			}
		}
	}
	return err
}

func encodePulls(n int64) []byte { return binary.AppendUvarint(nil, uint64(n)) }

func decodePulls(b []byte) (int64, error) {
	if b == nil {
		return 0, nil
	}
	n, length := binary.Uvarint(b)
	if length <= 0 || length != len(b) || n >= 1<<63 {
		return 0, index.ErrDamaged
	}
	return int64(n), nil
}

// hasImage reports whether the index has the tag of a repository, or its manifest with that digest.
func (s *Store) hasImage(repository, reference string) bool {
	if !isReferrers(reference) { // no tag has a colon
		_, err := s.repos.keptTag(repository, reference)
		return err == nil
	}
	_, err := s.catalogue.linkOf(repository, digest.Digest(reference))
	return err == nil && s.room.state(digest.Digest(reference)).manifest
}

// CountPull counts an answer with a manifest that was asked for by this tag or digest. It keeps both
// strings, allocates nothing as a rule, and never waits for the disk. What is never cached isn't
// counted.
func (s *Store) CountPull(repository, reference string) { s.pulls.add(repository, reference) }

// Pulls returns how often a manifest was asked for by this tag or digest, since its image came in
// or the index was lost. Errors: that the index can't be read.
func (s *Store) Pulls(repository, reference string) (int64, error) {
	return s.pulls.of(repository, reference)
}

// EachPulls calls f for every tag and digest that was asked for, ordered by repository. f must not
// call methods that read the index. Errors: those of f; that the index can't be read.
func (s *Store) EachPulls(f func(repository, reference string, n int64) error) error {
	s.pulls.note()
	var keys orderedPairs
	return s.catalogue.index.Each(bucketPulls, nil, func(k, v []byte) error {
		repository, reference := keys.unpair(k)
		n, err := decodePulls(v)
		if err != nil {
			return err
		}
		return f(repository, reference, n)
	})
}
