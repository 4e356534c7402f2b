package cooldown

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxFailures limits a Failures: clients can invent keys. Beyond it the key that failed
	// the longest ago is forgotten.
	maxFailures = 10_000

	// inARow is how long after one failure, and after what was remembered of it, another one
	// counts as the next in a row.
	inARow = 10 * time.Minute
)

// Failures remembers what fails again and again, by key. One failure may be chance, so that the
// next try may come at once. From the second in a row on the key is remembered for First, then
// for twice as long with each further one, and for Most at most.
// All methods are safe for concurrent use.
type Failures struct {
	first, most time.Duration

	mu   sync.Mutex // guards keys
	keys *simplelru.LRU[string, *streak]
}

// streak is the failures of a key in a row.
type streak struct {
	last  time.Duration // for how long the last one was remembered; 0: it was the first
	until time.Time
	err   error
}

// NewFailures returns a Failures that knows of none.
func NewFailures(first, most time.Duration) *Failures {
	f := &Failures{first: first, most: most}
	f.keys, _ = simplelru.NewLRU[string, *streak](maxFailures, nil)
	return f
}

// get returns the streak of key, nil when there is none. mu is held.
func (f *Failures) get(key string) *streak {
	s, _ := f.keys.Peek(key)
	if s != nil && time.Since(s.until) > inARow {
		f.keys.Remove(key)
		return nil
	}
	return s
}

// Add counts a failure of key with the reason err, and returns for how long it is remembered.
// several says that it was several in a row by itself, so that it isn't taken for chance.
func (f *Failures) Add(key string, err error, several bool) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.get(key)
	switch {
	case s != nil:
		s.last = Double(s.last, f.first, f.most)
	case several:
		s = &streak{last: f.first}
	default:
		s = &streak{}
	}
	s.until, s.err = time.Now().Add(s.last), err
	f.keys.Add(key, s)
	return s.last
}

// Get returns for how much longer the last failure of key is remembered, and its reason; 0 and
// nil when key may be tried.
func (f *Failures) Get(key string) (left time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.get(key)
	if s == nil {
		return 0, nil
	}
	if left = time.Until(s.until); left <= 0 {
		return 0, nil
	}
	return left, s.err
}

// Failed reports whether the last try of key has failed, lately.
func (f *Failures) Failed(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.get(key) != nil
}

// Forget ends the row of failures of key: it has succeeded.
func (f *Failures) Forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys.Remove(key)
}
