package registry_test

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// oldContent is what the fake Hub had when testdata/data-a8918c7.tar.gz was written. It is
// made of literal text and not by hubtest's own builders, so that no change of theirs can
// give it other digests than those in the data folder.
type oldContent struct {
	redis7, redis6, tools1, tools2, private, once oldImage

	base  digest.Digest // a layer of redis7, redis6, tools1 and tools2
	large digest.Digest // a layer of tools2, of which the data folder has the first largeHas bytes

	names map[digest.Digest]string // for messages: "redis7 layer 1"
}

const (
	largeSize = 2 << 20
	largeHas  = 3 << 19
)

// oldImage is an image of oldContent. manifest is that of the platform that was pulled.
type oldImage struct {
	repository, tag string
	mediaType       string // of what the tag names
	top, manifest   digest.Digest
	blobs           []digest.Digest // config, then layers
}

// all returns the digests of the image: what the tag names, the manifest, and the blobs.
func (img oldImage) all() []digest.Digest {
	ds := []digest.Digest{img.manifest}
	if img.top != img.manifest {
		ds = append(ds, img.top)
	}
	return append(ds, img.blobs...)
}

const (
	oldUsername = "ci-bot"
	oldToken    = "dckr_pat_fakefakefakefakefakefake"
)

// publishOldContent fills hub.
func publishOldContent(hub *hubtest.Hub) *oldContent {
	c := &oldContent{names: map[digest.Digest]string{}}
	base := oldText("base", 6000)
	c.base = digest.FromBytes(base)
	large := oldText("large", largeSize)
	c.large = digest.FromBytes(large)

	c.redis7 = c.index(hub, "redis7", "library/redis", "7", base, oldText("redis 7", 4000))
	c.redis6 = c.single(hub, "redis6", "library/redis", "6", false, base, oldText("redis 6", 3000))
	c.tools1 = c.single(hub, "tools1", "acme/tools", "1", true, base, oldText("tools 1", 5000))
	c.tools2 = c.single(hub, "tools2", "acme/tools", "2", false, base, large)
	c.private = c.single(hub, "private", "acme/private", "1", false, oldText("private", 4500))
	c.once = c.single(hub, "once", "acme/once", "1", false, oldText("once", 3500))
	c.single(hub, "secret", "corp/secret", "1", false, oldText("secret", 2500))
	hub.SetPrivate("acme/private", true)
	hub.SetPrivate("corp/secret", true)
	hub.SetPrivate("acme/mirror", false)
	hub.LinkBlob("acme/mirror", c.redis7.blobs[2])
	c.names[c.base], c.names[c.large] = "base layer", "large layer"
	return c
}

// oldText returns size bytes that no other name gives. Most lines are repeated, so that
// the data folder is small when it is compressed.
func oldText(name string, size int) []byte {
	var b strings.Builder
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(&b, "%s, line %d\n", name, n/100)
	}
	return []byte(b.String()[:size])
}

// single publishes an image of one platform, in Docker's formats or OCI's.
func (c *oldContent) single(hub *hubtest.Hub, name, repository, tag string, docker bool, layers ...[]byte) oldImage {
	img := oldImage{repository: repository, tag: tag, mediaType: ocispec.MediaTypeImageManifest}
	if docker {
		img.mediaType = hubtest.DockerManifest
	}
	var m ocispec.Descriptor
	m, img.blobs = c.manifest(hub, name, repository, tag, img.mediaType, layers)
	img.top, img.manifest = m.Digest, m.Digest
	return img
}

// index publishes an image of two platforms, and returns the first.
func (c *oldContent) index(hub *hubtest.Hub, name, repository, tag string, layers ...[]byte) oldImage {
	img := oldImage{repository: repository, tag: tag, mediaType: ocispec.MediaTypeImageIndex}
	m, blobs := c.manifest(hub, name, repository, "", ocispec.MediaTypeImageManifest, layers)
	other, _ := c.manifest(hub, name+" arm64", repository, "", ocispec.MediaTypeImageManifest, [][]byte{oldText(name+" arm64", 4200)})
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[`+
		`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}},`+
		`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"arm64"}}]}`, img.mediaType,
		m.MediaType, m.Digest, m.Size, other.MediaType, other.Digest, other.Size)
	img.manifest, img.blobs = m.Digest, blobs
	img.top = hub.AddManifest(repository, tag, img.mediaType, []byte(body)).Digest
	c.names[img.top] = name + " index"
	return img
}

// manifest publishes a platform's manifest with its config and layers, and returns the
// digests of these.
func (c *oldContent) manifest(hub *hubtest.Hub, name, repository, tag, mediaType string, layers [][]byte) (ocispec.Descriptor, []digest.Digest) {
	config := hub.AddBlob(repository, "", fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","config":{"Labels":{"name":%q}}}`, name))
	c.names[config.Digest] = name + " config"
	blobs := []digest.Digest{config.Digest}
	var list []string
	for i, layer := range layers {
		d := hub.AddBlob(repository, "", layer)
		c.names[d.Digest] = fmt.Sprintf("%s layer %d", name, i+1)
		blobs = append(blobs, d.Digest)
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, d.Digest, d.Size))
	}
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[%s]}`,
		mediaType, config.Digest, config.Size, strings.Join(list, ","))
	m := hub.AddManifest(repository, tag, mediaType, []byte(body))
	c.names[m.Digest] = name + " manifest"
	return m, blobs
}
