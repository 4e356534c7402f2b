// Package quarantine remembers when a cache first heard that a tag names a digest, so that a tag can
// be answered with what has been known for a while: an image that was pushed by a thief is often found
// out, and taken back, within hours.
//
// A Book has the history of each tag for which that matters. Which digest a client gets is decided by
// Pick: the one that the tag names now, if it has waited, or else the last one before it that has.
// What the cache served for a tag before anything was known of it has waited.
package quarantine

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Bounds of a Book. The largest has some 30 MB in memory, and as much on disk.
const (
	// maxDigests is how many digests of one tag are remembered. See makeRoom.
	maxDigests = 16
	// keepServed is how many of them are what was served before: the last one, and some to fall back
	// to if an operator denies it.
	keepServed = 3
	// maxTags is how many tags are. The one that was looked at the longest ago goes first; its
	// digests wait again.
	maxTags = 10_000
)

// Sighting is a digest that a tag has named.
type Sighting struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type"`
	Size      int64         `json:"size"`             // of the manifest, in bytes
	Seen      time.Time     `json:"seen"`             // when this cache first heard of it
	Named     time.Time     `json:"named"`            // when the tag was last found to name it
	Waited    bool          `json:"waited,omitempty"` // an operator has released it, or it was served before
}

// due returns when the digest has waited; zero: it has, whatever the clock says.
func (s *Sighting) due(wait time.Duration) time.Time {
	if s.Waited {
		return time.Time{}
	}
	return s.Seen.Add(wait)
}

// Entry is what is known of a tag.
type Entry struct {
	// Sightings are in the order in which the tag was last found to name them.
	Sightings []Sighting `json:"sightings"`
	Looked    time.Time  `json:"looked"` // when a client or the cache asked last
}

// ErrUnknown: the cache has not heard of the tag.
var ErrUnknown = errors.New("nothing waits under this tag")

// Book is the history of tags. All methods are safe for concurrent use.
type Book struct {
	file *file // nil: in memory only

	mu   sync.Mutex // guards tags and what is in it; never held during I/O
	tags map[string]*Entry
}

// New returns a Book that is in memory only.
func New() *Book { return &Book{tags: map[string]*Entry{}} }

// Named notes that the upstream says that a tag ("docker.io/library/redis:7") names s, of which only
// digest, media type and size are used. served is what the cache has served for the tag until now,
// with an empty digest if nothing: that has waited.
func (b *Book) Named(tag string, s, served Sighting) {
	now := time.Now().Round(0) // the wall clock alone, as after a restart
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	changed := e == nil
	if changed {
		e = &Entry{}
		b.tags[tag] = e
		b.limit()
	}
	e.Looked = now
	if served.Digest != "" && e.releases(served, now) {
		changed = true
	}
	if last := len(e.Sightings) - 1; last < 0 || e.Sightings[last].Digest != s.Digest {
		changed = true
		e.names(s, now)
	} else {
		e.Sightings[last].Named = now
	}
	if changed {
		b.changed()
	}
}

// names makes s the one that the tag names.
func (e *Entry) names(s Sighting, now time.Time) {
	s.Seen, s.Waited = now, false
	if i := e.find(s.Digest); i >= 0 {
		s.Seen, s.Waited = e.Sightings[i].Seen, e.Sightings[i].Waited
		e.Sightings = slices.Delete(e.Sightings, i, i+1)
	}
	s.Named = now
	e.makeRoom()
	e.Sightings = append(e.Sightings, s)
}

// makeRoom makes room for one more. Of those that were served, the last ones stay. Of the others the
// newest goes, so that the oldest, whose time comes first, stays.
func (e *Entry) makeRoom() {
	for len(e.Sightings) >= maxDigests {
		served, oldest, newest := 0, 0, 0
		for i := range e.Sightings {
			if !e.Sightings[i].Waited {
				newest = i
			} else if served++; served == 1 {
				oldest = i
			}
		}
		if served > keepServed {
			newest = oldest
		}
		e.Sightings = slices.Delete(e.Sightings, newest, newest+1)
	}
}

