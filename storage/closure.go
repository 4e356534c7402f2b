package storage

import (
	"errors"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// closure is all that an image is made of: what it names, what that names, and what refers to
// these in the image's repository, such as signatures. Of the platforms of an index it has those
// of which something is cached beside the manifest.
type closure struct {
	store      *Store
	repository string
	cached     map[digest.Digest]int64 // bytes on disk of what is here
	manifests  []digest.Digest         // those of cached that are manifests
	missing    map[digest.Digest]int64 // bytes of what isn't, as the manifests claim, and clients need it
	idle       map[digest.Digest]bool  // what isn't here, of platforms that only have a manifest here
}

// maxClosure is how many levels are followed: index, manifest, list of what refers to it, one of
// these, and its layers; and a signature of that.
const maxClosure = 8

// maxManifestFile, in bytes, is more than any manifest has that the pull API serves.
const maxManifestFile = 4 << 20

// closure returns what the image with the manifest d in a repository is made of; nothing if that
// isn't cached. Errors: that the index or a manifest can't be read.
func (s *Store) closure(repository string, d digest.Digest) (*closure, error) {
	c := &closure{store: s, repository: repository, cached: map[digest.Digest]int64{}, missing: map[digest.Digest]int64{}, idle: map[digest.Digest]bool{}}
	_, err := c.add(d, 0)
	return c, err
}

// add adds a manifest and what belongs to it. It reports whether the platform is here: of an
// image, whether any blob of it is cached.
func (c *closure) add(d digest.Digest, depth int) (here bool, err error) {
	e, ok := c.store.room.entry(d)
	if _, seen := c.cached[d]; seen || !ok || depth > maxClosure {
		return true, nil
	}
	c.cached[d], c.manifests = e.Size, append(c.manifests, d)
	children, body, err := c.store.named(d)
	if err != nil {
		return true, err
	}
	var missing []image.Child
	for _, child := range children {
		e, ok := c.store.room.entry(child.Digest)
		switch {
		case child.Role == image.RoleManifest:
			here = true
			if _, err := c.add(child.Digest, depth+1); err != nil {
				return true, err
			}
		case ok:
			here = true
			c.cached[child.Digest] = e.Size
		default:
			missing = append(missing, child)
		}
	}
	if err := c.lack(d, body, missing, here || depth == 0); err != nil {
		return here, err
	}
	return here, c.addReferrers(d, depth)
}

// lack notes what is missing of a manifest, but for what clients can do without. body may be nil.
func (c *closure) lack(d digest.Digest, body []byte, missing []image.Child, here bool) error {
	if len(missing) == 0 {
		return nil
	}
	if !here {
		for _, child := range missing {
			c.idle[child.Digest] = true
		}
		return nil
	}
	if body == nil {
		var err error
		if body, err = c.store.body(d); err != nil {
			return err
		}
	}
	without := image.Dispensable(body)
	for _, child := range missing {
		if !without[child.Digest] {
			c.missing[child.Digest] = max(c.missing[child.Digest], child.Size)
		}
	}
	return nil
}

// addReferrers adds the list of what refers to a manifest in the repository, and what of it is
// cached.
func (c *closure) addReferrers(d digest.Digest, depth int) error {
	lists, err := c.store.catalogue.referrersOf(d)
	if err != nil {
		return err
	}
	if list, ok := lists[taggedName{c.repository, string(d)}]; ok {
		_, err = c.add(list, depth+1)
	}
	return err
}

// named returns what a cached manifest names, and its bytes if it had to be read: after a crash
// the index may not know that it is a manifest. Errors: that the index or the file can't be read.
func (s *Store) named(d digest.Digest) (children []image.Child, body []byte, err error) {
	r, err := s.catalogue.record(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || r.manifest {
		return r.children, nil, err
	}
	if body, err = s.body(d); err != nil {
		return nil, nil, err
	}
	return image.Children(body), body, nil
}

// body returns the bytes of a cached manifest, and none when it isn't there any more, or can't be
// a manifest. Errors: that it can't be read.
func (s *Store) body(d digest.Digest) ([]byte, error) {
	b, err := s.files.open(d, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size > maxManifestFile {
		return nil, nil
	}
	return io.ReadAll(b.File)
}
