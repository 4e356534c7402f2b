package storage

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
)

// Shortage says that the cache is too small for what clients ask for, and how large it has to be.
type Shortage struct {
	Kind  ShortageKind
	Image string // of ImageTooLarge: the image; of PinsTooLarge: the first that isn't protected
	More  int    // of PinsTooLarge: how many others aren't
	Has   int64  // bytes that the cache may hold now; of PinsTooLarge: that may be pinned
	Needs int64  // bytes that would do, with some room for what else comes in

	Pinned int64 // bytes of Has that are pinned; of PinsTooLarge: that all pinned images take
}

// ShortageKind is what is too small for what.
type ShortageKind string

// The kinds of Shortage. In all but DiskTooSmall, the budget is too small.
const (
	ImageTooLarge ShortageKind = "image"       // for one image
	WorkingSet    ShortageKind = "working_set" // for all that is in use: what has just been fetched is evicted, and fetched again
	DiskTooSmall  ShortageKind = "disk"        // the disk is too small for what is in use, with min_free left
	PinsTooLarge  ShortageKind = "pins"        // for the pinned images: a tag has moved to a larger one, or the budget has shrunk
)

// String says it for people, with what to do.
func (s Shortage) String() string {
	has, needs := units.BytesSize(float64(s.Has)), units.BytesSize(float64(s.Needs))
	if s.Kind == PinsTooLarge {
		which := s.Image
		if s.More > 0 {
			which += fmt.Sprintf(" and %d more", s.More)
		}
		return "the pinned images take " + units.BytesSize(float64(s.Pinned)) + ", and " + has + " of the budget may be pinned: " +
			which + " can be evicted although pinned; a budget of " + needs + " would do"
	}
	if s.Pinned > 0 {
		has += ", of which " + units.BytesSize(float64(s.Pinned)) + " are pinned,"
	}
	switch s.Kind {
	case ImageTooLarge:
		if s.Pinned > 0 {
			return "the budget of " + has + " leaves less room than the image " + s.Image + " takes: its layers are fetched again at each pull; a budget of " + needs + " would do"
		}
		return "the budget of " + has + " is smaller than the image " + s.Image + ": its layers are fetched again at each pull; a budget of " + needs + " would do"
	case DiskTooSmall:
		return "the disk has room for " + has + " of cache, which is too small for what is in use: what has just been fetched is evicted for min_free, and fetched again; room for " + needs + " would do"
	}
	return "the budget of " + has + " is too small for what is in use: what has just been fetched is evicted, and fetched again; a budget of " + needs + " would do"
}

const (
	// justFetched is how long after it came in a blob is evicted too early, and how soon after
	// that it has to be fetched again, so that the cache is too small for what is in use, and not
	// only busy with what is used once.
	justFetched = time.Hour

	// shortShare is which share of the cache has to be fetched again within justFetched: a blob
	// or two say nothing.
	shortShare = 20

	// shortageKept is how long a shortage is shown after it was last seen.
	shortageKept = 24 * time.Hour

	// maxRecent is of how many blobs is remembered when they came in, or that they were evicted
	// early: some MB of memory.
	maxRecent = 8192

	// sayShortage is how often the log says it again, and sayMore how soon when more is needed
	// than it has said.
	sayShortage = 24 * time.Hour
	sayMore     = time.Hour
)

// shortages find out whether the cache is too small. The numbers are kept when blobs come in and
// are evicted; what they amount to is said by the work in the background. All methods are safe for
// concurrent use.
type shortages struct {
	// mu guards what follows. It is taken after room.mu, and no other lock is taken while it is
	// held.
	mu         sync.Mutex
	image      string        // the largest image that was asked for in shortageKept
	manifest   digest.Digest // of the image
	imageBytes int64
	imageAt    time.Time
	recent     *simplelru.LRU[digest.Digest, recent] // what came in lately, and may have been evicted since
	again      int64                                 // bytes that were fetched again, just after they were evicted early, since began
	began      time.Time
	needs      int64 // bytes in which they would have stayed
	has        int64 // bytes that the cache had
	forDisk    bool  // they were evicted for the free space, and not for the budget
	seen       time.Time
	said       map[string]saidShortage // by subject
}

