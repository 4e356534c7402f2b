package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/index"
)

// eventually waits up to two minutes until done returns "". What it returns last is an error.
func eventually(t *testing.T, done func() string) {
	t.Helper()
	var why string
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(10 * time.Millisecond) {
		if why = done(); why == "" {
			return
		}
	}
	t.Error(why)
}

// below returns the files and folders below dir.
func below(t *testing.T, dir string) (paths []string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			paths = append(paths, strings.TrimPrefix(path, dir+"/"))
		}
		return nil
	})
	return paths
}

// rowsOf counts the keys of a bucket.
func rowsOf(t *testing.T, s *Store, bucket []byte) (n int) {
	t.Helper()
	err := s.catalogue.index.Each(bucket, nil, func(_, _ []byte) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRubbishOfOlderVersionsIsSwept: older versions kept a row and a file for each repository that
// a client had asked for, and one folder for each part of its name, and a row for each tag. They
// go with the next start. What somebody needs, and what isn't ours, stays; the newest visibilities
// are still known.
func TestRubbishOfOlderVersionsIsSwept(t *testing.T) {
	for _, rebuilt := range []bool{false, true} {
		t.Run(map[bool]string{false: "index kept", true: "index rebuilt"}[rebuilt], func(t *testing.T) {
			dir, layer, manifest, partial := filled(t)
			l := layout(dir)
			x, err := index.Open(l.index(), index.Options{Buckets: buckets})
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			for n := range 300 {
				names := []string{fmt.Sprintf("docker.io/invented%d/app", n)}
				if n%10 == 0 { // each is 52 folders
					names = append(names, fmt.Sprintf("docker.io/x%d/%s/app", n, strings.Repeat("d/", 50)+"d"))
				}
				for _, name := range names {
					v := Visibility{At: now.Add(time.Duration(n-300) * time.Second)}
					x.Set(bucketVisibility, []byte(name), v.encode())
					public := false
					if err := (&repoFile{Schema: 1, Repository: name, Public: &public, VerdictAt: v.At}).write(l.nestedRepo(name)); err != nil {
						t.Fatal(err)
					}
				}
				tag := Tag{Digest: digest.FromString("not cached"), Checked: now.Add(-time.Duration(n) * time.Second)}
				x.Set(bucketTags, pair(repo, fmt.Sprint("seen", n)), tag.encode())
			}
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			foreign := filepath.Join(l.repos(), "docker.io", "notes.txt")
			for path, text := range map[string]string{foreign: "mine", filepath.Join(l.repos(), "docker.io", tempPrefix+"1"): "{"} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if rebuilt {
				if err := os.Remove(l.index()); err != nil {
					t.Fatal(err)
				}
			}
			s := open(t, dir, 100<<20)
			eventually(t, func() string {
				if left := below(t, l.repos()); len(left) != 4 { // docker.io, notes.txt, library, redis.json
					return fmt.Sprintf("%d files and folders are left, such as %s", len(left), left[0])
				}
				if n := rowsOf(t, s, bucketVisibility); n != 1 {
					return fmt.Sprintf("%d visibilities are in the index", n)
				}
				if n := rowsOf(t, s, bucketTags); !rebuilt && n != 1+bareTags || rebuilt && n != 1 {
					return fmt.Sprintf("%d tags are in the index", n)
				}
				return ""
			})
			allThere(t, s, layer, manifest, partial)
			if b, err := os.ReadFile(foreign); err != nil || string(b) != "mine" {
				t.Errorf("a foreign file: %q, %v", b, err)
			}
			if v, err := s.Visibility("docker.io/invented299/app"); err != nil || v.Public || v.At.IsZero() {
				t.Errorf("the newest visibility: %+v, %v", v, err)
			}
		})
	}
}

// TestVisibilityNeverGoesBack: the visibility of a repository is moved between memory and index
// while blobs come and go. The last one that was set is the one that is known, before and after a
// restart.
func TestVisibilityNeverGoesBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	now := time.Now()
	check := func(when string, public bool) {
		t.Helper()
		if v, err := s.Visibility(repo); err != nil || v.Public != public {
			t.Errorf("%s: %+v, %v", when, v, err)
		}
	}
	s.SetVisibility(repo, Visibility{Public: true, At: now})
	check("nothing is cached", true)
	d := put(t, s, noise(1, 2000))
	check("something is cached", true)
	s.Remove(d)
	s.house.sweep(now)
	check("nothing is cached any more", true)
	s.SetVisibility(repo, Visibility{Public: false, At: now})
	for n := range 2 * maxTransient { // until it is forgotten
		s.SetVisibility(fmt.Sprint("docker.io/invented/", n), Visibility{At: now})
	}
	if v, err := s.Visibility(repo); err == nil && v.Public {
		t.Errorf("an old visibility is back: %+v", v)
	}
	s.SetVisibility(repo, Visibility{Public: false, At: now})
	body := []byte(`{"schemaVersion":2}`)
	if err := s.PutManifest(Origin{Repository: repo, Private: true}, digest.FromBytes(body), "application/x", body); err != nil {
		t.Fatal(err)
	}
	check("private, and something is cached", false)
	shut(t, s)
	s = open(t, dir, 100<<20)
	check("after a restart", false)
	shut(t, s)
	os.Remove(layout(dir).index())
	s = open(t, dir, 100<<20)
	check("with a rebuilt index", false)
	if n := len(below(t, s.files.layout.repos())); n != 3 {
		t.Errorf("%d files and folders", n)
	}
}

// TestMemoryOfWhatIsNotCachedIsBounded: of repositories, of tags, and of the tags of one
// repository, which push out none of another one's.
func TestMemoryOfWhatIsNotCachedIsBounded(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	tag := Tag{Digest: digest.FromString("x"), Checked: time.Now()}
	s.SetTag("docker.io/library/other", "1", tag)
	for n := range 3 * maxTransientTags {
		s.SetTag(repo, fmt.Sprint(n), tag)
	}
	if n := s.repos.transient.tags.Len(); n != 1+maxTransientTags || len(s.repos.transient.tagsOf[repo]) != maxTransientTags {
		t.Errorf("%d tags are remembered", n)
	}
	if _, err := s.Tag("docker.io/library/other", "1"); err != nil {
		t.Error("the tag of another repository:", err)
	}
	if _, err := s.Tag(repo, fmt.Sprint(3*maxTransientTags-1)); err != nil {
		t.Error("the last tag:", err)
	}
	for n := range 2 * maxTransient {
		name := fmt.Sprint("docker.io/invented/", n)
		s.SetTag(name, "1", tag)
		s.SetVisibility(name, Visibility{})
	}
	if tags, repositories := s.repos.transient.tags.Len(), s.repos.transient.visibility.Len(); tags != maxTransient || repositories != maxTransient || len(s.repos.transient.tagsOf) > maxTransient {
		t.Errorf("%d tags and %d repositories are remembered", tags, repositories)
	}
	if n := s.catalogue.index.Pending() + rowsOf(t, s, bucketTags) + rowsOf(t, s, bucketVisibility); n > 0 {
		t.Errorf("%d changes and rows of the index", n)
	}
}

// TestTagsOfOneRepositoryAreBounded: it costs nothing to ask for the headers of all tags that name
// one cached manifest. The newest are kept, in the index and in the file.
func TestTagsOfOneRepositoryAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, _, manifest, _ := filled(t)
		s := open(t, dir, 100<<20)
		for n := range 2 * maxTags {
			s.SetTag(repo, fmt.Sprint("tag", n), Tag{Digest: manifest, Checked: time.Now()})
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(repoLater + 2*repoEvery)
		if n := rowsOf(t, s, bucketTags); n > maxTags || s.Stats().Tags != int64(n) {
			t.Errorf("%d tags are in the index, and the statistics say %d", n, s.Stats().Tags)
		}
		if _, err := s.Tag(repo, fmt.Sprint("tag", 2*maxTags-1)); err != nil {
			t.Error("the newest tag:", err)
		}
		if file, err := readRepo(s.files.layout.repo(repo)); err != nil || len(file.Tags) > maxTags || len(file.Tags) < maxTags/2 {
			t.Errorf("%d tags are in the file, %v", len(file.Tags), err)
		}
	})
}

