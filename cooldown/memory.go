package cooldown

import (
	"sync"
	"time"
)

// Memory remembers keys for a while, so that what has just failed, or was just done, isn't
// tried again at once. The zero value is ready. All methods are safe for concurrent use.
type Memory struct {
	mu sync.Mutex // guards m
	m  map[string]memo
}

type memo struct {
	until time.Time
	err   error
}

// maxMemos limits a Memory: clients can invent keys. Beyond it the expired ones are swept,
// or everything is forgotten.
const maxMemos = 10_000

// Add remembers key for d, with the reason err, which may be nil. With d 0 or less it
// remembers nothing.
func (m *Memory) Add(key string, d time.Duration, err error) {
	if d <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if len(m.m) >= maxMemos {
		for k, v := range m.m {
			if now.After(v.until) {
				delete(m.m, k)
			}
		}
	}
	if m.m == nil || len(m.m) >= maxMemos {
		m.m = map[string]memo{}
	}
	m.m[key] = memo{until: now.Add(d), err: err}
}

// Get returns the reason that key is remembered with; ok is false when it isn't.
func (m *Memory) Get(key string) (err error, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.m[key]
	if ok && time.Now().After(v.until) {
		delete(m.m, key)
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
	delete(m.m, key)
}
