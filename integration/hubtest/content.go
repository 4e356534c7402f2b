package hubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type content struct {
	blobs map[digest.Digest]*io.SectionReader
	repos map[string]*repo
}

type repo struct {
	private   bool
	tags      map[string]digest.Digest
	manifests map[digest.Digest]manifest
	blobs     map[digest.Digest]bool // what may be read under this name
}

type manifest struct {
	mediaType string
	bytes     []byte
}

func newContent() content {
	return content{blobs: map[digest.Digest]*io.SectionReader{}, repos: map[string]*repo{}}
}

// repo returns the repository, which it makes public when it is new.
func (c content) repo(name string) *repo {
	r := c.repos[name]
	if r == nil {
		r = &repo{
			tags:      map[string]digest.Digest{},
			manifests: map[digest.Digest]manifest{},
			blobs:     map[digest.Digest]bool{},
		}
		c.repos[name] = r
	}
	return r
}

// SetPrivate makes a repository private (or public again), and makes it when there is none.
// Only accounts that name it may read it. Repositories are public to begin with.
func (h *Hub) SetPrivate(repository string, private bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.content.repo(repository).private = private
}

// AddBlob puts a blob into a repository.
func (h *Hub) AddBlob(repository, mediaType string, b []byte) ocispec.Descriptor {
	return h.AddBlobAt(repository, mediaType, digest.FromBytes(b), bytes.NewReader(b), int64(len(b)))
}

// AddBlobAt puts a blob into a repository that is read from r whenever it is asked for, under
// the digest given, be it right or wrong.
func (h *Hub) AddBlobAt(repository, mediaType string, d digest.Digest, r io.ReaderAt, size int64) ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.content.blobs[d] = io.NewSectionReader(r, 0, size)
	h.content.repo(repository).blobs[d] = true
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: size}
}

// LinkBlob makes a blob of another repository readable under this one, as a mount does.
func (h *Hub) LinkBlob(repository string, d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.content.repo(repository).blobs[d] = true
}

// UnlinkBlob makes a blob unreadable under the repository: 404 BLOB_UNKNOWN.
func (h *Hub) UnlinkBlob(repository string, d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.content.repo(repository).blobs, d)
}

// Blob returns the bytes of a blob for comparison, or nil when there is none.
func (h *Hub) Blob(d digest.Digest) *io.SectionReader {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.content.blobs[d]
	if b == nil {
		return nil
	}
	return io.NewSectionReader(b, 0, b.Size())
}

// AddManifest puts any bytes as a manifest of any media type into a repository. An empty tag
// leaves it reachable by digest only.
func (h *Hub) AddManifest(repository, tag, mediaType string, b []byte) ocispec.Descriptor {
	return h.addManifest(repository, tag, mediaType, b, digest.SHA256)
}

func (h *Hub) addManifest(repository, tag, mediaType string, b []byte, a digest.Algorithm) ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := a.FromBytes(b)
	r := h.content.repo(repository)
	r.manifests[d] = manifest{mediaType, bytes.Clone(b)}
	if tag != "" {
		r.tags[tag] = d
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// Tag moves a tag, or makes it. The digest need not exist.
func (h *Hub) Tag(repository, tag string, d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.content.repo(repository).tags[tag] = d
}

// Untag deletes a tag. What it named stays reachable by digest.
func (h *Hub) Untag(repository, tag string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.content.repo(repository).tags, tag)
}

// DeleteManifest deletes a manifest; tags that name it answer 404 from now on.
func (h *Hub) DeleteManifest(repository string, d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.content.repo(repository).manifests, d)
}

// visible reports whether the repository exists and the account may read it.
func (h *Hub) visible(o Options, account, repository string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.content.repos[repository]
	if r == nil {
		return false
	}
	a, known := o.account(account)
	return !r.private || known && a.reads(repository)
}

// manifest looks a tag or digest up.
func (h *Hub) manifest(repository, reference string) (digest.Digest, manifest, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.content.repo(repository)
	d, tagged := r.tags[reference]
	if !tagged {
		d = digest.Digest(reference)
	}
	m, ok := r.manifests[d]
	return d, m, ok
}

// blob looks a blob up under a repository.
func (h *Hub) blob(repository, d string) *io.SectionReader {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.content.repo(repository).blobs[digest.Digest(d)] {
		return nil
	}
	return h.content.blobs[digest.Digest(d)]
}

// tags returns the repository's tags in no order; there may be none, but never nil.
func (h *Hub) tags(repository string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.AppendSeq([]string{}, maps.Keys(h.content.repo(repository).tags))
}

// referrers lists the manifests of the repository whose subject is d.
func (h *Hub) referrers(repository, d string) []ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := []ocispec.Descriptor{}
	for own, m := range h.content.repo(repository).manifests {
		var head struct {
			ArtifactType string              `json:"artifactType"`
			Subject      *ocispec.Descriptor `json:"subject"`
			Annotations  map[string]string   `json:"annotations"`
		}
		if json.Unmarshal(m.bytes, &head) != nil || head.Subject == nil || head.Subject.Digest.String() != d {
			continue
		}
		found = append(found, ocispec.Descriptor{
			MediaType: m.mediaType, Digest: own, Size: int64(len(m.bytes)),
			ArtifactType: head.ArtifactType, Annotations: head.Annotations,
		})
	}
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return found
}

// mustJSON is compact without an indent.
func mustJSON(v any, indent string) []byte {
	b, err := json.Marshal(v)
	if indent != "" {
		b, err = json.MarshalIndent(v, "", indent)
	}
	if err != nil {
		panic(fmt.Sprintf("hubtest: %v", err)) // only types of our own come here
	}
	return b
}