// TestLargeRepositoryFileIsWrittenInProportion: not for every new tag, but not much later either;
// and at once when the repository has become private, and when the store is closed.
func TestLargeRepositoryFileIsWrittenInProportion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, _, manifest, _ := filled(t)
		s := open(t, dir, 100<<20)
		for n := range 2000 {
			s.SetTag(repo, fmt.Sprint("tag", n), Tag{Digest: manifest, MediaType: "application/x", Checked: time.Now()})
		}
		time.Sleep(2 * repoEvery)
		path := s.files.layout.repo(repo)
		read := func() (repoFile, string) {
			b, err := os.ReadFile(path)
			file, err2 := readRepo(path)
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			return file, string(b)
		}
		file, before := read()
		if len(file.Tags) != 2001 {
			t.Fatalf("%d tags", len(file.Tags))
		}
		writes := 0
		for n := range 200 {
			s.SetTag(repo, fmt.Sprint("later", n), Tag{Digest: manifest, MediaType: "application/x", Checked: time.Now()})
			time.Sleep(repoEvery)
			now, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(now) != before {
				writes, before = writes+1, string(now)
			}
		}
		if writes > 2 {
			t.Errorf("a file of %d bytes was written %d times for 200 tags", len(before), writes)
		}
		time.Sleep(repoLater)
		if file, _ := read(); len(file.Tags) != 2201 {
			t.Errorf("%d tags after %v", len(file.Tags), repoLater)
		}
		s.SetVisibility(repo, Visibility{Public: false, At: time.Now()})
		time.Sleep(2 * repoEvery)
		if file, _ := read(); file.Public == nil || *file.Public {
			t.Error("the file says that the repository is public")
		}
		s.SetTag(repo, "last", Tag{Digest: manifest, Checked: time.Now()})
		shut(t, s)
		if file, _ := read(); len(file.Tags) != 2202 {
			t.Errorf("%d tags after Close", len(file.Tags))
		}
	})
}

