package storage

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// asNobody runs f with the rights that others have on files.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	f()
}

// TestForeignFilesAreLeftAlone: what isn't ours or can't be read, anywhere in the data directory, is
// named in the log once and left alone, with an index and without one. blobs/ may be a file system of
// its own, with the lost+found of root.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	b := noise(1, 5000)
	d := put(t, s, b)
	manifest := []byte(`{"schemaVersion":2,"layers":[]}`)
	tagged := digest.FromBytes(manifest)
	if err := s.PutManifest(Origin{Repository: repo}, tagged, "x", manifest); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "1", Tag{Digest: tagged, Checked: time.Now()})
	shut(t, s)
	foreign := []string{"lost+found", "blobs/lost+found", "blobs/sha256/lost+found", "blobs/trash/sha256/00", "blobs/sha256/00/deeper", "blobs/sha512", "repos/lost+found", "repos/docker.io/lost+found", "ingest/lost+found"}
	for _, name := range foreign {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, f os.DirEntry, err error) error {
		if err == nil && os.Geteuid() == 0 {
			err = os.Lchown(path, 65534, 65534)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range foreign {
		os.Chmod(filepath.Join(dir, name), 0)
	}
	if parent := filepath.Dir(dir); os.Geteuid() == 0 {
		os.Chmod(parent, 0o755)
	}
	t.Cleanup(func() {
		for _, name := range foreign {
			os.Chmod(filepath.Join(dir, name), 0o700)
		}
	})
	for _, lost := range []bool{false, true} {
		if lost {
			os.Remove(filepath.Join(dir, "index.db"))
		}
		var log bytes.Buffer
		asNobody(t, func() {
			s, err = Open(Options{Dir: dir, Budget: 100 << 20, Log: slog.New(slog.NewTextHandler(&log, nil))})
		})
		if err != nil {
			t.Fatalf("index lost: %v: no start: %v", lost, err)
		}
		settleDown(t, s)
		if got := get(t, s, d); !bytes.Equal(got, b) {
			t.Errorf("index lost: %v: %d bytes of the blob", lost, len(got))
		}
		if _, err := s.Tag(repo, "1"); err != nil {
			t.Errorf("index lost: %v: tag: %v", lost, err)
		}
		shut(t, s)
		if n := strings.Count(log.String(), "blobs/lost+found"); n != 1 {
			t.Errorf("index lost: %v: %d lines in the log name blobs/lost+found:\n%s", lost, n, log.String())
		}
	}
	for _, name := range foreign {
		os.Chmod(filepath.Join(dir, name), 0o700)
		if got, err := os.ReadFile(filepath.Join(dir, name, "file")); string(got) != "theirs" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestRemovedFilesAreFetchedAgain: somebody removes all that is in the data directory under a running
// server, or a part of it. What comes in afterwards is kept, what is gone takes no room, and the
// next start finds what has come in.
func TestRemovedFilesAreFetchedAgain(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"the content": func(dir string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			for _, path := range files {
				os.RemoveAll(path)
			}
			return err
		},
		"the folder": os.RemoveAll,
		"blobs":      func(dir string) error { return os.RemoveAll(filepath.Join(dir, "blobs")) },
		"ingest":     func(dir string) error { return os.RemoveAll(filepath.Join(dir, "ingest")) },
		"repos":      func(dir string) error { return os.RemoveAll(filepath.Join(dir, "repos")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			s := open(t, dir, 20<<20)
			settleDown(t, s)
			var old []digest.Digest
			for i := range 10 {
				old = append(old, put(t, s, noise(uint64(i), 2<<20)))
			}
			if err := remove(dir); err != nil {
				t.Fatal(err)
			}
			get(t, s, old[9])
			manifest := []byte(`{"schemaVersion":2,"layers":[]}`)
			md := digest.FromBytes(manifest)
			if err := s.PutManifest(Origin{Repository: repo}, md, "x", manifest); err != nil {
				t.Fatal(err)
			}
			s.SetTag(repo, "1", Tag{Digest: md, Checked: time.Now()})
			var fresh []digest.Digest
			for i := range 3 {
				fresh = append(fresh, put(t, s, noise(uint64(100+i), 2<<20)))
			}
			balances := func() bool { return bytesOnDisk(t, s) == s.Stats().Bytes }
			for deadline := time.Now().Add(time.Minute); !balances() && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			balanced(t, s)
			for _, d := range fresh {
				if get(t, s, d) == nil {
					t.Errorf("%s came in after the removal and isn't kept", d)
				}
			}
			shut(t, s)
			s = open(t, dir, 20<<20)
			settleDown(t, s)
			for _, d := range fresh {
				if get(t, s, d) == nil {
					t.Errorf("%s isn't there after a restart", d)
				}
			}
			if got, err := s.Tag(repo, "1"); err != nil || got.Digest != md {
				t.Errorf("tag after a restart: %+v, %v", got, err)
			}
			balanced(t, s)
		})
	}
}
