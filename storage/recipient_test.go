package storage

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// slowly begins to send a blob to a client that is slow already.
func slowly(t *testing.T, s *Store, d digest.Digest) *Blob {
	t.Helper()
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	b.to.Begin(struct{}{})
	b.to.Wait()
	b.to.slowAt.Store(1)
	return b
}

// patient opens a store in which clients become slow only when a test says so.
func patient(t *testing.T, budget int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: t.TempDir(), Budget: budget, Log: slog.New(slog.DiscardHandler), Patience: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	settleDown(t, s)
	return s
}

// TestRoomOfSlowReadersIsForTheRefused: a slow client that comes back at once doesn't take the
// room again that it has just given.
func TestRoomOfSlowReadersIsForTheRefused(t *testing.T) {
	t.Parallel()
	s := patient(t, 4<<20)
	body, wanted := noise(1, 3<<20), noise(2, 2<<20)
	b := slowly(t, s, put(t, s, body))
	if _, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(wanted), int64(len(wanted))); !errors.Is(err, ErrNoRoom) {
		t.Fatal(err)
	}
	s.room.endSlow()
	if err := b.to.End(errors.New("any")); err != ErrSlow {
		t.Errorf("the sending ended with %v", err)
	}
	if _, ok := s.Has(b.Digest); ok {
		t.Error("what slow clients read is still cached, for them to come back to")
	}
	b.Close()
	if _, err := s.Begin(Origin{Repository: repo}, b.Digest, b.Size); !errors.Is(err, ErrNoRoom) {
		t.Errorf("the slow client has its room again: %v", err)
	}
	put(t, s, wanted)
	s.Remove(digest.FromBytes(wanted))
	put(t, s, body) // nobody lacks the room now
	balanced(t, s)
}

// TestOnlyReadersInTheWayAreEnded: of the slow clients those are cut whose room helps, evicted blobs
// first, and no more than it takes.
func TestOnlyReadersInTheWayAreEnded(t *testing.T) {
	t.Parallel()
	s := patient(t, 10<<20)
	shared, kept, evicted := put(t, s, noise(1, 4<<20)), put(t, s, noise(2, 3<<20)), put(t, s, noise(3, 3<<20))
	blobs := []*Blob{slowly(t, s, shared), slowly(t, s, kept), slowly(t, s, evicted), slowly(t, s, evicted)}
	other, err := s.Open(shared) // by somebody who isn't slow
	if err != nil {
		t.Fatal(err)
	}
	s.Remove(evicted)
	if s.room.endSlow() || s.Stats().SlowReaders > 0 {
		t.Error("somebody was cut although nothing was refused")
	}
	for _, size := range []int64{11 << 20, 2 << 20} { // more than the budget, and what could have room
		if err := (&reservation{room: &s.room}).grow(size); !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
		s.room.endSlow()
		for i, b := range blobs {
			if ended := b.to.Err() != nil; ended != (size == 2<<20 && i >= 2) {
				t.Errorf("%d MiB refused, blob %d: ended = %v", size>>20, i, ended)
			}
		}
	}
	if n := s.Stats().SlowReaders; n != 2 {
		t.Errorf("%d slow readers were counted", n)
	}
	for _, b := range append(blobs, other) {
		b.to.End(nil)
		b.Close()
		b.Close() // does nothing
	}
	balanced(t, s)
}