// TestFileOfARepositoryThatHangs: writing the file of a repository blocks, as on a network disk
// that is away. Last uses are written, room is made, and the store is closed all the same.
func TestFileOfARepositoryThatHangs(t *testing.T) {
	t.Parallel()
	s, err := Open(Options{Dir: t.TempDir(), Budget: 100 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	settleDown(t, s)
	d := put(t, s, noise(1, 2000))
	path := s.files.layout.repo(repo)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil { // to open it takes until somebody writes
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil { // ends what hangs
			time.Sleep(100 * time.Millisecond)
			f.Close()
		}
		<-s.house.repos.done
	})
	s.SetTag(repo, "7", Tag{Digest: d, Checked: time.Now()})
	time.Sleep(1500 * time.Millisecond) // it hangs by now
	s.Touch(d)
	s.room.minFree.Store(1 << 60)
	eventually(t, func() string {
		if _, ok := s.Has(d); ok {
			return "nothing is evicted for the free space to keep"
		}
		return ""
	})
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close waits for the file of a repository")
	}
}

// TestFileThatWasNotWrittenIsWrittenAfterTheNextStart: the process ends before the file of a
// repository is written. The next one writes it, although nothing of the repository changes.
func TestFileThatWasNotWrittenIsWrittenAfterTheNextStart(t *testing.T) {
	dir, _, manifest, _ := filled(t)
	s := open(t, dir, 100<<20)
	killed, path := filepath.Join(dir, "killed"), s.files.layout.repo(repo)
	var before []byte
	name := ""
	for n := 0; name == ""; n++ { // the file may be written in between
		tag := fmt.Sprint("new", n)
		s.SetTag(repo, tag, Tag{Digest: manifest, Checked: time.Now()})
		s.house.flush()
		copyFile(t, s.files.layout.index(), killed)
		var err error
		if before, err = os.ReadFile(path); err == nil && !bytes.Contains(before, []byte(tag)) {
			name = tag
		} else if n > 100 {
			t.Fatal("the file of the repository is always written at once, or never: ", err)
		}
	}
	shut(t, s)
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(killed, s.files.layout.index()); err != nil {
		t.Fatal(err)
	}
	open(t, dir, 100<<20)
	eventually(t, func() string {
		if b, _ := os.ReadFile(path); !bytes.Contains(b, []byte(name)) {
			return "the file lacks the tag"
		}
		return ""
	})
}

