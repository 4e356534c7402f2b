package storage

import (
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// layout knows where things lie under the data directory (docs/disk-format.md).
type layout string

func (l layout) blobs() string  { return filepath.Join(string(l), "blobs") }
func (l layout) ingest() string { return filepath.Join(string(l), "ingest") }
func (l layout) repos() string  { return filepath.Join(string(l), "repos") }
func (l layout) index() string  { return filepath.Join(string(l), "index.db") }

// blob is the place of a committed blob. d must be valid.
func (l layout) blob(d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(l.blobs(), d.Algorithm().String(), hex[:2], hex)
}

// partial is the place of a blob on its way in, partialState of what is known of it.
func (l layout) partial(d digest.Digest) string {
	return filepath.Join(l.ingest(), d.Algorithm().String()+"-"+d.Encoded())
}

func (l layout) partialState(d digest.Digest) string { return l.partial(d) + ".json" }

// repo is the place of what is kept of a repository, whose name begins with its registry.
// A name's component may itself end in ".json"; as a folder it gets a %, which no
// name contains, so that it can't be taken for the file of another repository.
func (l layout) repo(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts[:len(parts)-1] {
		if strings.HasSuffix(p, ".json") {
			parts[i] = p + "%"
		}
	}
	return filepath.Join(l.repos(), filepath.Join(parts...)+".json")
}

// digestOf is the inverse of blob and partial for a file's algorithm and hex part;
// ok is false for names that aren't ours.
func digestOf(algorithm, hex string) (d digest.Digest, ok bool) {
	d = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	return d, d.Validate() == nil
}