// releases notes that a digest has waited. It reports whether that is new.
func (e *Entry) releases(s Sighting, now time.Time) bool {
	if i := e.find(s.Digest); i >= 0 {
		known := e.Sightings[i].Waited
		e.Sightings[i].Waited = true
		return !known
	}
	s.Seen, s.Named, s.Waited = now, now, true
	e.makeRoom()
	e.Sightings = slices.Insert(e.Sightings, 0, s)
	return true
}

func (e *Entry) find(d digest.Digest) int {
	return slices.IndexFunc(e.Sightings, func(s Sighting) bool { return s.Digest == d })
}

// Pick returns what a client of the tag gets: the digest that the tag names, if it has been known for
// as long as wait, or else the last one before it that has. If there is none, ok is false, and left is
// how long the first one still has to wait. Digests that denied reports true for don't count. A clock
// that was set back makes all wait longer.
func (b *Book) Pick(tag string, wait time.Duration, denied func(digest.Digest) bool) (s Sighting, left time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	if e == nil {
		return s, wait, false
	}
	now := time.Now()
	left = -1
	for _, s := range slices.Backward(e.Sightings) {
		if denied(s.Digest) {
			continue
		}
		rest := s.due(wait).Sub(now)
		if rest <= 0 {
			return s, 0, true
		}
		if left < 0 || rest < left {
			left = rest
		}
	}
	return Sighting{}, cmp.Or(max(left, 0), wait), false
}

// Refreshed returns when the tag was last found to name something; zero if never.
func (b *Book) Refreshed(tag string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	if e == nil || len(e.Sightings) == 0 {
		return time.Time{}
	}
	return e.Sightings[len(e.Sightings)-1].Named
}

// Moved reports whether a tag was last found to name another digest than d.
func (b *Book) Moved(tag string, d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	return e != nil && len(e.Sightings) > 0 && e.Sightings[len(e.Sightings)-1].Digest != d
}

// Waiting is a digest that a tag names and that clients don't get yet.
type Waiting struct {
	Digest digest.Digest
	Until  time.Time
}

// Waiting returns what the tag names now if that still has to wait, and otherwise nil.
func (b *Book) Waiting(tag string, wait time.Duration) *Waiting {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	if e == nil || len(e.Sightings) == 0 {
		return nil
	}
	s := e.Sightings[len(e.Sightings)-1]
	if until := s.due(wait); until.After(time.Now()) {
		return &Waiting{s.Digest, until}
	}
	return nil
}

// Each calls f with the names of all tags that the Book knows, in order, without a lock.
func (b *Book) Each(f func(tag string)) {
	b.mu.Lock()
	names := make([]string, 0, len(b.tags))
	for tag := range b.tags {
		names = append(names, tag)
	}
	b.mu.Unlock()
	slices.Sort(names)
	for _, tag := range names {
		f(tag)
	}
}

// Release lets clients of a tag have what it names now, and returns that.
// Errors: ErrUnknown.
func (b *Book) Release(tag string) (Sighting, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tags[tag]
	if e == nil || len(e.Sightings) == 0 {
		return Sighting{}, ErrUnknown
	}
	s := &e.Sightings[len(e.Sightings)-1]
	if !s.Waited {
		s.Waited = true
		b.changed()
	}
	return *s, nil
}

// limit forgets tags when there are too many. mu is held.
func (b *Book) limit() {
	for len(b.tags) > maxTags {
		oldest := ""
		for tag, e := range b.tags {
			if !e.Looked.IsZero() && (oldest == "" || e.Looked.Before(b.tags[oldest].Looked)) {
				oldest = tag
			}
		}
		delete(b.tags, oldest)
	}
}

// changed lets the file be written. mu is held.
func (b *Book) changed() {
	if b.file != nil {
		b.file.changed()
	}
}