// TestManyFilesToWriteAreBoundedPerTick: other work goes on between, and in the end nothing is noted as
// behind.
func TestManyFilesToWriteAreBoundedPerTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, _, manifest, _ := filled(t)
		s := open(t, dir, 100<<20)
		time.Sleep(2*repoEvery + repoEvery/2) // not in the moment of a tick
		const repositories = 2*reposAtOnce + 1
		for n := range repositories {
			s.SetTag(fmt.Sprint("docker.io/library/app", n), "1", Tag{Digest: manifest, Checked: time.Now()})
		}
		for n := range 3 {
			time.Sleep(repoEvery)
			synctest.Wait()
			files, err := filepath.Glob(filepath.Join(s.files.layout.repos(), "docker.io", "library", "app*"))
			if err != nil || len(files) > (n+1)*reposAtOnce {
				t.Errorf("%d files after %d s, %v", len(files), n+1, err)
			}
		}
		time.Sleep(repoEvery)
		if files, _ := filepath.Glob(filepath.Join(s.files.layout.repos(), "docker.io", "library", "app*")); len(files) != repositories {
			t.Errorf("%d files in the end", len(files))
		}
		if n := rowsOf(t, s, bucketMeta); n != 1 {
			t.Errorf("%d rows in meta, where the files that are behind are noted", n)
		}
	})
}

// TestLongNamesMakeNoFolders: a registry may have names of many parts. What an older program has
// put into folders for them is moved, and counts more than what this one had written before.
func TestLongNamesMakeNoFolders(t *testing.T) {
	const name = "example.test/a/b/c/d/e.json/f"
	dir, layer, manifest, partial := filled(t)
	l := layout(dir)
	s := open(t, dir, 100<<20)
	s.SetTag(name, "1", Tag{Digest: manifest, Checked: time.Now()})
	shut(t, s)
	if files := below(t, l.repos()); len(files) != 5 || !strings.HasPrefix(l.repo(name), filepath.Join(l.repos(), "example.test", "%")) {
		t.Errorf("%q", files)
	}
	if _, err := os.Stat(l.repo(name)); err != nil {
		t.Fatal(err)
	}
	older := repoFile{Schema: 1, Repository: name, Tags: map[string]tagInFile{"2": {Digest: manifest, Checked: time.Now()}}}
	if err := older.write(l.nestedRepo(name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.index()); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 100<<20)
	if _, err := s.Tag(name, "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a tag that the older program had deleted is back:", err)
	}
	if _, err := s.Tag(name, "2"); err != nil {
		t.Error(err)
	}
	allThere(t, s, layer, manifest, partial)
	eventually(t, func() string {
		if files := below(t, l.repos()); len(files) != 5 {
			return fmt.Sprintf("%q", files)
		}
		return ""
	})
	if file, err := readRepo(l.repo(name)); err != nil || len(file.Tags) != 1 || file.Tags["2"].Digest != manifest {
		t.Errorf("%+v, %v", file, err)
	}
}