// recent is a blob that came in lately. The time of its file isn't taken for that, since it may be
// that of another clock.
type recent struct {
	came    time.Time
	evicted time.Time // zero: it hasn't been
	before  int64     // bytes that had been evicted before it
	forDisk bool
}

type saidShortage struct {
	at    time.Time
	needs int64
}

func newShortages() shortages {
	l, _ := simplelru.NewLRU[digest.Digest, recent](maxRecent, nil) // the only error is another size
	return shortages{recent: l, said: map[string]saidShortage{}}
}

// asked says that a client asks for an image of so many bytes.
func (s *shortages) asked(image string, manifest digest.Digest, bytes int64) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case bytes > s.imageBytes || now.Sub(s.imageAt) > shortageKept:
		s.image, s.manifest, s.imageBytes, s.imageAt = image, manifest, bytes, now
	case bytes == s.imageBytes && image == s.image:
		s.imageAt = now
	}
}

// evicted says that a blob is evicted, after so many bytes of others.
func (s *shortages) evicted(d digest.Digest, before int64, forDisk bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.recent.Peek(d)
	switch {
	case !ok:
	case now.Sub(r.came) > justFetched:
		s.recent.Remove(d)
	default:
		s.recent.Add(d, recent{r.came, now, before, forDisk})
	}
}

// fetched says that a blob has come in, when evicted bytes have been evicted in all and the cache
// holds so many. If it was evicted early, it would have stayed in a cache that is larger by what
// has been evicted from then on.
func (s *shortages) fetched(d digest.Digest, size, evicted, holds int64) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.recent.Peek(d)
	s.recent.Add(d, recent{came: now})
	if !ok || r.evicted.IsZero() || now.Sub(r.evicted) > justFetched {
		return
	}
	if now.Sub(s.began) > justFetched {
		s.began, s.again = now, 0
		if now.Sub(s.seen) > shortageKept {
			s.needs = 0
		}
	}
	s.again += size
	if s.again >= holds/shortShare {
		s.needs = max(s.needs, holds+evicted-r.before)
		s.has, s.forDisk, s.seen = holds, r.forDisk, now
	}
}

// enough is bytes with a tenth more, in whole MiB: other images come in as well.
func enough(bytes int64) int64 { return (bytes + bytes/10 + 1<<20 - 1) >> 20 << 20 }

// now returns what is too small, with this budget and so many pinned bytes. isPinned reports
// whether a manifest is: its image has its room.
func (s *shortages) now(budget, pinned int64, isPinned func(digest.Digest) bool) (all []Shortage) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	// Twice the image: it isn't read ahead if it lacks more than half of the budget, and other
	// images are kept too.
	if s.imageBytes > budget-pinned && now.Sub(s.imageAt) <= shortageKept && !isPinned(s.manifest) {
		all = append(all, Shortage{Kind: ImageTooLarge, Image: s.image, Has: budget, Needs: enough(2*s.imageBytes + pinned), Pinned: pinned})
	}
	switch {
	case s.needs == 0 || now.Sub(s.seen) > shortageKept:
	case s.forDisk:
		all = append(all, Shortage{Kind: DiskTooSmall, Has: s.has, Needs: enough(s.needs), Pinned: pinned})
	case enough(s.needs) > budget && len(all) == 0: // such an image evicts its own layers
		all = append(all, Shortage{Kind: WorkingSet, Has: budget, Needs: enough(s.needs), Pinned: pinned})
	}
	return all
}

// say logs what is too small, unless it was said a while ago.
func (s *shortages) say(all []Shortage, log *slog.Logger) {
	for _, short := range all {
		if s.due(short) {
			log.Warn(short.String(), "has", short.Has, "needs", short.Needs)
		}
	}
}

// subject is what the log says once. Other pins are another shortage.
func (s Shortage) subject() string {
	if s.Kind == PinsTooLarge {
		return string(s.Kind) + " " + s.Image
	}
	return string(s.Kind)
}

// due reports whether a shortage is to be logged, and notes that it is.
func (s *shortages) due(short Shortage) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	about := short.subject()
	said, ok := s.said[about]
	age := now.Sub(said.at)
	if ok && age < sayShortage && (age < sayMore || short.Needs <= said.needs) {
		return false
	}
	s.said[about] = saidShortage{now, short.Needs}
	return true
}
