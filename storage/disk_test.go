package storage

import "testing"

// TestReaderLeavesWhileTheVictimIsUnlinked: between the choice of a victim and the end of
// its file, its last reader leaves. Its bytes are given back once.
func TestReaderLeavesWhileTheVictimIsUnlinked(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	put(t, s, noise(1, 1<<20))
	d := put(t, s, noise(2, 2<<20))
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	s.room.evicting.Lock()
	s.room.mu.Lock()
	e := s.room.lru.Remove(d)
	s.room.leave(e)
	s.room.mu.Unlock()
	b.Close()
	if st := s.Stats(); st.Bytes != 3<<20 {
		t.Errorf("booked %d while the file is there", st.Bytes)
	}
	s.room.unlink([]*entry{e})
	s.room.evicting.Unlock()
	balanced(t, s)
}
