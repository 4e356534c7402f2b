package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// repoSchema is the version of repoFile.
const repoSchema = 1

// repoFile is the file of a repository: what can't be found in the blobs when the index is
// lost.
type repoFile struct {
	Schema     int                      `json:"schema"`
	Repository string                   `json:"repository"`
	Public     *bool                    `json:"public,omitempty"`
	VerdictAt  time.Time                `json:"verdict_at,omitzero"`
	Tags       map[string]tagInFile     `json:"tags,omitempty"`
	Manifests  map[digest.Digest]string `json:"manifests,omitempty"` // media types
}

type tagInFile struct {
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Type    string        `json:"media_type"`
	Checked time.Time     `json:"checked"`
}

// write writes the file of a repository to path, or removes it when there is nothing to say.
func (r *repoFile) write(path string) error {
	if len(r.Tags) == 0 && len(r.Manifests) == 0 && r.Public == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// readRepo reads the file of a repository. Errors: it can't be read, or isn't one.
func readRepo(path string) (file repoFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return file, err
	}
	if file.Schema != repoSchema || strings.ContainsRune(file.Repository, 0) {
		return file, fmt.Errorf("%s: not the file of a repository, of schema %d", path, repoSchema)
	}
	return file, nil
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
