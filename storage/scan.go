package storage

import (
	"bytes"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// Mark tells blobs apart in lists of very many: the first 16 bytes of a digest, which take a sixth of
// the memory of the whole and no allocation. Nobody can make two blobs with the same one.
type Mark [16]byte

// MarkOf returns the mark of a digest, which must be valid.
func MarkOf(d digest.Digest) Mark { return markOf(d) }

// markOf is MarkOf. What isn't as long as any digest has the zero Mark.
func markOf[T ~string | ~[]byte](d T) (m Mark) {
	for n := range min(len(d), maxAlgorithm) {
		if d[n] != ':' {
			continue
		}
		if hex := d[n+1:]; len(hex) >= 2*len(m) {
			for n := range m {
				m[n] = unhex[hex[2*n]]<<4 | unhex[hex[2*n+1]]
			}
		}
		break
	}
	return m
}

// maxAlgorithm is more than the name of an algorithm has, with the colon.
const maxAlgorithm = 16

// unhex has the values of the hexadecimal digits of digests, which are lower case.
var unhex = func() (values [256]byte) {
	for n, c := range []byte("0123456789abcdef") {
		values[c] = byte(n)
	}
	return values
}()

// Row is what the index has of a cached blob.
type Row struct {
	Mark Mark
	Size int64 // bytes
	// Of a manifest: its digest, its media type, one string for all that are equal, and what it names.
	// The slices are valid until the function returns that got the row.
	Manifest  []byte
	MediaType string
	Children  []RowChild
}

// RowChild is what a manifest names.
type RowChild struct {
	Mark Mark
	Role image.Role
}

// EachBlob calls f for every cached blob, ordered by digest, in one pass over the index: to ask for
// each blob costs many times as much. f must not call methods that read the index.
// Errors: those of f; that the index can't be read.
func (s *Store) EachBlob(f func(r *Row) error) error {
	var row Row
	types := repeated{}
	return s.catalogue.index.Each(bucketBlobs, nil, func(k, v []byte) error {
		r, rest, err := decodeHead(v)
		if err != nil {
			return err
		}
		row = Row{Mark: markOf(k), Size: r.size, Children: row.Children[:0]}
		if !r.manifest {
			return f(&row)
		}
		row.Manifest = k
		d := decoder{b: rest}
		row.MediaType = types.one(d.bytes())
		for range d.uint(image.MaxChildren) {
			role := image.Role(d.byte())
			d.uint(1 << 62) // its size
			row.Children = append(row.Children, RowChild{markOf(d.bytes()), role})
		}
		if err := d.end(); err != nil {
			return err
		}
		return f(&row)
	})
}

// EachUse calls f with the last use of every cached blob, in Unix nanoseconds, ordered as in EachBlob. f must
// not call methods that read the index. Errors: those of f; that the index can't be read.
func (s *Store) EachUse(f func(m Mark, at int64) error) error {
	return s.catalogue.index.Each(bucketUses, nil, func(k, v []byte) error {
		at, err := decodeTime(v)
		if err != nil {
			return err
		}
		return f(markOf(k), at)
	})
}

// TagRow is what the index has of a tag.
type TagRow struct {
	Repository, Tag string
	Manifest        Mark
	MediaType       string    // one string for all that are equal
	Checked         time.Time // when upstream last said so
}

// EachTag calls f for every tag whose manifest is or was cached, ordered by repository. f must
// not call methods that read the index. Errors: those of f; that the index can't be read.
func (s *Store) EachTag(f func(TagRow) error) error {
	var keys orderedPairs
	types := repeated{}
	return s.catalogue.index.Each(bucketTags, nil, func(k, v []byte) error {
		repository, tag := keys.cut(k)
		if isReferrers(string(tag)) {
			return nil
		}
		d := decoder{b: v}
		row := TagRow{Repository: repository, Tag: string(tag), Checked: time.Unix(0, d.int())}
		d.int() // the size of the manifest
		row.Manifest, row.MediaType = markOf(d.bytes()), types.one(d.bytes())
		if err := d.end(); err != nil {
			return err
		}
		return f(row)
	})
}

// EachLinkMark is EachLink with the mark of each digest, and whether the upstream has confirmed the
// link.
func (s *Store) EachLinkMark(f func(repository string, m Mark, confirmed bool) error) error {
	var keys orderedPairs
	return s.catalogue.index.Each(bucketLinks, nil, func(k, v []byte) error {
		repository, d := keys.cut(k)
		if err := checkFlag(v); err != nil {
			return err
		}
		return f(repository, markOf(d), v[0] == 1)
	})
}

// repeated has the one string for all that are equal.
type repeated map[string]string

func (s repeated) one(b []byte) string {
	if have, ok := s[string(b)]; ok { // which allocates nothing
		return have
	}
	made := string(b)
	s[made] = made
	return made
}

// orderedPairs takes keys apart that are ordered. It makes one string for each repository: a list of
// all images keeps them.
type orderedPairs struct{ repository string }

func (o *orderedPairs) unpair(key []byte) (repository, name string) {
	repository, n := o.cut(key)
	return repository, string(n)
}

func (o *orderedPairs) cut(key []byte) (repository string, name []byte) {
	r, n, _ := bytes.Cut(key, []byte{0})
	if string(r) != o.repository {
		o.repository = string(r)
	}
	return o.repository, n
}
