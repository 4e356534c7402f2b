package registry

import (
	"bytes"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/storage"
)

// readAheadImages is how many images' layers are remembered between manifest and first
// layer, which follow each other within seconds.
const readAheadImages = 256

// readAheadChildren is how many blobs an image may have to be read ahead. The largest have some
// 130 layers. Together with readAheadImages it bounds the memory to some 30 MiB.
const readAheadChildren = 512

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
	ahead      []image.Child // layers, and a small config
	started    bool
}

func newReadAhead() *readAhead {
	a := &readAhead{layers: map[member]*imageLayers{}}
	a.images, _ = simplelru.NewLRU(readAheadImages, func(_ member, img *imageLayers) {
		for _, l := range img.ahead {
			if m := (member{img.repository, l.Digest}); a.layers[m] == img {
				delete(a.layers, m)
			}
		}
	})
	return a
}

// handedOut remembers a manifest that a client has got under a repository. body is nil for a
// large one. A small config belongs to what is fetched ahead, since not all clients ask for it,
// and without it the image isn't whole. Foreign layers don't: the upstream may not have them,
// and clients get them elsewhere.
func (a *readAhead) handedOut(repository string, d digest.Digest, children []image.Child, body []byte) {
	if len(children) < 2 || len(children) > readAheadChildren {
		return
	}
	var without map[digest.Digest]bool
	if bytes.Contains(body, []byte(`"urls"`)) { // hardly any manifest does
		without = image.Dispensable(body)
	}
	var ahead, layers []image.Child
	for _, c := range children {
		switch {
		case c.Role == image.RoleConfig && c.Size <= storage.VerifyFirst:
			ahead = append(ahead, c)
		case c.Role == image.RoleLayer && !without[c.Digest]:
			ahead = append(ahead, c)
			layers = append(layers, c)
		}
	}
	if len(ahead) < 2 || len(layers) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	img := &imageLayers{repository: repository, ahead: ahead}
	a.images.Remove(member{repository, d})
	a.images.Add(member{repository, d}, img)
	for _, l := range layers {
		a.layers[member{repository, l.Digest}] = img
	}
}

// take returns what is to be fetched of the image that d is a layer of in the repository, the
// first time that a client asks for one of its layers.
func (a *readAhead) take(repository string, d digest.Digest) []image.Child {
	a.mu.Lock()
	defer a.mu.Unlock()
	img := a.layers[member{repository, d}]
	if img == nil || img.started {
		return nil
	}
	img.started = true
	return img.ahead
}
