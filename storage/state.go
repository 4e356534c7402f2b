package storage

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// partialState is the file beside a partial. It says what a later process needs to resume it.
type partialState struct {
	Schema     int    `json:"schema,omitempty"` // version of the format; 0 means 1
	Size       int64  `json:"size"`
	Repository string `json:"repository"`
	Private    bool   `json:"private,omitempty"`
	Ranges     spans  `json:"ranges"` // written, not verified
	// Boot is the boot in which it was written. Within a boot the page cache has what the
	// ranges name; after a crash of the machine it may never have reached the disk.
	Boot string `json:"boot"`
}

var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// writeState writes the state file. A small blob has none, since it isn't worth resuming.
func (in *Ingest) writeState() error {
	if size := in.Size(); size >= 0 && size <= VerifyFirst {
		return nil
	}
	in.stateFile.Lock()
	defer in.stateFile.Unlock()
	in.mu.Lock()
	st := partialState{
		Size:       in.size,
		Repository: in.from.Repository,
		Private:    in.from.Private,
		Ranges:     append(spans{}, in.have...), // not nil, which JSON would call null
		Boot:       bootID(),
	}
	in.stateAt, in.stateBytes = time.Now(), in.have.bytes()
	in.mu.Unlock()
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return writeFile(in.s.files.layout.partialState(in.digest), b)
}

// readState reads the state file at path; ok is false when its partial can't be resumed.
func readState(path string) (st partialState, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &st) != nil {
		return st, false
	}
	return st, st.Size > 0 && st.Boot == bootID() && st.Ranges.valid(st.Size)
}

// resume opens what an earlier ingest of the digest has left. If that can't be resumed, it is
// removed and its room given back.
func (in *Ingest) resume() bool {
	files := &in.s.files
	if !in.parked {
		return false
	}
	parked := in.reservation.bytes()
	st, ok := readState(files.layout.partialState(in.digest))
	if ok && st.Size == parked && (in.size < 0 || in.size == st.Size) {
		if f, err := openSized(files.layout.partial(in.digest), st.Size); err == nil {
			in.mu.Lock()
			in.f, in.size, in.have, in.claimed = f, st.Size, st.Ranges, slices.Clone(st.Ranges)
			in.resumed = true
			in.mu.Unlock()
			return true
		}
	}
	files.removePartial(in.digest)
	in.reservation.resize(0) // giving back can't fail
	return false
}

// openSized opens a partial, whose file must have this size.
func openSized(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		f.Close()
		return nil, errors.New("another size than its state says")
	}
	return f, nil
}

// Span is the bytes from From up to, not including, To.
type Span struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// spans is a set of bytes: sorted, disjoint, not touching.
type spans []Span

// add puts s into the set.
func (ss spans) add(s Span) spans {
	if s.To <= s.From {
		return ss
	}
	// The ones from i up to j overlap or touch s.
	i, _ := slices.BinarySearchFunc(ss, s.From, func(e Span, at int64) int {
		if e.To < at {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(ss) && ss[j].From <= s.To; j++ {
		s.From, s.To = min(s.From, ss[j].From), max(s.To, ss[j].To)
	}
	return slices.Replace(ss, i, j, s)
}

// end returns how far the set reaches from at without a gap: at itself when that byte isn't
// there.
func (ss spans) end(at int64) int64 {
	for _, s := range ss {
		if s.From <= at && at < s.To {
			return s.To
		}
	}
	return at
}

// hasPiece reports whether there is a whole Piece from at on, or all up to size. To hash
// fewer bytes at a time would cost more in waking up than in hashing.
func (ss spans) hasPiece(at, size int64) bool {
	end := ss.end(at)
	return end-at >= Piece || end == size
}

// missing returns what the set lacks of the first size bytes.
func (ss spans) missing(size int64) (gaps []Span) {
	at := int64(0)
	for _, s := range ss {
		if s.From >= size {
			break
		}
		if s.From > at {
			gaps = append(gaps, Span{at, s.From})
		}
		at = s.To
	}
	if at < size {
		gaps = append(gaps, Span{at, size})
	}
	return gaps
}

// missingIn returns what the set lacks of s.
func (ss spans) missingIn(s Span) (gaps []Span) {
	for _, g := range ss.missing(s.To) {
		if g.To > s.From {
			gaps = append(gaps, Span{max(g.From, s.From), g.To})
		}
	}
	return gaps
}

// bytes returns the number of bytes in the set.
func (ss spans) bytes() (n int64) {
	for _, s := range ss {
		n += s.To - s.From
	}
	return n
}

// valid reports whether ss, which comes from a file, is sorted, disjoint and within size.
func (ss spans) valid(size int64) bool {
	last := int64(-1)
	for _, s := range ss {
		if s.From <= last || s.To <= s.From || s.To > size {
			return false
		}
		last = s.To
	}
	return true
}
