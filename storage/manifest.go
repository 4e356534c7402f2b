package storage

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
)

// Role is what a manifest names a child for.
type Role uint8

// The roles. A child of an index is a manifest; an image has one config and layers.
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

// maxChildren is far beyond any real image (the largest have some 130 layers, indexes a
// few dozen platforms): what a hostile manifest can make the index hold.
const maxChildren = 10_000

// Children returns what the manifest in body names: the manifests of an index, or config
// and layers of an image, in order, each once. Media types don't matter, only the shape,
// so artifact manifests and types yet to come work too. What isn't a manifest, or names
// more than 10,000 children, has none: it can be stored and served all the same.
//
// OCI image-spec 1.1 manifest and image-index; Docker schema 2 has the same shape.
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
	if len(m.Manifests)+len(m.Layers)+len(m.Blobs) > maxChildren {
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

// descriptor is what is read of one.
type descriptor struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// descriptors stop being read where no real manifest goes on: a million empty ones, which
// a body of 4 MiB has room for, would become a hundred times that in memory.
type descriptors []descriptor

var errTooManyChildren = errors.New("too many children")

func (ds *descriptors) UnmarshalJSON(b []byte) error {
	*ds = nil // of a key that comes twice the last counts
	in := json.NewDecoder(bytes.NewReader(b))
	start, err := in.Token()
	if err != nil || start == nil { // null
		return err
	}
	if start != json.Delim('[') {
		return errors.New("not a list of descriptors")
	}
	for in.More() {
		if len(*ds) == maxChildren {
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
