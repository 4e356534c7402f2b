package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/index"
)

// filled makes a data directory with a blob, a manifest that names it, a tag, a visibility and a
// partial, and returns the digests.
func filled(t *testing.T) (dir string, layer, manifest, partial digest.Digest) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir, 100<<20)
	layer = put(t, s, noise(1, 2000))
	body := []byte(`{"layers":[{"digest":"` + layer.String() + `","size":2000}]}`)
	manifest = digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, manifest, "application/x", body); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "7", Tag{Digest: manifest, MediaType: "application/x", Size: int64(len(body)), Checked: time.Now()})
	s.SetVisibility(repo, Visibility{Public: true, At: time.Now()})
	unfinished := noise(2, 3<<20)
	partial = digest.FromBytes(unfinished)
	begun(t, s, Origin{Repository: repo}, unfinished).Abort(io.ErrUnexpectedEOF)
	shut(t, s)
	return dir, layer, manifest, partial
}

// allThere fails unless s has what filled has put into its directory.
func allThere(t *testing.T, s *Store, layer, manifest, partial digest.Digest) {
	t.Helper()
	if tag, err := s.Tag(repo, "7"); err != nil || tag.Digest != manifest {
		t.Errorf("tag: %+v, %v", tag, err)
	}
	if m, err := s.Manifest(manifest); err != nil || m.MediaType != "application/x" {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	if v, err := s.Visibility(repo); err != nil || !v.Public {
		t.Errorf("visibility: %+v, %v", v, err)
	}
	for _, d := range []digest.Digest{layer, manifest} {
		if _, err := s.Link(repo, d); err != nil {
			t.Errorf("link of %s: %v", d, err)
		}
		if get(t, s, d) == nil {
			t.Errorf("%s is gone", d)
		}
	}
	if size, _ := s.Partial(partial); size != 3<<20 {
		t.Errorf("the partial has %d bytes", size)
	}
}

// snapshot returns the bytes of all files under dir.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, f fs.DirEntry, err error) error {
		if err != nil || f.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// refused fails unless Open refuses dir because path is newer than this program, says what to
// do, and changes nothing.
func refused(t *testing.T, dir, path string, version int) {
	t.Helper()
	before := snapshot(t, dir)
	s, err := Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		s.Close()
	}
	newer := (*NewerFormatError)(nil)
	if !errors.As(err, &newer) || newer.Path != path || newer.Version != version || newer.Known != 1 {
		t.Fatalf("Open = %v, want that %s is of version %d", err, path, version)
	}
	for _, part := range []string{path, "version", "install", newer.Advice} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error doesn't say %q: %v", part, err)
		}
	}
	if after := snapshot(t, dir); !maps.Equal(before, after) {
		t.Errorf("%d files before, %d after, or their bytes differ", len(before), len(after))
	}
}

// setSchema gives the JSON document at path another version, and fields that nobody knows.
func setSchema(t *testing.T, path string, version int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	d["schema"], d["ranges"], d["new"] = version, "something else", []int{1}
	if b, err = json.Marshal(d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNamesAndVersionsOnDisk: what version 1 is called, which older and newer programs rely on.
func TestNamesAndVersionsOnDisk(t *testing.T) {
	t.Parallel()
	dir, _, _, partial := filled(t)
	if indexName(1) != "index.db" || indexName(2) == indexName(1) {
		t.Errorf("the indexes of versions 1 and 2 are %s and %s", indexName(1), indexName(2))
	}
	if _, err := os.Stat(filepath.Join(dir, "index.db")); err != nil {
		t.Error(err)
	}
	for path, version := range map[string]int{layout(dir).repo(repo): 1, layout(dir).partialState(partial): 0} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := formatOf(b); got != version {
			t.Errorf("%s says version %d, want %d", path, got, version)
		}
	}
}

// TestNewerRepositoryFileStopsARebuild: whether the index is missing, damaged or was never
// finished.
func TestNewerRepositoryFileStopsARebuild(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(index string) error{
		"missing": os.Remove,
		"damaged": func(index string) error { return os.Truncate(index, 9000) },
		"empty":   func(index string) error { return os.Truncate(index, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, layer, manifest, partial := filled(t)
			path := layout(dir).repo(repo)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			setSchema(t, path, 2)
			if err := harm(layout(dir).index()); err != nil {
				t.Fatal(err)
			}
			if name != "empty" { // bbolt makes a database of an empty file at once
				refused(t, dir, path, 2)
			}
			if _, err := Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.DiscardHandler)}); err == nil {
				t.Fatal("the second Open doesn't refuse it")
			}
			// The way out that the error names, or the program that knows it.
			if err := os.WriteFile(path, old, 0o600); err != nil {
				t.Fatal(err)
			}
			allThere(t, open(t, dir, 100<<20), layer, manifest, partial)
		})
	}
}

// TestNewerRepositoryFileIsNotOverwritten: with an index that is as good as before, the file is
// only met when it is to be written.
func TestNewerRepositoryFileIsNotOverwritten(t *testing.T) {
	t.Parallel()
	dir, _, manifest, _ := filled(t)
	path := layout(dir).repo(repo)
	setSchema(t, path, 2)
	newer, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "8", Tag{Digest: manifest, Checked: time.Now()})
	s.DeleteTag(repo, "7")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, newer) {
		t.Errorf("%q, %v", now, err)
	}
	if !strings.Contains(log.String(), path) {
		t.Errorf("the log doesn't name %s:\n%s", path, &log)
	}
}

// TestNewerPartialStopsTheStart: it is neither resumed nor removed.
func TestNewerPartialStopsTheStart(t *testing.T) {
	t.Parallel()
	dir, layer, manifest, partial := filled(t)
	path := layout(dir).partialState(partial)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Something that a start would remove.
	if err := os.WriteFile(filepath.Join(layout(dir).ingest(), tempPrefix+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	setSchema(t, path, 3)
	refused(t, dir, path, 3)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	allThere(t, open(t, dir, 100<<20), layer, manifest, partial)
}

// TestUnknownFlagIsNewerAndNoDamage: a value of the index that is as it was written, with a flag
// that nobody knows, is not set aside as damaged.
func TestUnknownFlagIsNewerAndNoDamage(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	for name, value := range map[string]struct{ bucket, key, value []byte }{
		"record":     {bucketBlobs, []byte(d), append([]byte{flagUnverified << 1}, (&record{}).encode()[1:]...)},
		"link":       {bucketLinks, pair(repo, string(d)), append([]byte{2}, Link{Size: 7}.encode()[1:]...)},
		"visibility": {bucketVisibility, []byte(repo), append([]byte{3}, Visibility{At: time.Now()}.encode()[1:]...)},
	} {
		t.Run(name, func(t *testing.T) {
			dir, layer, manifest, partial := filled(t)
			path := layout(dir).index()
			x, err := index.Open(path, index.Options{Buckets: buckets})
			if err != nil {
				t.Fatal(err)
			}
			x.Set(value.bucket, value.key, value.value)
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, path, 0)
			// The way out that the error names.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			allThere(t, open(t, dir, 100<<20), layer, manifest, partial)
		})
	}
}

// TestIndexOfAnotherVersionIsLeftAlone: after a rollback from a version whose index has another
// name, the index is made from the files, and the other one stays.
func TestIndexOfAnotherVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir, layer, manifest, partial := filled(t)
	other := filepath.Join(dir, indexName(indexVersion+1))
	if err := os.Rename(layout(dir).index(), other); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, 100<<20)
	allThere(t, s, layer, manifest, partial)
	shut(t, s)
	if after, err := os.ReadFile(other); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it has changed: %v", err)
	}
}
