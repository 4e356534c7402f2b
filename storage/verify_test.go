package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// spoil changes one byte in the middle of a blob's file. Its size and times stay, as with a bad
// disk.
func spoil(t *testing.T, s *Store, d digest.Digest) {
	t.Helper()
	path := s.files.layout.blob(d)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600), os.Chtimes(path, time.Time{}, fi.ModTime()), os.Chmod(path, fi.Mode())); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyDropsWhatIsBad, and only that; and it says why.
func TestVerifyDropsWhatIsBad(t *testing.T) {
	for _, c := range []struct {
		name    string
		harm    func(t *testing.T, s *Store, d digest.Digest)
		err     error // nil: it is right
		corrupt int64
	}{
		{name: "right", harm: func(*testing.T, *Store, digest.Digest) {}},
		{name: "another byte", harm: spoil, err: ErrDigest, corrupt: 1},
		{name: "cut", harm: func(t *testing.T, s *Store, d digest.Digest) {
			if err := os.Truncate(s.files.layout.blob(d), 10); err != nil {
				t.Fatal(err)
			}
		}, err: ErrDigest, corrupt: 1},
		{name: "gone", harm: func(t *testing.T, s *Store, d digest.Digest) {
			if err := os.Remove(s.files.layout.blob(d)); err != nil {
				t.Fatal(err)
			}
		}, err: ErrLost},
		{name: "a folder in its place", harm: func(t *testing.T, s *Store, d digest.Digest) {
			path := s.files.layout.blob(d)
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, err: ErrDigest, corrupt: 1},
		{name: "replaced by the same bytes", harm: func(t *testing.T, s *Store, d digest.Digest) {
			path := s.files.layout.blob(d)
			b, err := os.ReadFile(path)
			if err := errors.Join(err, os.WriteFile(path+".new", b, modePrivate), os.Rename(path+".new", path)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, t.TempDir(), 100<<20)
			other := put(t, s, noise(1, 1000))
			d := put(t, s, noise(2, 3*Piece+5))
			settleDown(t, s)
			c.harm(t, s, d)
			read := 0
			err := s.Verify(context.Background(), d, func(n int) error { read += n; return nil })
			if !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if size, ok := s.Has(d); ok != (c.err == nil) || ok && int64(read) != size {
				t.Errorf("cached: %v, %d of %d bytes were read", ok, read, size)
			}
			if err := s.Verify(context.Background(), other, nil); err != nil {
				t.Errorf("the other blob: %v", err)
			}
			if n := s.Stats().Corrupt; n != c.corrupt {
				t.Errorf("%d were counted as corrupt, want %d", n, c.corrupt)
			}
			if all, bytes := s.Blobs(); len(all) == 0 || bytes != s.Stats().Bytes {
				t.Errorf("%d blobs with %d bytes", len(all), bytes)
			}
		})
	}
}

// TestVerifyKnowsWhatItHasHashed: a blob that was found without a record, as after the folder was
// moved, is not hashed again by the client that asks first. What is private stays so.
func TestVerifyKnowsWhatItHasHashed(t *testing.T) {
	s := unwalked(t, noise(5, 1000))
	d := digest.FromBytes(noise(5, 1000))
	s.house.adoptFile(d)
	if _, was := s.room.hold(d); !was.has(unverified) {
		t.Fatal("nothing to verify")
	}
	if err := s.Verify(context.Background(), d, nil); err != nil {
		t.Fatal(err)
	}
	if _, was := s.room.hold(d); was.has(unverified) {
		t.Error("it would be hashed again")
	}
}

// TestVerifyLeavesTheSuccessorAlone: while a bad file is hashed, its blob is removed and fetched
// again. The new one stays.
func TestVerifyLeavesTheSuccessorAlone(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	b := noise(3, 2*Piece)
	d := put(t, s, b)
	spoil(t, s, d)
	replaced := false
	err := s.Verify(context.Background(), d, func(int) error {
		if !replaced {
			s.Remove(d)
			put(t, s, b)
			replaced = true
		}
		return nil
	})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := s.Verify(context.Background(), d, nil); err != nil || s.Stats().Corrupt != 0 {
		t.Errorf("the new one: %v, %d corrupt", err, s.Stats().Corrupt)
	}
}

// TestVerifyHoldsNoRoom: what is evicted while it is hashed gives its bytes back at the next piece.
func TestVerifyHoldsNoRoom(t *testing.T) {
	s := open(t, t.TempDir(), 8*Piece)
	d := put(t, s, noise(3, 6*Piece))
	pieces := 0
	err := s.Verify(context.Background(), d, func(int) error {
		if pieces++; pieces == 2 {
			s.SetLimits(Piece, 0)
		}
		return nil
	})
	if !errors.Is(err, fs.ErrNotExist) || pieces != 2 {
		t.Errorf("%v after %d pieces", err, pieces)
	}
	if st := s.Stats(); st.Bytes != 0 || st.Corrupt != 0 {
		t.Errorf("%d bytes are held, %d corrupt", st.Bytes, st.Corrupt)
	}
}

// TestVerifyEnds with its context, and with an error of the pace. Nothing is dropped then.
func TestVerifyEnds(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	d := put(t, s, noise(3, 3*Piece))
	spoil(t, s, d)
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.Verify(ctx, d, func(int) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	enough := errors.New("enough")
	if err := s.Verify(context.Background(), d, func(int) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	if _, ok := s.Has(d); !ok {
		t.Error("dropped before it was known to be bad")
	}
}
