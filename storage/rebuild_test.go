package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/index"
)

// TestDamagedIndexIsRebuilt: whatever the damage, all that the files say is there again.
func TestDamagedIndexIsRebuilt(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 9000) },
		"short":     func(path string) error { return os.Truncate(path, 100) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"zeroed":    func(path string) error { return os.WriteFile(path, make([]byte, 64<<10), 0o600) },
		"text":      func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("no "), 20000), 0o600) },
		"marked":    func(path string) error { return os.WriteFile(path+".damaged", nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, 100<<20)
			layer := put(t, s, noise(50, 2000))
			image := []byte(`{"layers":[{"digest":"` + layer.String() + `","size":2000}]}`)
			di := digest.FromBytes(image)
			if err := s.PutManifest(Origin{Repository: repo}, di, "application/x", image); err != nil {
				t.Fatal(err)
			}
			s.SetTag(repo, "7", Tag{Digest: di, MediaType: "application/x", Size: int64(len(image))})
			s.SetVisibility(repo, Visibility{Public: true})
			shut(t, s)
			if err := harm(filepath.Join(dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, 100<<20)
			if tag, err := s.Tag(repo, "7"); err != nil || tag.Digest != di {
				t.Errorf("tag %+v, %v", tag, err)
			}
			if v, err := s.Visibility(repo); err != nil || !v.Public {
				t.Errorf("visibility %+v, %v", v, err)
			}
			if m, err := s.Manifest(di); err != nil || m.MediaType != "application/x" || !bytes.Equal(m.Body, image) {
				t.Errorf("manifest %+v, %v", m, err)
			}
			if _, err := s.Link(repo, layer); err != nil {
				t.Error(err)
			}
			get(t, s, layer)
			if st := s.Stats(); st.Manifests != 1 || st.Blobs != 1 || st.Tags != 1 {
				t.Errorf("%+v", st)
			}
			balanced(t, s)
		})
	}
}

// FuzzDamagedIndex: any byte of the index may be wrong. The store opens, and what it serves is right.
func FuzzDamagedIndex(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 300 {
		s.SetTag(repo, "tag"+string(rune('a'+i%26))+strings.Repeat("x", i%50), Tag{Digest: digest.FromString("x")})
	}
	s.Close()
	good, err := os.ReadFile(filepath.Join(dir, "index.db"))
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i < len(good); i += 997 {
		f.Add(uint32(i), byte(0xff))
	}
	f.Fuzz(func(t *testing.T, at uint32, x byte) {
		dir := t.TempDir()
		bad := bytes.Clone(good)
		bad[int(at)%len(bad)] ^= x
		if err := os.WriteFile(filepath.Join(dir, "index.db"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, 100<<20)
		s.SetTag(repo, "new", Tag{Digest: digest.FromString("y")})
		d := put(t, s, []byte("blob"))
		if get(t, s, d) == nil {
			t.Error("a blob was lost")
		}
		balanced(t, s)
	})
}

// TestDamageIsRememberedUntilTheIndexIsSetAside: a start that can't set the damaged index aside leaves
// the note, so that the next start doesn't believe the index.
func TestDamageIsRememberedUntilTheIndexIsSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	s.catalogue.index.MarkDamaged(fmt.Errorf("%w: by a bad disk", index.ErrDamaged))
	s.Close()
	s.catalogue.index = nil
	bad := filepath.Join(dir, "index.db.bad")
	os.MkdirAll(filepath.Join(bad, "x"), 0o700) // so that the rename fails
	if _, err := Open(Options{Dir: dir, Budget: 1 << 20}); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(filepath.Join(dir, "index.db.damaged")); err != nil {
		t.Error("the damaged index will be believed:", err)
	}
}

// TestRebuildIsWrittenInParts: a rebuild of a large store doesn't keep all changes in memory. One that is
// cut short is begun anew, and all is there then, in the order of the last uses.
func TestRebuildIsWrittenInParts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	most := 0
	for n := range 2 * manyChanges {
		s.catalogue.index.Set(bucketMeta, fmt.Appendf(nil, "x%d", n%(manyChanges+1)), []byte{1})
		s.house.flushMany()
		most = max(most, s.catalogue.index.Pending())
	}
	if most > manyChanges {
		t.Errorf("%d changes were in memory at a time", most)
	}
	var ds []digest.Digest
	for n := range 6 {
		d := put(t, s, noise(uint64(60+n), 100))
		ds = append(ds, d)
		at := time.Now().Add(-time.Hour * time.Duration(1+n*5%6)) // in another order than they came
		if err := os.Chtimes(s.files.layout.blob(d), at.Truncate(time.Second), at); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, s)
	// As if the process had ended while it rebuilt the index: of two blobs it has the records.
	x, err := index.Open(filepath.Join(dir, "index.db"), index.Options{Buckets: buckets})
	if err != nil {
		t.Fatal(err)
	}
	x.Delete(bucketMeta, keyBuilt)
	for _, d := range ds[2:] {
		x.Delete(bucketBlobs, []byte(d))
		x.Delete(bucketUses, []byte(d))
	}
	for n, d := range ds[:2] {
		x.Set(bucketUses, []byte(d), encodeTime(time.Now().Add(-time.Hour*time.Duration(1+n*5%6))))
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 100<<20)
	var last time.Time
	s.room.mu.Lock()
	s.room.lru.All(func(e *entry) {
		if at := time.Unix(0, e.Value.used); at.Before(last) {
			t.Errorf("%s was used at %v, and is after what was used at %v", e.Key, at, last)
		} else {
			last = at
		}
	})
	s.room.mu.Unlock()
	for _, d := range ds {
		get(t, s, d)
	}
}

