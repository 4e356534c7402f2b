package prune

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
)

// smallOwn is more than the manifests and the configuration of an image take. That little is no
// reason to delete an image whose layers stay.
const smallOwn = 64 << 10

// Layer is one layer of an image, on top of the layers before it.
type Layer struct {
	// Chain identifies the layer together with all layers below it, as the Engine does: two
	// images share a layer if its chain is the same in both.
	Chain string
	// Size is what the disk gets back when the last image with this layer is deleted, in
	// bytes. In containerd's image store that is the unpacked layer and the packed one.
	Size int64
	// Cached is how much of that the build cache holds too. No deletion of images frees it.
	Cached int64
}

// chains returns the layers of an image with these uncompressed digests. Their sizes aren't
// known yet.
func chains(diffIDs []string) []Layer {
	layers := make([]Layer, 0, len(diffIDs))
	chain := ""
	for i, id := range diffIDs {
		if i == 0 {
			chain = id
		} else {
			chain = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(chain+" "+id)))
		}
		layers = append(layers, Layer{Chain: chain})
	}
	return layers
}

// top returns the chain of the image's last layer; "" if it has none or they aren't known.
func (img Image) top() string {
	if len(img.Layers) == 0 {
		return ""
	}
	return img.Layers[len(img.Layers)-1].Chain
}

// basesOf returns the IDs of the images on which others of these were built: their parents, and
// the images of which others have all layers and more.
func basesOf(images []Image) map[string]bool {
	below := map[string]bool{} // chains with more layers above
	bases := map[string]bool{}
	for _, img := range images {
		for _, l := range img.Layers[:max(0, len(img.Layers)-1)] {
			below[l.Chain] = true
		}
		bases[img.Parent] = true
	}
	delete(bases, "")
	for _, img := range images {
		if below[img.top()] {
			bases[img.ID] = true
		}
	}
	return bases
}

// holders counts the images that hold each layer, by its chain.
type holders map[string]int

func holdersOf(images []Image) holders {
	h := holders{}
	for _, img := range images {
		for _, l := range img.Layers {
			h[l.Chain]++
		}
	}
	return h
}

// remove takes an image away and returns how many bytes nothing holds any more.
func (h holders) remove(img Image) int64 {
	n := img.Own
	for _, l := range img.Layers {
		if h[l.Chain]--; h[l.Chain] == 0 {
			n += l.Size - l.Cached
		}
	}
	return n
}

// put takes back what remove did.
func (h holders) put(img Image) {
	for _, l := range img.Layers {
		h[l.Chain]++
	}
}

// measure fills in how large the layers of the images are, what each image alone holds, and
// which layers the build cache holds too.
func (s *Snapshot) measure(ctx context.Context, e Engine) error {
	unpacked, err := s.unpackedSizes(ctx, e)
	if err != nil {
		return err
	}
	s.addSharedLayers(unpacked)
	if s.Containerd && packedSharesMissing(s.Images, unpacked) {
		for i := range s.Images {
			s.Images[i].Shared = -1
		}
	}
	sizes := layerSizes(s.Images, unpacked)
	cached, err := s.cachedLayers(ctx, e, unpacked, sizes)
	if err != nil {
		return err
	}
	h := holdersOf(s.Images)
	for i := range s.Images {
		img := &s.Images[i]
		if len(img.Layers) == 0 {
			img.Own = img.Unique
			continue
		}
		img.Own, img.Unique = img.Size, 0
		for j := range img.Layers {
			l := &img.Layers[j]
			l.Size, l.Cached = sizes[l.Chain], cached[l.Chain]
			img.Own -= l.Size
			if h[l.Chain] == 1 {
				img.Unique += l.Size - l.Cached
			}
		}
		if img.Own < smallOwn {
			img.Own = 0
		}
		img.Unique += img.Own
	}
	return nil
}

// addSharedLayers gives the images that the Engine can't show the layers that they may share with
// others. The Engine still says how many bytes they share, and what two images share are the lowest
// layers. So each image whose lowest layers have that size may share them.
func (s *Snapshot) addSharedLayers(unpacked map[string]int64) {
	for i := range s.Images {
		damaged := &s.Images[i]
		if damaged.Unreadable == "" || damaged.Shared <= 0 {
			continue
		}
		held := map[string]bool{}
		for _, img := range s.Images {
			if img.Unreadable != "" {
				continue
			}
			var below int64
			for j, l := range img.Layers {
				below += unpacked[l.Chain]
				if below > damaged.Shared {
					break
				}
				if below < damaged.Shared {
					continue
				}
				for _, l := range img.Layers[:j+1] {
					if !held[l.Chain] {
						held[l.Chain] = true
						damaged.Layers = append(damaged.Layers, l)
					}
				}
			}
		}
	}
}

// packedSharesMissing reports whether the Engine counts only the unpacked layers among what images
// share, and so the packed ones as if each image had its own. Docker 28 does so with containerd's
// store. Then no image shares more than the unpacked layers that others have too.
func packedSharesMissing(images []Image, unpacked map[string]int64) bool {
	h, missing := holdersOf(images), false
	for _, img := range images {
		var shared int64
		known := img.Unreadable == ""
		for _, l := range img.Layers {
			if h[l.Chain] > 1 {
				size, ok := unpacked[l.Chain]
				shared, known = shared+size, known && ok
			}
		}
		if !known || shared == 0 {
			continue
		}
		if img.Shared > shared {
			return false
		}
		missing = missing || img.Shared == shared
	}
	return missing
}

