package transfer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
)

// registry2 is the data directory of a registry:2 or registry:3, as distribution's
// registry/storage/paths.go lays it out.
type registry2 struct {
	root   string // has blobs/ and repositories/
	naming Naming
	used   map[string]time.Time // by repository, "@" and digest, as its scheduler tells
}

// scheduledFor is how long a registry in proxy mode keeps what it has fetched (repositoryTTL).
const scheduledFor = 7 * 24 * time.Hour

func newRegistry2(path, root string, n Naming) (*registry2, error) {
	if n.As != "" {
		return nil, naming("the images of a registry have names: --as is for an OCI layout without any")
	}
	n.Registry = cmp.Or(n.Registry, "docker.io")
	s := &registry2{root: root, naming: n, used: map[string]time.Time{}}
	var state map[string]struct {
		Expiry time.Time `json:"ExpiryData"`
	}
	// Without it, or with another form of it, the times of the files tell.
	if b, err := os.ReadFile(filepath.Join(path, "scheduler-state.json")); err == nil && json.Unmarshal(b, &state) == nil {
		for ref, e := range state {
			s.used[ref] = e.Expiry.Add(-scheduledFor)
		}
	}
	return s, nil
}

func (s *registry2) Close() error { return nil }

func (s *registry2) path(d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(s.root, "blobs", d.Algorithm().String(), hex[:2], hex, "data")
}

func (s *registry2) Open(d digest.Digest) (*Blob, error) { return openFile(s.path(d)) }

// Referrers returns nothing: in proxy mode a registry:2 keeps no lists of what refers to a manifest.
func (s *registry2) Referrers(digest.Digest) []v1.Descriptor { return nil }

func (s *registry2) Remove(d digest.Digest) error { return os.Remove(s.path(d)) }

// Images returns the tags, and the revisions of each repository: manifests with and without a tag.
func (s *registry2) Images() (images []Image, problems []string, err error) {
	root := filepath.Join(s.root, "repositories")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if path == root {
				return err
			}
			problems = append(problems, err.Error())
			return nil
		}
		if !e.IsDir() || e.Name() != "_manifests" {
			return nil
		}
		short, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		full, ok := s.fullName(filepath.ToSlash(short))
		if !ok {
			problems = append(problems, fmt.Sprintf("%s is no repository that %s can have", short, s.naming.Registry))
			return filepath.SkipDir
		}
		found, wrong := s.repository(path, filepath.ToSlash(short), full)
		images, problems = append(images, found...), append(problems, wrong...)
		return filepath.SkipDir
	})
	return images, problems, err
}

// fullName is the name of a repository with its registry.
func (s *registry2) fullName(short string) (string, bool) {
	if s.naming.Registry == "docker.io" {
		short = name.WithLibrary(short)
	}
	return s.naming.Registry + "/" + short, name.ValidRepository(short) && name.CanExist(s.naming.Registry, short)
}

// repository returns the images of the repository whose _manifests folder is at path.
func (s *registry2) repository(path, short, full string) (images []Image, problems []string) {
	tags, err := os.ReadDir(filepath.Join(path, "tags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		problems = append(problems, err.Error())
	}
	for _, e := range tags {
		d, at, err := readLink(filepath.Join(path, "tags", e.Name(), "current", "link"))
		if err != nil || !name.ValidTag(e.Name()) {
			problems = append(problems, fmt.Sprintf("%s:%s: %v", short, e.Name(), cmp.Or(err, errors.New("not a tag"))))
			continue
		}
		images = append(images, Image{Repository: full, Tag: e.Name(), Digest: d, Used: s.lastUse(short, d, at), Checked: at})
	}
	revisions, _ := filepath.Glob(filepath.Join(path, "revisions", "*", "*", "link")) // the pattern is valid
	for _, link := range revisions {
		d, at, err := readLink(link)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", short, err))
			continue
		}
		images = append(images, Image{Repository: full, Digest: d, Used: s.lastUse(short, d, at)})
	}
	return images, problems
}

// lastUse is the time at which a manifest was last fetched or linked.
func (s *registry2) lastUse(short string, d digest.Digest, linked time.Time) time.Time {
	if at := s.used[short+"@"+d.String()]; at.After(linked) && at.Before(time.Now()) {
		return at
	}
	return linked
}

// readLink reads a file that has the digest of something in it, and says when it was written.
func readLink(path string) (digest.Digest, time.Time, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", time.Time{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", time.Time{}, err
	}
	d := digest.Digest(strings.TrimSpace(string(b)))
	if !name.ValidDigest(d.String()) {
		return "", time.Time{}, fmt.Errorf("%s has no digest", path)
	}
	return d, fi.ModTime(), nil
}
