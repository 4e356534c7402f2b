// Package image parses manifests: what an index or an image names, and as what.
//
// It does no I/O and keeps no state. All functions are safe for concurrent use.
package image

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
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
	var m struct {
		Manifests descriptors `json:"manifests"`
		Config    *descriptor `json:"config"`
		Layers    descriptors `json:"layers"`
		Blobs     descriptors `json:"blobs"` // artifact manifest of the 1.1 release candidates
	}
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	if len(m.Manifests)+len(m.Layers)+len(m.Blobs) > MaxChildren {
		return nil
	}
	var children []Child
	seen := map[digest.Digest]bool{}
	add := func(d descriptor, role Role) {
		if seen[d.Digest] || d.Size < 0 || d.Digest.Validate() != nil {
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

// descriptor holds the fields of an OCI descriptor that are needed here.
type descriptor struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
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
