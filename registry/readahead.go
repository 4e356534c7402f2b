package registry

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// readAheadImages is how many images' layers are remembered between manifest and first
// layer, which follow each other within seconds.
const readAheadImages = 256

// readAhead knows the layers of the images whose manifests were handed out lately. When a
// client asks for the first layer of one, the other layers are fetched ahead of it. Clients
// that only read manifests trigger no downloads, and no layer of another platform is ever
// fetched. All methods are safe for concurrent use.
type readAhead struct {
	mu     sync.Mutex // guards what follows
	images *simplelru.LRU[member, *imageLayers]
	layers map[member]*imageLayers // by each layer of images; the newest image wins
}

// member is a manifest or layer under the repository that it was handed out under: images of
// several repositories share base layers, and each repository may have only its own images.
type member struct {
	repository string
	digest     digest.Digest
}

type imageLayers struct {
	repository string
	layers     []image.Child
	started    bool
}

func newReadAhead() *readAhead {
	a := &readAhead{layers: map[member]*imageLayers{}}
	a.images, _ = simplelru.NewLRU(readAheadImages, func(_ member, img *imageLayers) {
		for _, l := range img.layers {
			if m := (member{img.repository, l.Digest}); a.layers[m] == img {
				delete(a.layers, m)
			}
		}
	})
	return a
}

// handedOut remembers a manifest that a client has got under a repository.
func (a *readAhead) handedOut(repository string, d digest.Digest, children []image.Child) {
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
	img := &imageLayers{repository: repository, layers: layers}
	a.images.Remove(member{repository, d})
	a.images.Add(member{repository, d}, img)
	for _, l := range layers {
		a.layers[member{repository, l.Digest}] = img
	}
}

// take returns the layers of the image that d is a layer of in the repository, the first
// time that a client asks for one of them.
func (a *readAhead) take(repository string, d digest.Digest) []image.Child {
	a.mu.Lock()
	defer a.mu.Unlock()
	img := a.layers[member{repository, d}]
	if img == nil || img.started {
		return nil
	}
	img.started = true
	return img.layers
}
