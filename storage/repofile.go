package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

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
// Errors: NewerFormatError, and then the file is as before; that it can't be written.
func (r *repoFile) write(path string) error {
	if err := checkFormat(path, repoVersion, repoAdvice); err != nil {
		return err
	}
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

// readRepo reads the file of a repository. Errors: NewerFormatError; it can't be read, or isn't
// one.
func readRepo(path string) (file repoFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	if version := formatOf(b); version > repoVersion {
		return file, &NewerFormatError{path, version, repoVersion, repoAdvice}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return file, fmt.Errorf("%s: %w", path, err)
	}
	if file.Schema != repoVersion || strings.ContainsRune(file.Repository, 0) {
		return file, fmt.Errorf("%s: not the file of a repository", path)
	}
	return file, nil
}
