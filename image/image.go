// Package image parses manifests: what an index or an image names, and as what.
//
// It does no I/O and keeps no state. All functions are safe for concurrent use.
package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Role says as what a manifest names a child. It is written to disk: the numbers stay.
// The zero value is no role.
type Role uint8

// The roles. A child of an index is a manifest. An image has one config and any number of
// layers.
const (
	RoleManifest Role = 1 + iota
	RoleConfig
	RoleLayer
)

// Child is a descriptor found in a manifest.
type Child struct {
	Digest digest.Digest
	Size   int64 // bytes, as the manifest claims
	Role   Role
}

// MaxChildren is the most children that Children returns. It is far beyond any real image
// (the largest have some 130 layers, and indexes a few dozen platforms), and limits how much
// a hostile manifest can put into memory and into the index.
const MaxChildren = 10_000

// Children returns what the manifest in body names: the manifests of an index, or the config
// and layers of an image, in order, each once. Only the shape matters, not the media type, so
// artifact manifests and future types work too. A body that isn't a manifest, or that names
// more than MaxChildren, has no children: it can be stored and served all the same.
// Descriptors with an invalid digest or a negative size are left out.
//
// The shape is that of the OCI image-spec 1.1; Docker schema 2 has the same.
func Children(body []byte) []Child {
	m, ok := parse(body)
	if !ok {
		return nil
	}
	var children []Child
	seen := map[digest.Digest]bool{}
	add := func(d descriptor, role Role) {
		if seen[d.Digest] || !d.valid() {
			return
		}
		seen[d.Digest] = true
		children = append(children, Child{d.Digest, d.Size, role})
	}
	for _, d := range m.Manifests {
		add(d, RoleManifest)
	}
	if m.Config != nil {
		add(*m.Config, RoleConfig)
	}
	for _, d := range append(m.Layers, m.Blobs...) {
		add(d, RoleLayer)
	}
	return children
}

// Dispensable returns those children of the manifest in body that its clients can do without,
// so that it is whole although they are missing:
//
//   - A layer with urls (a foreign layer; Windows images). Clients get it from there, and the
//     registry may never have had it.
//   - The config of what isn't a container image, such as a signature or a chart: many clients
//     don't ask for it.
//   - The empty blob, {}, of which the image-spec says that clients need not fetch it.
//
// A body that isn't a manifest has none.
func Dispensable(body []byte) map[digest.Digest]bool {
	m, ok := parse(body)
	if !ok {
		return nil
	}
	without := map[digest.Digest]bool{}
	layers := append(m.Layers, m.Blobs...)
	container := m.Config == nil || m.Config.Type == configType || m.Config.Type == noType
	for _, l := range layers {
		if l.valid() && (bool(l.URLs) || isEmptyBlob(l.Digest)) {
			without[l.Digest] = true
		}
		container = container && (l.Type == layerType || l.Type == noType)
	}
	if m.Config != nil && m.Config.valid() && (!container || isEmptyBlob(m.Config.Digest)) {
		without[m.Config.Digest] = true
	}
	// What is also named as something else is needed.
	for _, l := range layers {
		if !bool(l.URLs) && !isEmptyBlob(l.Digest) {
			delete(without, l.Digest)
		}
	}
	return without
}

// isEmptyBlob reports whether d is the digest of {}, which stands where an artifact has nothing
// to say.
func isEmptyBlob(d digest.Digest) bool {
	return d.Validate() == nil && d == d.Algorithm().FromBytes(v1.DescriptorEmptyJSON.Data)
}

// manifest is the part of a manifest that is needed here.
type manifest struct {
	Manifests descriptors `json:"manifests"`
	Config    *descriptor `json:"config"`
	Layers    descriptors `json:"layers"`
	Blobs     descriptors `json:"blobs"` // artifact manifest of the 1.1 release candidates
}

// parse is false for what isn't a manifest, or names more than MaxChildren.
func parse(body []byte) (m manifest, ok bool) {
	if json.Unmarshal(body, &m) != nil {
		return m, false
	}
	return m, len(m.Manifests)+len(m.Layers)+len(m.Blobs) <= MaxChildren
}

// descriptor holds the fields of an OCI descriptor that are needed here.
type descriptor struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Type   contentType   `json:"mediaType"`
	URLs   anyOf         `json:"urls"`
}

func (d *descriptor) valid() bool { return d.Size >= 0 && d.Digest.Validate() == nil }

// contentType is what a media type stands for. The text isn't kept, since there may be 10,000
// long ones.
type contentType uint8

const (
	noType     contentType = iota // none is named
	otherType                     // of an artifact
	configType                    // the config of a container image
	layerType                     // a layer of one
)

func (t *contentType) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		return nil // a body of another shape can be stored and served all the same
	}
	*t = otherType
	switch {
	case s == "":
		*t = noType
	case s == v1.MediaTypeImageConfig || s == "application/vnd.docker.container.image.v1+json":
		*t = configType
	case strings.HasPrefix(s, "application/vnd.oci.image.layer.") || strings.HasPrefix(s, "application/vnd.docker.image.rootfs."):
		*t = layerType
	}
	return nil
}

// anyOf is true for a list that isn't empty.
type anyOf bool

func (a *anyOf) UnmarshalJSON(b []byte) error {
	*a = len(b) > 2 && b[0] == '[' && len(bytes.TrimSpace(b[1:len(b)-1])) > 0
	return nil
}

// descriptors is a list that fails to decode once it is longer than MaxChildren. Without
// this limit a body of 4 MiB could name a million empty descriptors, which take a hundred
// times as much memory.
type descriptors []descriptor

var errTooManyChildren = errors.New("too many children")

func (ds *descriptors) UnmarshalJSON(b []byte) error {
	*ds = nil // when a key comes twice, the last one counts
	in := json.NewDecoder(bytes.NewReader(b))
	start, err := in.Token()
	if err != nil || start == nil { // null
		return err
	}
	if start != json.Delim('[') {
		return errors.New("not a list of descriptors")
	}
	for in.More() {
		if len(*ds) == MaxChildren {
			return errTooManyChildren
		}
		var d descriptor
		if err := in.Decode(&d); err != nil {
			return err
		}
		*ds = append(*ds, d)
	}
	return nil
}
