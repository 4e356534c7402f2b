package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// A repository's name, here as everywhere in this package, begins with its registry:
// "docker.io/library/redis".

// Manifest is a manifest's bytes and what they say.
type Manifest struct {
	Digest    digest.Digest
	MediaType string // as upstream sent it
	Body      []byte
	Children  []image.Child
	Private   bool // came through a repository that isn't public
}

// PutManifest keeps a manifest. Its children are linked to the repository as named even when
// there is no room for it: that the repository names them, and how large they are, is so.
// Errors: ErrDigest, ErrNoRoom, ErrDisk, ErrBusy; nil when it is there already.
func (s *Store) PutManifest(from Origin, d digest.Digest, mediaType string, body []byte) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if got := d.Algorithm().FromBytes(body); got != d {
		return fmt.Errorf("%w: got %s for %s", ErrDigest, got, d)
	}
	m := &Manifest{MediaType: mediaType, Children: image.Children(body)}
	name := func() {
		for _, c := range m.Children {
			s.name(from.Repository, c)
		}
		s.flushSoon()
	}
	name()
	defer name() // a sweep saw them without the manifest
	in, err := s.begin(&Ingest{digest: d, from: from, size: int64(len(body)), manifest: m})
	if errors.Is(err, fs.ErrExist) {
		s.makeManifest(d, m)
		s.link(from.Repository, d, Link{true, int64(len(body))})
		s.flushSoon()
		s.repoChanged(from.Repository)
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
	s.repoChanged(from.Repository)
	return nil
}

// makeManifest says that a blob which is here is a manifest: one that was found on disk
// without a record, or fetched as a blob.
func (s *Store) makeManifest(d digest.Digest, m *Manifest) {
	s.mu.Lock()
	e := s.lru.Peek(d)
	was := e == nil || e.Value.has(isManifest)
	if !was {
		e.Value.bits |= isManifest
		s.manifests++
	}
	s.mu.Unlock()
	if !was {
		s.amend(d, func(r *record) { r.manifest, r.mediaType, r.children = true, m.MediaType, m.Children })
	}
}

// isManifest reports whether d is here, and a manifest.
func (s *Store) isManifest(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lru.Peek(d)
	return e != nil && e.Value.has(isManifest)
}

