package hubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// content is what the Hub stores: repositories, manifests and blobs.
type content struct {
	mu    sync.Mutex // guards all below, and what it points at
	blobs map[digest.Digest]*io.SectionReader
	repos map[string]*repo
}

type repo struct {
	private   bool
	tags      map[string]digest.Digest
	manifests map[digest.Digest]manifest
	blobs     map[digest.Digest]bool // those that may be read under this name
}

type manifest struct {
	mediaType string
	bytes     []byte
}

func newContent() *content {
	return &content{blobs: map[digest.Digest]*io.SectionReader{}, repos: map[string]*repo{}}
}

// repo returns the repository. It creates a public one when there is none. The caller holds
// c.mu.
func (c *content) repo(name string) *repo {
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

func (c *content) setPrivate(repository string, private bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repo(repository).private = private
}

func (c *content) addBlob(repository, mediaType string, d digest.Digest, r io.ReaderAt, size int64) ocispec.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blobs[d] = io.NewSectionReader(r, 0, size)
	c.repo(repository).blobs[d] = true
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: size}
}

func (c *content) linkBlob(repository string, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repo(repository).blobs[d] = true
}

// blob looks a blob up in all repositories. It returns nil when there is none.
func (c *content) blob(d digest.Digest) *io.SectionReader {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blobs[d]
}

// blobIn looks a blob up under a repository. It returns nil when there is none.
func (c *content) blobIn(repository string, d digest.Digest) *io.SectionReader {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.repo(repository).blobs[d] {
		return nil
	}
	return c.blobs[d]
}

// addManifest stores b under its digest by the algorithm, and points the tag at it unless
// the tag is empty.
func (c *content) addManifest(repository, tag, mediaType string, b []byte, a digest.Algorithm) ocispec.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := a.FromBytes(b)
	r := c.repo(repository)
	r.manifests[d] = manifest{mediaType, bytes.Clone(b)}
	if tag != "" {
		r.tags[tag] = d
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (c *content) tag(repository, tag string, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repo(repository).tags[tag] = d
}

// untag deletes a tag or, by its digest, a manifest.
func (c *content) untag(repository, reference string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repo(repository)
	delete(r.tags, reference)
	delete(r.manifests, digest.Digest(reference))
}

// visible reports whether the repository exists and the account may read it.
func (c *content) visible(o Options, account, repository string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repository]
	if r == nil {
		return false
	}
	a, known := o.account(account)
	return !r.private || known && a.reads(repository)
}

// manifest looks a tag or digest up.
func (c *content) manifest(repository, reference string) (digest.Digest, manifest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repo(repository)
	d, tagged := r.tags[reference]
	if !tagged {
		d = digest.Digest(reference)
	}
	m, ok := r.manifests[d]
	return d, m, ok
}

// tags returns the repository's tags in no order. It is never nil, so that it is [] in JSON.
func (c *content) tags(repository string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.AppendSeq([]string{}, maps.Keys(c.repo(repository).tags))
}

// referrers returns the manifests whose subject is d. It is never nil, so that it is [] in
// JSON.
func (c *content) referrers(repository, d string) []ocispec.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := []ocispec.Descriptor{}
	for own, m := range c.repo(repository).manifests {
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
