package warm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// lastVersion is the version of the file with the last run. A newer program may change it.
const lastVersion = 1

// lastFile is the file with the last run. It is written after each, without a sync: a crash of the machine
// may lose the last one, and nothing depends on it.
type lastFile struct {
	Schema    int         `json:"schema"`
	Began     time.Time   `json:"began"`
	TookMS    int64       `json:"took_ms"`
	Images    int         `json:"images"`
	Fetched   int64       `json:"fetched_bytes"`
	Failures  []lastFault `json:"failures"`
	Succeeded time.Time   `json:"succeeded"` // when a run last ended without a failure; zero: never
}

type lastFault struct {
	What  string `json:"what"`
	Error string `json:"error"`
}

// readLast reads the last run, and when one last succeeded; nil if there is none. Errors: that the file can't
// be read, or is newer.
func readLast(path string) (*Run, time.Time, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	var f lastFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Schema > lastVersion {
		err = fmt.Errorf("%s has format version %d, and this hubcache knows versions up to %d: what runs do isn't kept", path, f.Schema, lastVersion)
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	r := &Run{Began: f.Began, Took: time.Duration(f.TookMS) * time.Millisecond, Images: f.Images, Fetched: f.Fetched}
	for _, fault := range f.Failures {
		r.Failures = append(r.Failures, Failure{fault.What, errors.New(fault.Error)})
	}
	return r, f.Succeeded, nil
}

// writeLast is the opposite of readLast. A file of a newer version stays.
func writeLast(path string, r *Run, succeeded time.Time) error {
	if b, err := os.ReadFile(path); err == nil {
		var f lastFile
		if json.Unmarshal(b, &f) == nil && f.Schema > lastVersion {
			return nil
		}
	}
	f := lastFile{Schema: lastVersion, Began: r.Began, TookMS: r.Took.Milliseconds(), Images: r.Images, Fetched: r.Fetched, Failures: []lastFault{}, Succeeded: succeeded}
	for _, fault := range r.Failures {
		f.Failures = append(f.Failures, lastFault{fault.What, fault.Err.Error()})
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