// TestRebuildOnADiskThatTakesNothing: to write isn't tried for each file.
func TestRebuildOnADiskThatTakesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	s.catalogue.index.MarkDamaged(errors.New("no more writes"))
	before := s.files.faults.writeErrors.Load()
	for n := range 5 * manyChanges / 2 {
		s.catalogue.index.Set(bucketMeta, fmt.Appendf(nil, "x%d", n), []byte{1})
		s.house.flushMany()
	}
	if tries := s.files.faults.writeErrors.Load() - before; tries < 2 || tries > 10 { // some are the background's
		t.Errorf("%d attempts to write", tries)
	}
	s.Close()
	s.catalogue.index = nil // it is closed
}

// TestWhatComesAfterDamageIsFoundAgain: the index is found damaged while it is in use. What comes in
// until the restart is found again by the files.
func TestWhatComesAfterDamageIsFoundAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	s.catalogue.index.MarkDamaged(fmt.Errorf("%w: by a bad disk", index.ErrDamaged))
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/x", body); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "7", Tag{Digest: d, MediaType: "application/x", Size: int64(len(body)), Checked: time.Now()})
	time.Sleep(2500 * time.Millisecond) // the files of repositories may be a second behind
	s.Close()
	s.catalogue.index = nil
	s = open(t, dir, 100<<20)
	if _, err := s.Tag(repo, "7"); err != nil {
		t.Error("tag:", err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Error("manifest:", err)
	}
	if _, err := s.Link(repo, d); err != nil {
		t.Error("link:", err)
	}
}

// TestRebuildConfirmsNoLinkThatWasOnlyNamed: a public index that names the manifest of a private
// repository doesn't get a confirmed link to it.
func TestRebuildConfirmsNoLinkThatWasOnlyNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	secret := []byte(`{"schemaVersion":2,"secret":true}`)
	d := digest.FromBytes(secret)
	if err := s.PutManifest(Origin{Repository: "docker.io/corp/app", Private: true}, d, "application/vnd.oci.image.manifest.v1+json", secret); err != nil {
		t.Fatal(err)
	}
	evil, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []map[string]any{{"digest": d, "size": len(secret)}}})
	if err := s.PutManifest(Origin{Repository: "docker.io/evil/public", Private: false}, digest.FromBytes(evil), "application/vnd.oci.image.index.v1+json", evil); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Link("docker.io/evil/public", d); err != nil || l.Confirmed {
		t.Fatalf("before: %+v, %v", l, err)
	}
	shut(t, s)
	os.Remove(filepath.Join(dir, "index.db"))
	s = open(t, dir, 100<<20)
	if l, err := s.Link("docker.io/evil/public", d); err == nil && l.Confirmed {
		t.Error("after a rebuild evil/public is confirmed to have corp/app's manifest")
	}
}

// TestCrashAfterEvictionAndRefetch: a blob was evicted, fetched again and committed, and a crash came
// before the index was written. The index still has the old record, with another inode. The blob is
// there.
func TestCrashAfterEvictionAndRefetch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	b := noise(1, 2<<20)
	d := put(t, s, b)
	s.house.flush()
	copyFile(t, s.files.layout.index(), filepath.Join(dir, "then"))
	s.Remove(d)
	put(t, s, noise(2, 2<<20)) // gets the inode of the old file
	put(t, s, b)
	shut(t, s)
	os.Rename(filepath.Join(dir, "then"), filepath.Join(dir, "index.db")) // what a crash leaves
	s = open(t, dir, 100<<20)
	settleDown(t, s)
	if get(t, s, d) == nil {
		t.Error("a committed blob is lost")
	}
}

// TestUnknownFileIsAdoptedOnce: a file that the index doesn't know is asked for before reconcile has come
// to it, and the download breaks off.
func TestUnknownFileIsAdoptedOnce(t *testing.T) {
	t.Parallel()
	b := noise(1, 2<<20)
	s := unwalked(t, b)
	if in := begun(t, s, Origin{Repository: repo}, b); in != nil {
		in.Abort(io.ErrUnexpectedEOF)
	}
	s.house.reconcile()
	put(t, s, noise(10, 9<<20)) // evicts all that is known of it
	balanced(t, s)
}

// TestUnknownFileIsNotAdoptedDuringADownload: the same, and reconcile comes to it while the download
// goes on.
func TestUnknownFileIsNotAdoptedDuringADownload(t *testing.T) {
	t.Parallel()
	b := noise(1, 2<<20)
	s := unwalked(t, b)
	in := begun(t, s, Origin{Repository: repo}, b)
	s.house.reconcile()
	if in != nil {
		in.Abort(io.ErrUnexpectedEOF)
	}
	balanced(t, s)
}
