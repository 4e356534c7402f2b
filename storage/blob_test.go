package storage

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestBlobSurvivesRestart: blobs and their links are there after a restart.
func TestBlobSurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	small, large := noise(1, 1000), noise(2, 3<<20)
	ds, dl := put(t, s, small), put(t, s, large)
	shut(t, s)
	s = open(t, dir, 100<<20)
	if !bytes.Equal(get(t, s, ds), small) || !bytes.Equal(get(t, s, dl), large) {
		t.Error("other bytes after a restart")
	}
	if l, err := s.Link(repo, dl); err != nil || !l.Confirmed || l.Size != 3<<20 {
		t.Errorf("link %+v, %v", l, err)
	}
	balanced(t, s)
}

// TestLostFileIsAMiss: a file that somebody has deleted, cut or replaced is a miss, and the blob can
// come in again.
func TestLostFileIsAMiss(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { os.Chmod(path, 0o600); return os.Truncate(path, 100) },
		"replaced": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, noise(99, 2<<20), 0o400))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), 100<<20)
			d := put(t, s, noise(31, 2<<20))
			if err := harm(s.files.layout.blob(d)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open = %v", err)
			}
			put(t, s, noise(31, 2<<20))
			balanced(t, s)
		})
	}
}

// TestPrivateBlobStaysPrivateWithoutTheIndex: a private blob whose manifest isn't cached stays
// private after a rebuild, also when a backup program has changed the other bits of its mode.
func TestPrivateBlobStaysPrivateWithoutTheIndex(t *testing.T) {
	t.Parallel()
	for _, mode := range []os.FileMode{modePrivate, 0o550} { // chmod -R g+rX
		dir := t.TempDir()
		s := open(t, dir, 100<<20)
		b := noise(9, 2<<20)
		d := digest.FromBytes(b)
		in, _ := s.Begin(Origin{Repository: "docker.io/corp/app", Private: true}, d, int64(len(b)))
		in.WriteAt(b, 0)
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		shut(t, s)
		if err := os.Chmod(s.files.layout.blob(d), mode); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, "index.db"))
		s = open(t, dir, 100<<20)
		f, err := s.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !f.Private {
			t.Errorf("%v: a blob that came through a private repository is public now", mode)
		}
	}
}

// TestOpenLeavesASuccessorAlone: an entry is evicted and its blob comes in again while somebody
// opens the old one. That doesn't remove the new one.
func TestOpenLeavesASuccessorAlone(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	b := noise(5, 1000)
	d := put(t, s, b)
	e, was := s.room.hold(d)
	s.Remove(d) // as an eviction after Open has found the entry, and before it opens the file
	put(t, s, b)
	if b, err := s.files.openHeld(e, was); err == nil {
		b.Close()
	}
	if _, ok := s.Has(d); !ok {
		t.Error("the new blob was removed")
	}
}

// TestOpenLeavesThePartialOfASuccessorAlone: the same, and the new one is unfinished.
func TestOpenLeavesThePartialOfASuccessorAlone(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	b := noise(5, 2<<20)
	d := put(t, s, b)
	e, was := s.room.hold(d)
	s.Remove(d)
	begun(t, s, Origin{Repository: repo}, b).Abort(io.ErrUnexpectedEOF)
	if f, err := s.files.openHeld(e, was); err == nil {
		f.Close()
	}
	if size, _ := s.Partial(d); size == 0 {
		t.Error("the partial was removed")
	}
}
