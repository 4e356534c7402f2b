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
