package cooldown

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Memory remembers keys for a while, so that what has just failed, or was just done, isn't
// tried again at once. The zero value is ready. All methods are safe for concurrent use.
type Memory struct {
	mu   sync.Mutex                   // guards keys
	keys *simplelru.LRU[string, memo] // nil until the first Add
}

type memo struct {
	until time.Time
	err   error
}

// maxMemos limits a Memory: clients can invent keys. Beyond it the key that was added the longest
// ago is forgotten.
const maxMemos = 10_000

// Add remembers key for d, with the reason err, which may be nil. With d 0 or less it
// remembers nothing.
func (m *Memory) Add(key string, d time.Duration, err error) {
	if d <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys, _ = simplelru.NewLRU[string, memo](maxMemos, nil)
	}
	m.keys.Add(key, memo{until: time.Now().Add(d), err: err})
}

// Get returns the reason that key is remembered with; ok is false when it isn't.
func (m *Memory) Get(key string) (err error, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		return nil, false
	}
	v, ok := m.keys.Peek(key)
	if ok && time.Now().After(v.until) {
		m.keys.Remove(key)
		return nil, false
	}
	return v.err, ok
}

// Has reports whether key is remembered.
func (m *Memory) Has(key string) bool {
	_, ok := m.Get(key)
	return ok
}

// Forget forgets key.
func (m *Memory) Forget(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys != nil {
		m.keys.Remove(key)
	}
}

// ForgetAll forgets the keys that wanted names. It looks at all of them.
func (m *Memory) ForgetAll(wanted func(key string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		return
	}
	for _, key := range m.keys.Keys() {
		if wanted(key) {
			m.keys.Remove(key)
		}
	}
}
