package hubtest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's own formats.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// ImageSpec describes an image to make. The zero value is a single-platform OCI image without
// layers.
type ImageSpec struct {
	Layers       []Layer
	Docker       bool                // Docker's media types instead of OCI's
	Platforms    []string            // "linux/amd64", "linux/arm/v7"; several make an index; none is linux/amd64
	Index        bool                // make an index even for one platform
	Attestations bool                // one attestation child per platform, as BuildKit makes them; implies Index
	Config       ocispec.ImageConfig // Cmd, Env and so on
	Indent       string              // of manifests; "" is three spaces, as Docker's own tools write them
	Algorithm    digest.Algorithm    // "" is sha256
}

// Manifest is a single-platform or attestation manifest and what it names.
type Manifest struct {
	ocispec.Descriptor // of the manifest itself, with platform
	Bytes              []byte
	Config             ocispec.Descriptor
	Layers             []ocispec.Descriptor
}

// Image is an image that the Hub serves.
type Image struct {
	Repository, Tag    string
	ocispec.Descriptor        // of what the tag names: the index, or else the one manifest
	Bytes              []byte // of what the tag names
	IsIndex            bool
	Manifests          []Manifest // one per platform, then the attestations
}

// Blobs lists configs and layers of all manifests, each digest once.
func (i *Image) Blobs() []ocispec.Descriptor {
	var blobs []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	for _, m := range i.Manifests {
		for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				blobs = append(blobs, d)
			}
		}
	}
	return blobs
}

// Size is the sum of the sizes of Blobs.
func (i *Image) Size() int64 {
	var n int64
	for _, b := range i.Blobs() {
		n += b.Size
	}
	return n
}

// builder makes one image and puts it into the content.
type builder struct {
	content         *content
	seed            uint64 // Options.Seed
	spec            ImageSpec
	repository, tag string
	made            uint64 // synthetic layers so far
}

func (b *builder) image() *Image {
	b.spec.Algorithm = cmp.Or(b.spec.Algorithm, digest.SHA256)
	b.spec.Indent = cmp.Or(b.spec.Indent, "   ")
	platforms := b.spec.Platforms
	if len(platforms) == 0 {
		platforms = []string{"linux/amd64"}
	}
	img := &Image{Repository: b.repository, Tag: b.tag}
	img.IsIndex = b.spec.Index || b.spec.Attestations || len(platforms) > 1
	for _, name := range platforms {
		img.Manifests = append(img.Manifests, b.platform(parsePlatform(name), img.IsIndex))
	}
	if !img.IsIndex {
		img.Descriptor, img.Bytes = img.Manifests[0].Descriptor, img.Manifests[0].Bytes
		return img
	}
	if b.spec.Attestations {
		for _, m := range img.Manifests[:len(platforms)] {
			img.Manifests = append(img.Manifests, b.attestation(m))
		}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: b.pick(ocispec.MediaTypeImageIndex, DockerList)}
	for _, m := range img.Manifests {
		index.Manifests = append(index.Manifests, m.Descriptor)
	}
	img.Bytes = mustJSON(index, b.spec.Indent)
	img.Descriptor = b.content.addManifest(b.repository, b.tag, index.MediaType, img.Bytes, b.spec.Algorithm)
	return img
}

func (b *builder) pick(oci, docker string) string {
	if b.spec.Docker {
		return docker
	}
	return oci
}

// platform makes the image of one platform. As an index's child it gets no tag.
func (b *builder) platform(p ocispec.Platform, child bool) Manifest {
	var layers []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range b.spec.Layers {
		d, diffID := b.layer(l)
		layers = append(layers, d)
		diffIDs = append(diffIDs, diffID)
	}
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	config := ocispec.Image{
		Created: &created, Platform: p, Config: b.spec.Config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
	for range layers {
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: recordedName})
	}
	m := Manifest{
		Config: b.blob(b.pick(ocispec.MediaTypeImageConfig, dockerConfig), mustJSON(config, "")),
		Layers: layers,
	}
	tag := b.tag
	if child {
		tag = ""
	}
	b.put(&m, tag)
	m.Platform = &p
	return m
}

// attestation makes the child that BuildKit attaches to a platform's manifest.
func (b *builder) attestation(of Manifest) Manifest {
	statement := mustJSON(map[string]any{
		"_type":         "https://in-toto.io/Statement/v0.1",
		"predicateType": "https://slsa.dev/provenance/v0.2",
		"subject":       []any{map[string]any{"name": b.repository, "digest": map[string]string{of.Digest.Algorithm().String(): of.Digest.Encoded()}}},
	}, "")
	layer := b.blob("application/vnd.in-toto+json", statement)
	unknown := ocispec.Platform{Architecture: "unknown", OS: "unknown"}
	config := ocispec.Image{Platform: unknown, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}}
	m := Manifest{
		Config: b.blob(ocispec.MediaTypeImageConfig, mustJSON(config, "")),
		Layers: []ocispec.Descriptor{layer},
	}
	b.put(&m, "")
	m.Platform = &unknown
	m.Annotations = map[string]string{
		"vnd.docker.reference.digest": of.Digest.String(),
		"vnd.docker.reference.type":   "attestation-manifest",
	}
	return m
}

// put stores m's manifest and fills in its own descriptor.
func (b *builder) put(m *Manifest, tag string) {
	doc := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: b.pick(ocispec.MediaTypeImageManifest, DockerManifest),
		Config:    m.Config,
		Layers:    m.Layers,
	}
	if doc.Layers == nil {
		doc.Layers = []ocispec.Descriptor{}
	}
	m.Bytes = mustJSON(doc, b.spec.Indent)
	m.Descriptor = b.content.addManifest(b.repository, tag, doc.MediaType, m.Bytes, b.spec.Algorithm)
}

func (b *builder) blob(mediaType string, content []byte) ocispec.Descriptor {
	return b.blobAt(mediaType, Bytes(content), int64(len(content)))
}

func (b *builder) blobAt(mediaType string, r io.ReaderAt, size int64) ocispec.Descriptor {
	d, err := b.spec.Algorithm.FromReader(io.NewSectionReader(r, 0, size))
	if err != nil {
		panic(fmt.Sprintf("hubtest: reading a blob: %v", err)) // all of ours are in memory
	}
	return b.content.addBlob(b.repository, mediaType, d, r, size)
}

// layer stores a layer and returns it with the digest of its uncompressed tar.
func (b *builder) layer(l Layer) (ocispec.Descriptor, digest.Digest) {
	if l.Tar != nil {
		return b.blob(b.pick(ocispec.MediaTypeImageLayer, dockerLayer)+b.pick("+gzip", ".gzip"), compressed(l.Tar)), digest.FromBytes(l.Tar)
	}
	b.made++
	seed := l.Seed
	if seed == 0 {
		f := fnv.New64a()
		fmt.Fprintf(f, "%s\n%s\n%d\n%d", b.repository, b.tag, b.made, b.seed)
		seed = f.Sum64()
	}
	d := b.blobAt(b.pick(ocispec.MediaTypeImageLayer, dockerLayer), NewLayer(seed, l.Size), l.Size)
	return d, d.Digest
}

func compressed(tar []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(tar)
	w.Close()
	return buf.Bytes()
}

func parsePlatform(s string) ocispec.Platform {
	parts := strings.SplitN(s, "/", 3)
	p := ocispec.Platform{OS: parts[0]}
	if len(parts) > 1 {
		p.Architecture = parts[1]
	}
	if len(parts) > 2 {
		p.Variant = parts[2]
	}
	return p
}