// Manifest reads a manifest. It is not a use.
// Errors: fs.ErrNotExist when it isn't there, or is no manifest.
func (s *Store) Manifest(d digest.Digest) (*Manifest, error) {
	b, err := s.openUnread(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	r, err := s.record(d)
	if err != nil {
		return nil, err
	}
	if !r.manifest {
		return nil, missing{"a blob, not a manifest"}
	}
	body := make([]byte, b.Size)
	if _, err := io.ReadFull(b, body); err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(body) != d { // it is small; and a wrong manifest spoils a whole image
		s.rotten(d, ErrDigest)
		return nil, missing{"its bytes have another digest"}
	}
	return &Manifest{d, r.mediaType, body, r.children, b.Private}, nil
}

// Link returns what links blob d to the repository.
// Errors: fs.ErrNotExist when nothing does.
func (s *Store) Link(repository string, d digest.Digest) (Link, error) {
	v, err := s.index.Get(bucketLinks, pair(repository, string(d)))
	if err != nil {
		return Link{}, err
	}
	if v == nil {
		return Link{}, missing{"not linked to " + repository}
	}
	return decodeLink(v)
}

// Confirm links blob d to the repository because upstream answered for it there.
func (s *Store) Confirm(repository string, d digest.Digest, size int64) {
	if s.link(repository, d, Link{true, size}) {
		s.flushSoon()
	}
}

// link links d to the repository, unless there is a better link.
func (s *Store) link(repository string, d digest.Digest, l Link) (set bool) {
	key := pair(repository, string(d))
	s.linking.Lock()
	defer s.linking.Unlock()
	if s.linked != nil {
		s.linked[string(key)] = true
	}
	if old, err := s.Link(repository, d); err == nil && (old == l || old.Confirmed && (!l.Confirmed || l.Size < 0)) {
		return false
	}
	s.index.Set(bucketLinks, key, l.encode())
	return true
}

// name links a manifest's child, unless there is a better link.
func (s *Store) name(repository string, c image.Child) {
	s.link(repository, c.Digest, Link{false, c.Size})
}

// Tag returns what a tag last resolved to; its manifest need not be there.
// Errors: fs.ErrNotExist.
func (s *Store) Tag(repository, tag string) (Tag, error) {
	v, err := s.index.Get(bucketTags, pair(repository, tag))
	if err != nil {
		return Tag{}, err
	}
	if v == nil {
		return Tag{}, missing{"no such tag cached"}
	}
	return decodeTag(v)
}

// SetTag keeps what a tag resolves to.
func (s *Store) SetTag(repository, tag string, t Tag) {
	old, err := s.Tag(repository, tag)
	s.index.Set(bucketTags, pair(repository, tag), t.encode())
	if err == nil && old.Digest == t.Digest {
		return // only the time of the check is new: written with the next batch
	}
	if err != nil {
		s.tags.Add(1)
	}
	s.flushSoon()
	s.repoChanged(repository)
}

// DeleteTag forgets a tag; its manifest stays until it is evicted.
func (s *Store) DeleteTag(repository, tag string) {
	if _, err := s.Tag(repository, tag); err != nil {
		return
	}
	s.index.Delete(bucketTags, pair(repository, tag))
	s.tags.Add(-1)
	s.flushSoon()
	s.repoChanged(repository)
}

// Visibility returns whether the repository is public. Errors: fs.ErrNotExist.
func (s *Store) Visibility(repository string) (Visibility, error) {
	v, err := s.index.Get(bucketVisibility, []byte(repository))
	if err != nil {
		return Visibility{}, err
	}
	if v == nil {
		return Visibility{}, missing{"no verdict"}
	}
	return decodeVisibility(v)
}

// SetVisibility keeps whether the repository is public.
func (s *Store) SetVisibility(repository string, v Visibility) {
	s.index.Set(bucketVisibility, []byte(repository), v.encode())
	s.repoChanged(repository)
}

// Repositories returns the names, sorted, of those under a registry ("docker.io") with a
// cached tag whose manifest is here.
func (s *Store) Repositories(registry string) ([]string, error) {
	s.flush()
	var names []string
	err := s.index.Each(bucketTags, []byte(registry+"/"), func(k, v []byte) error {
		name, _ := unpair(k)
		if len(names) > 0 && names[len(names)-1] == name {
			return nil
		}
		t, err := decodeTag(v)
		if _, ok := s.Has(t.Digest); ok {
			names = append(names, name)
		}
		return err
	})
	slices.Sort(names) // \0 sorts before what a name may go on with, but - and . come before /
	return names, err
}

func (s *Store) repoChanged(repository string) {
	s.mu.Lock()
	s.changed[repository] = true
	s.mu.Unlock()
}

// repoFile is the file of a repository: what a lost index can't find in the blobs.
type repoFile struct {
	Schema     int                      `json:"schema"`
	Repository string                   `json:"repository"`
	Public     *bool                    `json:"public,omitempty"`
	VerdictAt  time.Time                `json:"verdict_at,omitzero"`
	Tags       map[string]tagInFile     `json:"tags,omitempty"`
	Manifests  map[digest.Digest]string `json:"manifests,omitempty"` // media types
}

type tagInFile struct {
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Type    string        `json:"media_type"`
	Checked time.Time     `json:"checked"`
}

// writeRepos brings the files of changed repositories up to date with the index.
func (s *Store) writeRepos() {
	s.mu.Lock()
	changed := s.changed
	s.changed = map[string]bool{}
	s.mu.Unlock()
	if len(changed) > 0 {
		s.flush()
	}
	for name := range changed {
		if err := s.writeRepo(name); err != nil {
			s.diskFailed(err)
			s.repoChanged(name)
		}
	}
}

func (s *Store) writeRepo(name string) error {
	file := repoFile{Schema: 1, Repository: name, Tags: map[string]tagInFile{}, Manifests: map[digest.Digest]string{}}
	if v, err := s.Visibility(name); err == nil {
		file.Public, file.VerdictAt = &v.Public, v.At
	}
	prefix := pair(name, "")
	err := s.index.Each(bucketTags, prefix, func(k, v []byte) error {
		_, tag := unpair(k)
		t, err := decodeTag(v)
		file.Tags[tag] = tagInFile{t.Digest, t.Size, t.MediaType, t.Checked}
		return err
	})
	if err != nil {
		return err
	}
	var manifests []digest.Digest
	err = s.index.Each(bucketLinks, prefix, func(k, v []byte) error {
		_, d := unpair(k)
		l, err := decodeLink(v)
		// What an index only names comes back with the index, and no better linked.
		if l.Confirmed && s.isManifest(digest.Digest(d)) {
			manifests = append(manifests, digest.Digest(d))
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range manifests {
		if r, err := s.record(d); err == nil {
			file.Manifests[d] = r.mediaType
		}
	}
	if len(file.Tags) == 0 && len(file.Manifests) == 0 && file.Public == nil {
		err := os.Remove(s.layout.repo(name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		return err
	}
	return writeFile(s.layout.repo(name), append(b, '\n'))
}

// readRepo reads the file of a repository. Errors: it can't be read, or isn't one.
func readRepo(path string) (file repoFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return file, err
	}
	if file.Schema != 1 || strings.ContainsRune(file.Repository, 0) {
		return file, fmt.Errorf("%s: not a repository's file of schema 1", path)
	}
	return file, nil
}
