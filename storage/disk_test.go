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
	s.making.Lock()
	s.mu.Lock()
	e := s.lru.Remove(d)
	s.leave(e)
	s.mu.Unlock()
	b.Close()
	if st := s.Stats(); st.Bytes != 3<<20 {
		t.Errorf("booked %d while the file is there", st.Bytes)
	}
	s.unlink([]*entry{e})
	s.making.Unlock()
	balanced(t, s)
}
