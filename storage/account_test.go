package storage

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestEvictedCountsUntilClosed evicts a blob at the moment between its commit and its
// owner's goodbye: the file is open, so its room has not come back yet.
func TestEvictedCountsUntilClosed(t *testing.T) {
	s := open(t, t.TempDir(), 4<<20)
	b := noise(1, 2<<20)
	in, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.verify(); err != nil {
		t.Fatal(err)
	}
	if err := s.files.commit(in); err != nil {
		t.Fatal(err)
	}
	r, ok := in.Reader()
	if !ok {
		t.Fatal("no reader of an ingest that its owner has not left")
	}
	s.Remove(in.Digest())
	for _, step := range []struct {
		what  string
		do    func()
		bytes int64
	}{
		{"evicted", func() {}, 2 << 20},
		{"left by its reader", func() { r.Close() }, 2 << 20},
		{"left by its owner", in.finish, 0},
	} {
		step.do()
		if got := s.Stats().Bytes; got != step.bytes {
			t.Errorf("%s: %d bytes are accounted for, want %d", step.what, got, step.bytes)
		}
	}
}
