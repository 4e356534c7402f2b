package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// pinModel is what is pinned, written in the slow and obvious way.
type pinModel struct {
	images []picture
	tags   map[string]int // tag → image
	pins   []modelPin     // the oldest first
}

type modelPin struct {
	tag   string // "": by digest
	image int
}

// current returns the image of a pin: that of its tag, if that is cached.
func (m *pinModel) current(s *Store, p modelPin) int {
	if i, ok := m.tags[p.tag]; ok && p.tag != "" {
		if _, cached := s.Has(m.images[i].manifest); cached {
			return i
		}
	}
	return p.image
}

// parts returns the sizes of all parts of an image, or nothing if its manifest isn't cached.
func (m *pinModel) parts(s *Store, image int) map[digest.Digest]int64 {
	p := m.images[image]
	if _, cached := s.Has(p.manifest); !cached {
		return nil
	}
	all := map[digest.Digest]int64{p.manifest: int64(len(p.body))}
	for _, l := range p.layers {
		all[digest.FromBytes(l)] = int64(len(l))
	}
	return all
}

// protected returns what is protected, and which pins are.
func (m *pinModel) protected(s *Store) (blobs map[digest.Digest]bool, pins []bool) {
	blobs, limit := map[digest.Digest]bool{}, s.Budget()/100*90
	for at, p := range m.pins {
		m.pins[at].image = m.current(s, p)
		parts, more := m.parts(s, m.pins[at].image), int64(0)
		for d, n := range parts {
			if !blobs[d] {
				more += n
			}
		}
		fits := len(parts) > 0 && more <= limit
		pins = append(pins, fits)
		for d, n := range parts {
			if !blobs[d] && (fits || d == m.images[m.pins[at].image].manifest && n <= limit) {
				blobs[d] = true
				limit -= n
			}
		}
	}
	return blobs, pins
}

// check compares a store with the model. It returns what is pinned.
func (m *pinModel) check(t *testing.T, s *Store) (pinned []digest.Digest) {
	t.Helper()
	blobs, protected := m.protected(s)
	states, err := s.Pins()
	if err != nil || len(states) != len(m.pins) {
		t.Fatalf("%d pins, %d by the model; %v", len(states), len(m.pins), err)
	}
	for at, st := range states {
		if st.Tag != m.pins[at].tag || st.Digest != m.images[m.pins[at].image].manifest || st.Protected != protected[at] {
			t.Fatalf("pin %d: %+v; the model has %+v, protected %v", at, st, m.pins[at], protected[at])
		}
	}
	sum := int64(0)
	for _, p := range m.images {
		for d := range m.parts(s, m.index(p.manifest)) {
			e, cached := s.Entry(d)
			if cached && e.Pinned != blobs[d] {
				t.Fatalf("%s: pinned %v, by the model %v", d, e.Pinned, blobs[d])
			}
		}
	}
	for d := range blobs {
		if e, cached := s.Entry(d); cached {
			pinned, sum = append(pinned, d), sum+e.Size
		}
	}
	if st := s.Stats(); st.PinnedBytes != sum || st.PinnedBytes > s.PinLimit() || st.Bytes+st.ReservedBytes > st.BudgetBytes || st.Pins != int64(len(m.pins)) {
		t.Fatalf("%+v; %d bytes are pinned by the model", st, sum)
	}
	return pinned
}

func (m *pinModel) index(manifest digest.Digest) int {
	for i, p := range m.images {
		if p.manifest == manifest {
			return i
		}
	}
	return -1
}

// find returns where a pin is, -1 if it isn't there.
func (m *pinModel) find(p modelPin) int {
	for at, other := range m.pins {
		if other.tag == p.tag && (p.tag != "" || other.image == p.image) {
			return at
		}
	}
	return -1
}

