package registry

import (
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/storage"
)

// hotBytes bounds the manifests kept in memory: at 5 KB each, some thousands. Those that are
// larger than storage.ManifestInMemory aren't kept.
const hotBytes = 16 << 20

// hot answers for manifests that are asked for again and again, from memory: without a file
// and without the index. An entry says nothing that the store wouldn't: it is made of an
// answer that the store and the visibility have just given, and lives as long as that may.
// All methods are safe for concurrent use.
type hot struct {
	mu     sync.Mutex // guards what follows
	lru    *simplelru.LRU[hotKey, *hotManifest]
	bytes  int64
	purged int // how many times everything was dropped
}

type hotKey struct{ name, ref string }

// hotManifest is an answer with its headers. Immutable but for handed and touched.
type hotManifest struct {
	full     string // the repository as the store has it
	ref      string // tag or digest by which it is asked for
	digest   digest.Digest
	body     []byte
	children []image.Child
	expires  time.Time
	header   http.Header

	handed  atomic.Bool // to a client: read-ahead knows of it
	mu      sync.Mutex  // guards touched
	touched int64       // Unix seconds of the last use told to the store
}

// hotFor is how long an answer by digest is taken from memory before the store and the
// visibility are asked again: what is no longer allowed is refused within a minute.
const hotFor = time.Minute

func newHot() *hot {
	h := &hot{}
	h.lru, _ = simplelru.NewLRU(1<<30, func(_ hotKey, m *hotManifest) { h.bytes -= m.cost() })
	return h
}

func (m *hotManifest) cost() int64 { return int64(len(m.body)) + 1024 + 100*int64(len(m.children)) }

func (h *hot) get(name, ref string) *hotManifest {
	h.mu.Lock()
	m, _ := h.lru.Get(hotKey{name, ref})
	h.mu.Unlock()
	if m == nil || !time.Now().Before(m.expires) {
		return nil
	}
	return m
}

// epoch is what put needs from before the answer was made: it doesn't keep an answer that is
// older than a change of policy or visibility.
func (h *hot) epoch() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.purged
}

func (h *hot) put(epoch int, r *repo, ref string, f *found) {
	if len(f.body) > storage.ManifestInMemory {
		return
	}
	m := &hotManifest{full: r.full, ref: ref, digest: f.digest, body: f.body, children: f.children, expires: time.Now().Add(hotFor), header: http.Header{
		"Content-Type":          {f.mediaType},
		"Content-Length":        {strconv.Itoa(len(f.body))},
		"Docker-Content-Digest": {string(f.digest)},
		"Etag":                  {`"` + string(f.digest) + `"`},
		"X-Hubcache":            {string(OutcomeHit)},
		"Accept-Ranges":         {"bytes"},
	}}
	if !f.expires.IsZero() && f.expires.Before(m.expires) {
		m.expires = f.expires
	}
	if !m.expires.After(time.Now()) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.purged {
		return
	}
	h.lru.Remove(hotKey{r.name, ref})
	h.lru.Add(hotKey{r.name, ref}, m)
	for h.bytes += m.cost(); h.bytes > hotBytes; {
		h.lru.RemoveOldest()
	}
}

func (h *hot) drop(name, ref string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Remove(hotKey{name, ref})
}

func (h *hot) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Purge()
	h.bytes = 0
	h.purged++
}

// due reports whether the use should be told to the store: once a second.
func (m *hotManifest) due() bool {
	now := time.Now().Unix()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.touched == now {
		return false
	}
	m.touched = now
	return true
}
