package registry

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// Read-ahead: when a client asks for the first layer of an image whose manifest it has got
// here, the other layers are fetched too, ahead of it. Who only reads manifests causes
// nothing, and no layer of another platform is ever fetched.

const (
	// aheadImages is how many images' layers are remembered between manifest and first
	// layer, which follow each other within seconds.
	aheadImages = 256

	// aheadWithin is how long a layer that was read ahead may wait for its client until
	// it counts as fetched in vain.
	aheadWithin = 10 * time.Minute
)

// ahead knows the layers of the images whose manifests were handed out lately, and which
// blobs were read ahead and not asked for yet.
type ahead struct {
	mu     sync.Mutex // guards what follows
	images *simplelru.LRU[part, *recentImage]
	layers map[part]*recentImage // each layer of images; the newest wins
	idle   map[digest.Digest]*unasked
	unused int64 // bytes
}

// part is a manifest or layer under the repository that it was handed out under: base
// layers are shared, and what else an image has only its own repository may have.
type part struct {
	name   string
	digest digest.Digest
}

type recentImage struct {
	name    string
	layers  []image.Child
	started bool
}

type unasked struct {
	size  int64
	timer *time.Timer
}

func newAhead() *ahead {
	a := &ahead{layers: map[part]*recentImage{}, idle: map[digest.Digest]*unasked{}}
	a.images, _ = simplelru.NewLRU(aheadImages, func(_ part, img *recentImage) {
		for _, l := range img.layers {
			if p := (part{img.name, l.Digest}); a.layers[p] == img {
				delete(a.layers, p)
			}
		}
	})
	return a
}

// handedOut remembers a manifest that a client has got under a repository.
func (a *ahead) handedOut(name string, d digest.Digest, children []image.Child) {
	var layers []image.Child
	for _, c := range children {
		if c.Role == image.RoleLayer {
			layers = append(layers, c)
		}
	}
	if len(layers) < 2 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	img := &recentImage{name: name, layers: layers}
	a.images.Remove(part{name, d})
	a.images.Add(part{name, d}, img)
	for _, l := range layers {
		a.layers[part{name, l.Digest}] = img
	}
}

// take returns the layers to fetch ahead because a client asks for d: those of its image
// in that repository, once.
func (a *ahead) take(name string, d digest.Digest) []image.Child {
	a.mu.Lock()
	defer a.mu.Unlock()
	img := a.layers[part{name, d}]
	if img == nil || img.started {
		return nil
	}
	img.started = true
	return img.layers
}

// landed says that a blob came in that nobody has asked for yet.
func (a *ahead) landed(d digest.Digest, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := &unasked{size: size}
	u.timer = time.AfterFunc(aheadWithin, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.idle[d] == u {
			delete(a.idle, d)
			a.unused += size
		}
	})
	a.idle[d] = u
}

// asked says that a client asks for d.
func (a *ahead) asked(d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u := a.idle[d]; u != nil {
		u.timer.Stop()
		delete(a.idle, d)
	}
}

func (a *ahead) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for d, u := range a.idle {
		u.timer.Stop()
		delete(a.idle, d)
	}
}

func (a *ahead) unusedBytes() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unused
}

// readAhead starts the downloads of the image that blob q belongs to, as many at a time,
// of all images together, as limits.orphans, until all are here or one fails.
func (r *Registry) readAhead(q request) {
	if !r.policy.Load().ReadAhead {
		return
	}
	layers := r.ahead.take(q.name, q.digest)
	if len(layers) == 0 {
		return
	}
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	if r.flights.closed {
		return
	}
	// More than half of the budget, and what is read ahead would push itself out.
	total := int64(0)
	for _, l := range layers {
		if _, ok := r.store.Has(l.Digest); !ok {
			total += l.Size
		}
	}
	if total > r.store.Budget()/2 {
		return
	}
	next := make(chan image.Child, len(layers))
	for _, l := range layers {
		if l.Digest != q.digest {
			next <- l
		}
	}
	close(next)
	for range min(len(layers)-1, r.policy.Load().Limits.Orphans) {
		r.flights.wait.Go(func() {
			for l := range next {
				slots := r.aheads.Load()
				if slots.Acquire(r.closing, 1) != nil {
					return
				}
				ok := r.fetchAhead(q.name, l)
				slots.Release(1)
				if !ok {
					return
				}
			}
		})
	}
}

// fetchAhead fetches one layer and reports whether to go on.
func (r *Registry) fetchAhead(name string, l image.Child) bool {
	if _, ok := r.store.Has(l.Digest); ok {
		return true
	}
	if r.up.cool.down() != nil || r.failed.has(name+"@"+string(l.Digest)) {
		return false
	}
	f, first := r.join(name, l.Digest, l.Size, seat{takeOff: true})
	if f == nil {
		return false
	}
	if !first {
		return true // a client is ahead of us
	}
	<-f.landed
	_, ok := r.store.Has(l.Digest)
	return ok
}
