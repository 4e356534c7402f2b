package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// ManifestInMemory is the size in bytes up to which Store.Manifest returns the body of a
// manifest. It is that of the buffer with which a blob is sent where sendfile can't: so a
// client that reads slowly takes no more memory for a manifest than for a layer. Hardly any
// manifest is larger.
const ManifestInMemory = 128 << 10

// Manifest is the bytes of a manifest and what they say.
type Manifest struct {
	Digest    digest.Digest
	MediaType string // as upstream sent it
	Size      int64  // bytes
	Body      []byte // nil when Size is more than ManifestInMemory: Store.Open has them
	Children  []image.Child
	Private   bool // came through a repository that isn't public
}

// PutManifest keeps a manifest. What it names is linked to the repository even when there is
// no room for the manifest: the repository has named it all the same.
//
// Errors: ErrDigest, ErrNoRoom, ErrDisk, ErrBusy; nil when it is there already.
func (s *Store) PutManifest(from Origin, d digest.Digest, mediaType string, body []byte) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if got := d.Algorithm().FromBytes(body); got != d {
		return fmt.Errorf("%w: got %s for %s", ErrDigest, got, d)
	}
	m := &Manifest{MediaType: mediaType, Children: image.Children(body)}
	linkChildren := func() {
		s.catalogue.linkChildren(from.Repository, m.Children)
		s.house.flushSoon()
	}
	linkChildren()
	defer linkChildren() // again, since a sweep may have removed the links before the manifest was there
	in, err := s.begin(&Ingest{digest: d, from: from, size: int64(len(body)), manifest: m})
	if errors.Is(err, fs.ErrExist) {
		s.markManifest(d, m)
		s.catalogue.link(from.Repository, d, Link{true, int64(len(body))})
		s.repos.keepTagsOf(from.Repository, d)
		s.house.flushSoon()
		s.house.repos.changed(from.Repository)
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := in.WriteAt(body, 0); err != nil {
		in.Abort(err)
		return err
	}
	if err := in.Commit(); err != nil {
		return err
	}
	s.house.repos.changed(from.Repository)
	return nil
}

// markManifest says that a cached blob is a manifest: it was found on disk without a record,
// or fetched as a blob.
func (s *Store) markManifest(d digest.Digest, m *Manifest) {
	if _, changed := s.room.markManifest(d, false); changed {
		s.catalogue.amend(d, func(r *record) { r.setManifest(m) })
	}
}

// Manifest reads and hashes a manifest. It is not a use.
//
// Errors: fs.ErrNotExist when it isn't there, or isn't a manifest; another error when it can't
// be read.
func (s *Store) Manifest(d digest.Digest) (*Manifest, error) {
	b, err := s.files.open(d, false)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	r, err := s.catalogue.record(d)
	if err != nil {
		return nil, err
	}
	if !r.manifest {
		return nil, missing{"a blob, not a manifest"}
	}
	m := &Manifest{Digest: d, MediaType: r.mediaType, Size: b.Size, Children: r.children, Private: b.Private}
	h := d.Algorithm().Hash()
	if b.Size <= ManifestInMemory {
		m.Body = make([]byte, b.Size)
		if _, err := io.ReadFull(b.File, m.Body); err != nil {
			return nil, err
		}
		h.Write(m.Body)
	} else if _, err := io.CopyN(h, b.File, b.Size); err != nil {
		return nil, err
	}
	if digest.NewDigest(d.Algorithm(), h) != d { // its file wasn't synced, and a wrong one spoils a whole image
		_ = s.files.dropBad(b.e, ErrDigest) // it says what is returned here
		return nil, missing{"its bytes have another digest"}
	}
	return m, nil
}