// runPins does what ops say (any bytes are valid) to a store and to the model, and compares them.
func runPins(t *testing.T, ops []byte) {
	const budget = 300 << 10
	dir := t.TempDir()
	s := open(t, dir, budget)
	m := &pinModel{tags: map[string]int{}}
	shared := [][]byte{noise(9, 30<<10), noise(10, 50<<10)}
	for i := range 6 {
		m.images = append(m.images, draw(i+1, shared[:i%3], 10<<10*(1+i), 5<<10))
	}
	for i := 0; i+1 < len(ops) && i < 120; i += 2 {
		n := int(ops[i+1])
		image, tag := n%len(m.images), fmt.Sprint(n/16%3)
		pin := modelPin{tag, m.tags[tag]}
		if n&8 != 0 {
			pin = modelPin{"", image}
		}
		pinned := m.check(t, s)
		switch ops[i] % 11 {
		case 0, 1: // pull
			m.images[image].pull(t, s, repo, tag)
			m.tags[tag] = image
		case 2, 3:
			st, err := s.Pin(repo, pin.tag, m.images[pin.image].manifest)
			m.pinned(t, s, pin, st, err)
		case 4:
			_, err := s.Unpin(repo, pin.tag, m.images[pin.image].manifest)
			at := m.find(pin)
			if errors.Is(err, fs.ErrNotExist) != (at < 0) || at >= 0 && err != nil {
				t.Fatalf("unpin %+v: %v", pin, err)
			}
			if at >= 0 {
				m.pins = append(m.pins[:at], m.pins[at+1:]...)
				pinned = nil
			}
		case 5: // other images, until nothing is left that may go
			for k := range 8 {
				draw(100+int(ops[i])+k, nil, 50<<10).pull(t, s, "docker.io/library/other", "1")
			}
		case 6: // the operator changes the budget
			s.SetLimits(budget-int64(n)<<9, 0)
			m.check(t, s)
			s.SetLimits(budget, 0)
			pinned = nil
		case 7: // a restart, every other time without the index
			shut(t, s)
			if n%2 == 0 {
				os.Remove(filepath.Join(dir, "index.db"))
			}
			s = open(t, dir, budget)
		case 9: // verify: what is right stays
			before := s.Stats()
			for d := range m.parts(s, image) {
				if err := s.Verify(t.Context(), d, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("verify of %d: %v", image, err)
				}
			}
			if after := s.Stats(); after.Bytes != before.Bytes || after.PinnedBytes != before.PinnedBytes {
				t.Fatalf("verify changed %+v to %+v", before, after)
			}
		case 10: // a part has other bytes, or its file is gone: verify drops it, pinned or not
			m.spoil(t, s, image, n)
			pinned = nil
		case 8: // purge
			var all []digest.Digest
			kept := false
			for d := range m.parts(s, image) {
				all = append(all, d)
				kept = kept || s.room.isPinned(d)
			}
			err := s.Purge(Removal{Repository: repo, Tags: []string{tag}, Blobs: all})
			if errors.Is(err, ErrPinned) != kept || !kept && err != nil {
				t.Fatalf("purge of %d: %v, pinned %v", image, err, kept)
			}
			if err == nil {
				delete(m.tags, tag)
				if m.images[image].missing(s) < len(all) {
					t.Fatal("what was purged is still there")
				}
			}
		}
		for _, d := range pinned {
			if _, ok := s.Has(d); !ok && ops[i]%11 > 1 { // a tag that moves lets the old image go
				t.Fatalf("op %d: %s was pinned and is gone", ops[i]%11, d)
			}
		}
	}
	m.check(t, s)
	balanced(t, s)
}

// spoil harms the file of a part of an image, which verify must find.
func (m *pinModel) spoil(t *testing.T, s *Store, image, n int) {
	t.Helper()
	parts := slices.Sorted(maps.Keys(m.parts(s, image)))
	parts = slices.DeleteFunc(parts, func(d digest.Digest) bool { _, cached := s.Has(d); return !cached })
	if len(parts) == 0 {
		return
	}
	d := parts[n%len(parts)]
	path, want := s.files.layout.blob(d), ErrDigest
	var err error
	if n&16 != 0 {
		want, err = ErrLost, os.Remove(path)
	} else if err = os.Chmod(path, 0o600); err == nil {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, werr := f.WriteAt([]byte{'!'}, 3)
			err = errors.Join(werr, f.Close(), os.Chmod(path, 0o400))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), d, nil); !errors.Is(err, want) {
		t.Fatalf("verify of what was harmed: %v, want %v", err, want)
	}
	if _, cached := s.Has(d); cached {
		t.Fatal("what is bad is still there")
	}
}

// pinned compares what Pin said with the model, and takes it over.
func (m *pinModel) pinned(t *testing.T, s *Store, pin modelPin, st PinState, err error) {
	t.Helper()
	_, cached := s.Has(m.images[pin.image].manifest)
	if pin.tag != "" {
		_, tagged := m.tags[pin.tag]
		cached = cached && tagged
	} else if cached {
		_, lerr := s.Link(repo, m.images[pin.image].manifest)
		cached = lerr == nil
	}
	if errors.Is(err, fs.ErrNotExist) != !cached {
		t.Fatalf("pin %+v: %v, cached %v", pin, err, cached)
	}
	if !cached {
		return
	}
	at := m.find(pin)
	if at < 0 {
		at = len(m.pins)
		m.pins = append(m.pins, pin)
	}
	_, protected := m.protected(s)
	_, large := errors.AsType[*PinTooLarge](err)
	switch isNew := at == len(m.pins)-1 && large; {
	case large && (protected[at] || !isNew):
		t.Fatalf("pin %+v is refused: %v", pin, err)
	case large:
		m.pins = m.pins[:at]
	case err != nil || st.Protected != protected[at]:
		t.Fatalf("pin %+v: %+v, %v; by the model protected %v", pin, st, err, protected[at])
	}
}

// FuzzPins compares pins, purges and verifies, with pulls, evictions and restarts between them, with the model.
func FuzzPins(f *testing.F) {
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		ops := make([]byte, 80)
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(runPins)
}
