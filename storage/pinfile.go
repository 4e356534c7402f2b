package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// pinFile is the file of the pins. Nothing else says what is pinned, so it is synced before the
// operator is told, and the index is not needed to read it.
type pinFile struct {
	Schema int         `json:"schema"`
	Pins   []pinInFile `json:"pins"` // the oldest first
}

type pinInFile struct {
	Repository string        `json:"repository"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest"`
	Since      time.Time     `json:"since"`
}

// errPins says that the file is damaged.
var errPins = errors.New("not a file of pins")

// readPins reads the file of the pins; none if there is no file. Errors: NewerFormatError;
// errPins; that it can't be read.
func readPins(path string) (list []Pin, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if version := formatOf(b); version > pinsVersion {
		return nil, &NewerFormatError{path, version, pinsVersion, pinsAdvice}
	}
	var file pinFile
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", errPins, err)
	}
	if file.Schema != pinsVersion {
		return nil, fmt.Errorf("%w: version %d", errPins, file.Schema)
	}
	for _, p := range file.Pins {
		if p.Repository == "" || p.Digest.Validate() != nil {
			return nil, fmt.Errorf("%w: a pin of %q at %q", errPins, p.Repository, p.Digest)
		}
		list = append(list, Pin(p))
	}
	return list, nil
}

// writePins replaces the file of the pins. Once it has returned, a power cut doesn't lose them.
// Errors: that it can't be written, and then the old one is still there.
func writePins(path string, list []Pin) error {
	file := pinFile{Schema: pinsVersion, Pins: []pinInFile{}}
	for _, p := range list {
		file.Pins = append(file.Pins, pinInFile(p))
	}
	b, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems can't, and don't need it
		return err
	}
	return nil
}
