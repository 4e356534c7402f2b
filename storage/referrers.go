package storage

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// What refers to a manifest, such as its signatures, is a list that the registry gives for each
// repository. It is an image index, and is kept as a manifest: within the budget, and hashed
// whenever it is read. A row among the tags says which list belongs to which manifest. Its name
// is the digest of that manifest, which is no name of a tag. So the file of the repository has
// it, it is found again without the index, and programs that don't know of it change nothing.
// A second row, in bucketMeta, finds the lists by the manifest alone.

// isReferrers reports whether a row among the tags is for a list of referrers. No tag has a colon.
func isReferrers(tag string) bool { return strings.Contains(tag, ":") }

// maxReferrers is how many lists of referrers of one repository are kept, the last ones that
// the upstream was asked for.
const maxReferrers = 1000

// SetReferrers keeps the list of what refers to a manifest of the repository, as the upstream has
// just said, if the manifest is cached. The list is used with the manifest, and forgotten with
// it. A nil body says that nothing refers to it.
// Errors: those of PutManifest.
func (s *Store) SetReferrers(from Origin, subject digest.Digest, mediaType string, body []byte) error {
	if body == nil || !s.room.state(subject).manifest {
		s.DeleteTag(from.Repository, string(subject))
		return nil
	}
	list := digest.FromBytes(body)
	if err := s.PutManifest(from, list, mediaType, body); err != nil {
		return err
	}
	s.SetTag(from.Repository, string(subject), Tag{Digest: list, MediaType: mediaType, Size: int64(len(body)), Checked: time.Now()})
	return nil
}

// Referrers returns the list that SetReferrers has kept last. It is not a use.
// Errors: fs.ErrNotExist when there is none, or it has been evicted; those of Manifest.
func (s *Store) Referrers(repository string, subject digest.Digest) (*Manifest, error) {
	t, err := s.Tag(repository, string(subject))
	if err != nil {
		return nil, err
	}
	return s.Manifest(t.Digest)
}

// referrersKey is the key in bucketMeta of the list of the manifest in a repository; without a
// repository, what the keys of all repositories begin with.
func referrersKey(subject, repository string) []byte {
	return pair("referrers", subject+"\x00"+repository)
}

// noteReferrers notes a row among the tags, if it is for a list of referrers.
func (c *catalogue) noteReferrers(repository, tag string, list digest.Digest) {
	if isReferrers(tag) {
		c.index.Set(bucketMeta, referrersKey(tag, repository), []byte(list))
	}
}

// dropReferrers takes back noteReferrers.
func (c *catalogue) dropReferrers(repository, tag string) {
	if isReferrers(tag) {
		c.index.Delete(bucketMeta, referrersKey(tag, repository))
	}
}

// referrersOf returns the lists of a manifest, by repository; of all manifests with "".
// Errors: that the index can't be read.
func (c *catalogue) referrersOf(subject digest.Digest) (lists map[taggedName]digest.Digest, err error) {
	prefix := referrersKey(string(subject), "")
	if subject == "" {
		prefix = pair("referrers", "")
	}
	err = c.index.Each(bucketMeta, prefix, func(k, v []byte) error {
		_, rest := unpair(k)
		of, repository, _ := strings.Cut(rest, "\x00")
		if lists == nil {
			lists = map[taggedName]digest.Digest{}
		}
		lists[taggedName{repository, of}] = digest.Digest(v)
		return nil
	})
	return lists, err
}

// forgetReferrers forgets the lists of a manifest that has left. The lists themselves are evicted
// like all that isn't used any more.
func (c *catalogue) forgetReferrers(subject digest.Digest) {
	lists, _ := c.referrersOf(subject) // the next sweep finds what can't be read now
	for row := range lists {
		if c.repositories.deleteTag(row.repository, row.tag) {
			c.repositories.files.changed(row.repository)
		}
	}
}

// sweepReferrers forgets those lists that are not cached, or whose manifests aren't.
func (h *housekeeping) sweepReferrers() error {
	repositories := h.catalogue.repositories
	lists, err := h.catalogue.referrersOf("")
	for row, list := range lists {
		if _, err := repositories.keptTag(row.repository, row.tag); err == nil && repositories.cached(list) && repositories.cached(digest.Digest(row.tag)) {
			continue
		}
		h.catalogue.dropReferrers(row.repository, row.tag)
		if repositories.deleteTag(row.repository, row.tag) {
			h.repos.changed(row.repository)
		}
	}
	return err
}
