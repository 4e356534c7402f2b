package storage

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hubcache/hubcache/index"
)

// partialState is the file beside a partial: what a later process needs to go on with it.
type partialState struct {
	Size       int64  `json:"size"`
	Repository string `json:"repository"`
	Private    bool   `json:"private,omitempty"`
	Ranges     spans  `json:"ranges"` // written, not verified
	// Boot is the boot in which it was written. After a crash of the machine what the
	// ranges name may never have reached the disk; within a boot the page cache has it.
	Boot string `json:"boot"`
}

var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

func (in *Ingest) writeState() error {
	if size := in.Size(); size >= 0 && size <= VerifyFirst {
		return nil // not worth going on with
	}
	in.stating.Lock()
	defer in.stating.Unlock()
	in.mu.Lock()
	st := partialState{in.size, in.from.Repository, in.from.Private, append(spans{}, in.have...), bootID()}
	in.stateAt, in.stateBytes = time.Now(), in.have.bytes()
	in.mu.Unlock()
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return writeFile(in.s.layout.partialState(in.digest), b)
}

// readState returns what can be taken up again at path, a partial's state file.
func readState(path string) (st partialState, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &st) != nil {
		return st, false
	}
	return st, st.Size > 0 && st.Boot == bootID() && st.Ranges.valid(st.Size)
}

// resume takes up what an earlier ingest of the digest left.
func (in *Ingest) resume() bool {
	s := in.s
	if !in.parked {
		return false
	}
	parked := in.room.bytes()
	st, ok := readState(s.layout.partialState(in.digest))
	if ok && st.Size == parked && (in.size < 0 || in.size == st.Size) {
		if f, err := openSized(s.layout.partial(in.digest), st.Size); err == nil {
			in.mu.Lock()
			in.f, in.size, in.have, in.claimed = f, st.Size, st.Ranges, slices.Clone(st.Ranges)
			in.resumed = true
			in.mu.Unlock()
			return true
		}
	}
	in.remove()
	s.mu.Lock()
	in.room.giveBack()
	s.mu.Unlock()
	return false
}

// openSized opens a partial, which must have this size.
func openSized(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		f.Close()
		return nil, index.ErrDamaged
	}
	return f, nil
}

// writeFile replaces the file at path by one with these bytes, whole or not at all.
// Its folder is made when missing. It isn't synced: a crash of the machine may leave the
// old one.
func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// tempPrefix begins the names of files that a killed process may leave: no digest and no
// repository's component begins with a dot.
const tempPrefix = ".tmp-"
