package storage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// The versions of the formats on disk. docs/design/disk-format.md has the rule by which they rise.
const (
	indexVersion = 1 // in the name of the index
	repoVersion  = 1 // "schema" in repos/*.json
	stateVersion = 1 // "schema" in ingest/*.json, which has none in version 1
)

// indexName is the name of an index of that version. The index can be made again from the other
// files, so a version that an older program can't read gets another name: that program then
// makes its own.
func indexName(version int) string {
	if version == 1 {
		return "index.db"
	}
	return fmt.Sprintf("index-v%d.db", version)
}

// NewerFormatError says that a newer hubcache has written a file in a format that this one
// doesn't know. Nothing was changed, removed or set aside because of it.
type NewerFormatError struct {
	Path    string
	Version int    // of the format of the file; 0: not known
	Known   int    // the newest version that this hubcache knows
	Advice  string // what else can be done than to install the newer hubcache
}

// Error names the file and the version, and says what to do.
func (e *NewerFormatError) Error() string {
	version := "a newer format version"
	if e.Version > 0 {
		version = fmt.Sprintf("format version %d", e.Version)
	}
	return fmt.Sprintf("%s has %s, and this hubcache knows versions up to %d: install a hubcache that knows it, or %s",
		e.Path, version, e.Known, e.Advice)
}

// What can be done instead of installing the newer hubcache, by kind of file.
const (
	indexAdvice = "delete the file: it is made again from the others, without the last uses"
	repoAdvice  = "move the file away: the tags of that repository are then asked for again"
	stateAdvice = "move the file away: that download then begins anew"
)

// formatOf returns the version that a JSON document says it has, 0 if it says none or can't be
// read.
func formatOf(document []byte) int {
	var d struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(document, &d) != nil {
		return 0
	}
	return d.Schema
}

// checkFormat fails with NewerFormatError if the JSON document at path has a newer version than
// known. A document that can't be read is not newer.
func checkFormat(path string, known int, advice string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if version := formatOf(b); version > known {
		return &NewerFormatError{path, version, known, advice}
	}
	return nil
}

// writeFile replaces the file at path by one with these bytes, whole or not at all. Its folder
// is made when missing. It isn't synced: a crash of the machine may leave the old one.
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

// tempPrefix begins the names of files that a killed process may leave behind. No digest and
// no part of a repository's name begins with a dot.
const tempPrefix = ".tmp-"