// unpackedSizes asks for the sizes of all layers, by chain. They are in the history of the
// images; the Engine has no better place. An image without a readable history is left out.
func (s *Snapshot) unpackedSizes(ctx context.Context, e Engine) (map[string]int64, error) {
	byDepth := slices.Clone(s.Images) // the images with most layers first: most others are within them
	slices.SortFunc(byDepth, func(a, b Image) int {
		return cmp.Or(cmp.Compare(len(b.Layers), len(a.Layers)), cmp.Compare(a.ID, b.ID))
	})
	sizes := map[string]int64{}
	for _, img := range byDepth {
		if !slices.ContainsFunc(img.Layers, func(l Layer) bool { _, known := sizes[l.Chain]; return !known }) {
			continue
		}
		history, err := e.ImageHistory(ctx, img.ID)
		if cerrdefs.IsNotFound(err) || cerrdefs.IsInternal(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask for the history of image %s: %w", img.ID, err)
		}
		for i, size := range historySizes(history.Items, len(img.Layers)) {
			if _, known := sizes[img.Layers[i].Chain]; !known {
				sizes[img.Layers[i].Chain] = size
			}
		}
	}
	return sizes, nil
}

// historySizes returns the sizes of the n layers that a history made, the lowest first, or
// nothing if that can't be told. Steps that only set metadata have made none. A step such as
// WORKDIR has made one of size 0 or more.
func historySizes(history []image.HistoryResponseItem, n int) []int64 {
	var sure, likely []int64 // without and with the steps that may have made an empty layer
	for _, item := range slices.Backward(history) {
		if item.Size > 0 {
			sure = append(sure, item.Size)
		}
		if item.Size > 0 || !setsMetadata(item.CreatedBy) {
			likely = append(likely, item.Size)
		}
	}
	switch n {
	case len(sure):
		return sure
	case len(likely):
		return likely
	}
	return nil
}

// setsMetadata reports whether the step of a build that is described so makes no layer.
func setsMetadata(createdBy string) bool {
	if _, step, ok := strings.Cut(createdBy, "#(nop)"); ok {
		createdBy = step
	}
	switch word, _, _ := strings.Cut(strings.TrimSpace(createdBy), " "); word {
	case "ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME":
		return true
	}
	return false
}

// layerSizes returns what each layer occupies, by chain. The sizes of the images are to be
// trusted: they have all that an image keeps on the disk, packed layers too, where the store
// has them. So what an image has more than the layers that are known belongs to its other
// layers, by the share of their unpacked sizes.
func layerSizes(images []Image, unpacked map[string]int64) map[string]int64 {
	sizes := map[string]int64{}
	divide := func(bytes int64, layers []Layer) {
		var unknown []string
		var all int64
		for _, l := range layers {
			if _, known := sizes[l.Chain]; !known {
				unknown = append(unknown, l.Chain)
				all += unpacked[l.Chain]
			}
		}
		bytes = max(0, bytes)
		left := bytes
		for i, chain := range unknown {
			part := left
			if i < len(unknown)-1 {
				part = 0
				if all > 0 {
					part = min(left, int64(float64(bytes)*(float64(unpacked[chain])/float64(all))))
				}
			}
			sizes[chain] = part
			left -= part
		}
	}
	// First the layers that only one image has, if the Engine says how much that is.
	h := holdersOf(images)
	for _, img := range images {
		if img.Shared >= 0 {
			divide(img.Size-img.Shared, slices.DeleteFunc(slices.Clone(img.Layers), func(l Layer) bool { return h[l.Chain] > 1 }))
		}
	}
	// Then from the bottom up: what an image has more than the one below it.
	byDepth := slices.Clone(images)
	slices.SortFunc(byDepth, func(a, b Image) int {
		return cmp.Or(cmp.Compare(len(a.Layers), len(b.Layers)), cmp.Compare(a.ID, b.ID))
	})
	for _, img := range byDepth {
		rest := img.Size
		for _, l := range img.Layers {
			rest -= sizes[l.Chain]
		}
		divide(rest, img.Layers)
	}
	return sizes
}

// cachedLayers returns how many bytes of each layer the build cache holds too, by chain. The
// Engine says which records of the cache belong to layers of images, but not to which ones. So
// a record and a layer of the same size belong together. Where more layers have a size than
// records, those of images without a parent come first, since an image that has one is the classic
// builder's, which doesn't use this cache, and then those of the newest images.
//
// The cache holds the unpacked layer. The packed one, which only containerd's store has, goes
// with the last image.
func (s *Snapshot) cachedLayers(ctx context.Context, e Engine, unpacked, sizes map[string]int64) (map[string]int64, error) {
	usage, err := e.DiskUsage(ctx, client.DiskUsageOptions{BuildCache: true, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask for the build cache: %w", err)
	}
	var records []int64 // their sizes
	for _, r := range usage.BuildCache.Items {
		if r.Size > 0 && r.Shared {
			records = append(records, r.Size)
		}
	}
	likeliestFirst := slices.Clone(s.Images)
	slices.SortFunc(likeliestFirst, func(a, b Image) int {
		switch classic := a.Parent != ""; {
		case classic == (b.Parent != ""):
			return cmp.Or(b.Built.Compare(a.Built), cmp.Compare(a.ID, b.ID))
		case classic:
			return 1
		}
		return -1
	})
	cached, seen := map[string]int64{}, map[string]bool{}
	for _, img := range likeliestFirst {
		for _, l := range img.Layers {
			if seen[l.Chain] {
				continue
			}
			seen[l.Chain] = true
			alone, packed := unpacked[l.Chain], sizes[l.Chain]
			i := slices.IndexFunc(records, func(n int64) bool {
				// With the packed layer, the size isn't known to the byte.
				return n == alone || s.Containerd && max(n-packed, packed-n) <= packed/64
			})
			if i >= 0 {
				records = slices.Delete(records, i, i+1)
				cached[l.Chain] = min(alone, packed)
			}
		}
	}
	return cached, nil
}
