package storage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// withReferrers puts a manifest of a layer, and a list of what refers to it, into the store.
func withReferrers(t *testing.T, s *Store, repository string, seed uint64) (subject digest.Digest, list []byte) {
	t.Helper()
	layer := put(t, s, noise(seed, 100_000))
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":100000}]}`, layer)
	subject = digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repository}, subject, "application/x", body); err != nil {
		t.Fatal(err)
	}
	list = fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"digest":%q,"size":%d}]}`, digest.FromString("signature"), seed)
	if err := s.SetReferrers(Origin{Repository: repository}, subject, "application/y", list); err != nil {
		t.Fatal(err)
	}
	return subject, list
}

// hasReferrers fails unless the store has that list for the manifest; nil is none.
func hasReferrers(t *testing.T, s *Store, subject digest.Digest, want []byte) {
	t.Helper()
	m, err := s.Referrers(repo, subject)
	switch {
	case want == nil && err == nil:
		t.Errorf("referrers that should be forgotten: %s", m.Body)
	case want != nil && (err != nil || !bytes.Equal(m.Body, want) || m.MediaType != "application/y"):
		t.Errorf("referrers: %+v, %v", m, err)
	}
}

// TestReferrersOutliveARestart: a list of referrers is there after a kill, and without the index.
func TestReferrersOutliveARestart(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]bool{"with the index": false, "without the index": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir, 100<<20)
			subject, list := withReferrers(t, s, repo, 1)
			hasReferrers(t, s, subject, list)
			if _, err := s.Referrers(repo+"-other", subject); err == nil {
				t.Error("another repository has it too")
			}
			shut(t, s)
			if lose {
				if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				s = open(t, dir, 100<<20)
				settleDown(t, s)
				hasReferrers(t, s, subject, list)
				if n := s.Stats().Tags; n != 0 {
					t.Errorf("it counts as %d tags", n)
				}
				if names, err := s.Repositories("docker.io"); err != nil || len(names) > 0 {
					t.Errorf("the catalogue has %v, %v", names, err)
				}
				balanced(t, s)
				shut(t, s)
			}
		})
	}
}

// TestReferrersAreReplacedAndForgotten: a new list replaces the old one, and when nothing refers
// to the manifest any more there is none, also after a restart. A manifest that isn't cached has
// none.
func TestReferrersAreReplacedAndForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	subject, _ := withReferrers(t, s, repo, 1)
	list := []byte(`{"manifests":[{}]}`)
	if err := s.SetReferrers(Origin{Repository: repo}, subject, "application/y", list); err != nil {
		t.Fatal(err)
	}
	hasReferrers(t, s, subject, list)
	if err := s.SetReferrers(Origin{Repository: repo}, subject, "", nil); err != nil {
		t.Fatal(err)
	}
	hasReferrers(t, s, subject, nil)
	unknown := digest.FromString("unknown")
	if err := s.SetReferrers(Origin{Repository: repo}, unknown, "application/y", list); err != nil {
		t.Fatal(err)
	}
	hasReferrers(t, s, unknown, nil)
	shut(t, s)
	s = open(t, dir, 100<<20)
	hasReferrers(t, s, subject, nil)
}

// TestReferrersLeaveWithTheirManifest: they are forgotten when the manifest leaves, whatever the
// reason, and nothing is left of them in the index.
func TestReferrersLeaveWithTheirManifest(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(t *testing.T, s *Store, subject digest.Digest) *Store{
		"removed": func(_ *testing.T, s *Store, subject digest.Digest) *Store {
			s.Remove(subject)
			return s
		},
		"evicted": func(t *testing.T, s *Store, subject digest.Digest) *Store {
			for seed := uint64(10); s.room.state(subject).cached; seed++ {
				put(t, s, noise(seed, 200_000))
			}
			return s
		},
		"deleted while the server was stopped": func(t *testing.T, s *Store, subject digest.Digest) *Store {
			dir := s.Dir()
			shut(t, s)
			if err := os.Remove(s.files.layout.blob(subject)); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, 1<<20)
			settleDown(t, s)
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir(), 1<<20)
			subject, _ := withReferrers(t, s, repo, 1)
			s = leave(t, s, subject)
			hasReferrers(t, s, subject, nil)
			eventually(t, func() string {
				s.house.sweep(time.Now())
				if lists, err := s.catalogue.referrersOf(""); err != nil || len(lists) > 0 {
					return fmt.Sprint(lists, err)
				}
				return ""
			})
			if n := rowsOf(t, s, bucketTags); n > 0 {
				t.Errorf("%d rows are left", n)
			}
			balanced(t, s)
		})
	}
}

// TestReferrersAreUsedWithTheirManifest: they aren't evicted while the manifest is in use, although
// nobody asks for them.
func TestReferrersAreUsedWithTheirManifest(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	subject, list := withReferrers(t, s, repo, 1)
	other, _ := withReferrers(t, s, repo, 2)
	for seed := uint64(10); seed < 30; seed++ {
		s.room.touch(subject, time.Now().Add(time.Duration(seed)*time.Hour).UnixNano(), 0)
		put(t, s, noise(seed, 200_000))
	}
	hasReferrers(t, s, subject, list)
	if s.room.state(other).cached {
		t.Error("nothing was evicted")
	}
	hasReferrers(t, s, other, nil)
	balanced(t, s)
}

// TestReferrersPushNoTagOut: the number of lists of a repository is bounded apart from its tags.
func TestReferrersPushNoTagOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	subject, list := withReferrers(t, s, repo, 1)
	s.SetTag(repo, "7", Tag{Digest: subject, Checked: time.Now().Add(-time.Hour)})
	named := digest.FromBytes(list)
	for n := range maxReferrers + 100 {
		s.SetTag(repo, string(digest.FromString(fmt.Sprint(n))), Tag{Digest: named, Checked: time.Now().Add(time.Duration(n-5000) * time.Second)})
	}
	s.house.flush()
	if err := s.house.repos.writeFile(repo); err != nil {
		t.Fatal(err)
	}
	if n := rowsOf(t, s, bucketTags); n != maxReferrers+1 {
		t.Errorf("%d rows", n)
	}
	if tag, err := s.Tag(repo, "7"); err != nil || tag.Digest != subject {
		t.Errorf("the tag: %+v, %v", tag, err)
	}
	hasReferrers(t, s, subject, list)
}
