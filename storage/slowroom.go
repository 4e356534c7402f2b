package storage

import (
	"cmp"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// shortFor is for how many times the patience room stays short after a refusal. In the first
	// the kernel may have taken a lump, and the client nothing; and who was refused has time to ask
	// again.
	shortFor = 2

	// slowEvery is how often the recipients are looked through while room is short.
	slowEvery = time.Second
)

// shortage is what was refused for lack of room that readers keep. Its zero value says that
// nothing was. room.mu guards it.
type shortage struct {
	until time.Duration // by the clock of the recipients, when it is over

	wants map[digest.Digest]int64    // bytes that were refused; at most maxWants
	aside map[digest.Digest]struct{} // what was evicted because only slow clients read it
}

// maxWants is how many refusals are remembered. More say nothing new.
const maxWants = 1024

// want returns the most that was refused to one blob.
func (s *shortage) want() (most int64) {
	for _, n := range s.wants {
		most = max(most, n)
	}
	return most
}

// keptOut reports whether n bytes of d, which have made room for others because only slow
// clients read them, would take that room again: the clients come back at once. mu is held.
func (r *room) keptOut(d digest.Digest, n int64) bool {
	if _, ok := r.short.aside[d]; !ok {
		return false
	}
	u := r.lru.Usage()
	return u.Used-u.Idle+u.Reserved+n+r.short.want() > u.Max
}

// refused notes that n bytes were refused to d, for which short bytes had to leave the file
// system. That makes room short, unless they would have been refused without readers too:
// because of downloads, of pins, or of files that aren't ours.
func (r *room) refused(d digest.Digest, n, short int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u := r.lru.Usage(); u.Reserved+u.Pinned+n > u.Max || short > u.Used-u.Pinned {
		return
	}
	s := &r.short
	if s.until == 0 {
		*s = shortage{wants: map[digest.Digest]int64{}, aside: map[digest.Digest]struct{}{}}
	}
	s.until = r.recipients.clock() + shortFor*r.recipients.patience
	if len(s.wants) < maxWants {
		s.wants[d] = max(s.wants[d], n)
	}
	select {
	case r.isShort <- struct{}{}:
	default: // it is known
	}
}

// endSlow ends the sending to slow clients until what they keep would be room enough, evicts
// what they read, and reports whether room is still short. Blobs that are evicted already come
// first, then those of the slowest clients. A blob that anybody else reads stays, as do its slow
// readers: it would give no room.
func (r *room) endSlow() (still bool) {
	r.evicting.Lock()
	defer r.evicting.Unlock()
	r.mu.Lock()
	want := r.short.want()
	r.mu.Unlock()
	space := r.space.short(0, r.keepFree()+want)
	r.mu.Lock()
	if r.recipients.clock() > r.short.until {
		r.short = shortage{}
		r.mu.Unlock()
		return false
	}
	u := r.lru.Usage()
	lacking := max(u.Used+u.Reserved+want-u.Max, space) - u.Idle
	var ended []*Recipient
	var victims []*entry
	if want > 0 && lacking > 0 {
		for _, s := range r.slow() {
			if lacking -= s.entry.Size; !s.leaving {
				victims = append(victims, r.lru.Remove(s.entry.Key))
				r.short.aside[s.entry.Key] = struct{}{}
			}
			if ended = append(ended, s.recipients...); lacking <= 0 {
				break
			}
		}
	}
	r.evict(victims, because(space))
	r.mu.Unlock()
	for _, c := range ended {
		c.Cut()
	}
	r.unlink(victims)
	return true
}

// slowEntry is an entry that is read by slow clients only.
type slowEntry struct {
	entry      *entry
	leaving    bool
	at         int64 // when the last of the clients became slow
	recipients []*Recipient
}

// slow returns what is read by slow clients only, and isn't pinned, in the order in which it gives its room. mu is
// held.
func (r *room) slow() (slow []*slowEntry) {
	found := map[*entry]*slowEntry{}
	for _, c := range r.recipients.Slow() {
		e := kept(c.Keeps)
		if e == nil || r.lru.Peek(e.Key) == e && r.lru.IsPinned(e.Key) {
			continue
		}
		if found[e] == nil {
			found[e] = &slowEntry{entry: e}
		}
		s := found[e]
		s.at, s.recipients = max(s.at, c.Since), append(s.recipients, c.Recipient)
	}
	for e, s := range found {
		var readers int
		if readers, s.leaving = r.lru.Held(e); readers == len(s.recipients) {
			slow = append(slow, s)
		}
	}
	slices.SortFunc(slow, func(a, b *slowEntry) int {
		if a.leaving != b.leaving {
			if a.leaving {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.at, b.at)
	})
	return slow
}

// kept returns the entry whose room a recipient of a Blob or a Reader keeps; nil while its blob is
// being downloaded, for then it isn't the client that needs the room. room.mu is held.
func kept(keeps any) *entry {
	in, ok := keeps.(*Ingest)
	if !ok {
		return keeps.(*entry)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.entry
}
