package storage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const repo = "docker.io/library/redis"

// TestMain lets the garbage collector run less often than it does by default. The live heap of
// these tests is small and they move many bytes, so it would run all the time and make the race
// detector forget and relearn their memory.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

// open opens a store that is closed at the end of the test.
func open(t *testing.T, dir string, budget int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.catalogue.index != nil {
			s.Close()
			s.catalogue.index = nil
		}
	})
	return s
}

// shut closes a store before the end of the test.
func shut(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.catalogue.index = nil
}

// settleDown waits until the files have been compared with the index.
func settleDown(t *testing.T, s *Store) {
	t.Helper()
	for range 6000 {
		if s.house.walked.Load() {
			time.Sleep(10 * time.Millisecond) // and the sweep
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the files have not been compared with the index after a minute")
}

// unwalked opens a store of a few blobs, one of which the index doesn't know after a crash, and
// stops before the files are compared with the index.
func unwalked(t *testing.T, unknown []byte) *Store {
	t.Helper()
	dir := t.TempDir()
	shut(t, open(t, dir, 10<<20))
	s := newStore(Options{Dir: dir, Budget: 10 << 20, Log: slog.New(slog.DiscardHandler)})
	path := s.files.layout.blob(digest.FromBytes(unknown))
	os.MkdirAll(filepath.Dir(path), 0o700)
	if err := os.WriteFile(path, unknown, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := s.house.load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.catalogue.index.Close() })
	return s
}

// noise returns n bytes that seed determines.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// put ingests a blob and returns its digest.
func put(t *testing.T, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	return d
}

// get reads blob d. It returns nil when it isn't there.
func get(t *testing.T, s *Store, d digest.Digest) []byte {
	t.Helper()
	b, err := s.Open(d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(b.File)
	if err != nil || digest.FromBytes(got) != d {
		t.Fatalf("%s: %d bytes, %v", d, len(got), err)
	}
	return got
}

// begun writes all of b but the last 100 bytes. It returns nil when the blob is there already.
func begun(t *testing.T, s *Store, o Origin, b []byte) *Ingest {
	t.Helper()
	in, err := s.Begin(o, digest.FromBytes(b), int64(len(b)))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b[:len(b)-100], 0); err != nil {
		t.Fatal(err)
	}
	return in
}

// follow makes an io.Reader of a Reader.
type follow struct {
	r  *Reader
	at int64
}

func (f *follow) Read(p []byte) (int, error) {
	n, err := f.r.ReadAt(context.Background(), p, f.at)
	f.at += int64(n)
	return n, err
}

// copyFile copies a file.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// bytesOnDisk adds up the files in blobs/ and ingest/, without the state files.
func bytesOnDisk(t *testing.T, s *Store) (n int64) {
	t.Helper()
	for _, dir := range []string{s.files.layout.blobs(), s.files.layout.ingest()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".json") && !strings.HasPrefix(d.Name(), tempPrefix) {
				if fi, err := d.Info(); err == nil {
					n += fi.Size()
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// balanced fails when the accounts and the disk differ, or something stays reserved.
func balanced(t *testing.T, s *Store) {
	t.Helper()
	st := s.Stats()
	if n := bytesOnDisk(t, s); n != st.Bytes || st.ReservedBytes != 0 || st.Bytes > st.BudgetBytes {
		t.Errorf("%d bytes on disk, %d accounted for, %d reserved, budget %d", n, st.Bytes, st.ReservedBytes, st.BudgetBytes)
	}
}
