// Package transfer moves images into and out of a store without a registry: from the data
// directory of a registry:2, and from and to OCI layouts.
//
// An import reads a Source, makes a Plan of what there is room for, and runs it. An Archive is what
// an export writes. A manifest comes and goes byte for byte, with its media type.
package transfer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of a Source.
type Image struct {
	Repository string // with its registry: docker.io/library/redis; "" if the source has no whole name
	Tag        string // "" for an image that is known by its digest alone
	Digest     digest.Digest
	MediaType  string    // as the source says; "" if it doesn't
	Used       time.Time // the last use, as far as the source tells
	Checked    time.Time // when somebody last knew that the tag names this image
}

// Reference is the whole name: docker.io/library/redis:7, or with @ and the digest.
func (i Image) Reference() string {
	if i.Tag == "" {
		return i.Repository + "@" + i.Digest.String()
	}
	return i.Repository + ":" + i.Tag
}

// Blob is a blob or manifest of a Source, open for reading. Close it.
type Blob struct {
	io.ReaderAt
	Size  int64    // bytes
	File  *os.File // a file that has the blob's bytes alone; nil if there is none
	close func() error
}

// Close ends the reading. Errors: those of os.File.Close.
func (b *Blob) Close() error { return b.close() }

// Source is a place to import from. It isn't safe for concurrent use. Close it.
type Source interface {
	// Images returns the images. What is damaged is left out, and said in problems.
	Images() (images []Image, problems []string, err error)

	// Referrers returns what refers to a manifest, such as its signatures. Images is called before.
	Referrers(digest.Digest) []v1.Descriptor

	// Open opens a blob or manifest, whose bytes may be wrong. Errors: fs.ErrNotExist.
	Open(digest.Digest) (*Blob, error)

	// Remove deletes a blob or manifest. Errors: that it can't.
	Remove(digest.Digest) error

	Close() error
}

// Naming is how images get the names that a Source doesn't say.
type Naming struct {
	Registry string // of the repositories of a registry:2: docker.io
	As       string // the whole name of the one image of an OCI layout without names; "": none
}

// NamingError says that what is to be imported can't be named as a Naming says, and why.
type NamingError string

func (e NamingError) Error() string { return string(e) }

func naming(format string, args ...any) error { return NamingError(fmt.Sprintf(format, args...)) }

// ErrNoSource says that a path has nothing that can be imported.
var ErrNoSource = errors.New("neither the data directory of a registry:2 nor an OCI layout (a folder or a tar)")

// OpenSource opens what is at path.
// Errors: NamingError; ErrNoSource, with what was found instead; fs.ErrNotExist; that it can't be read.
func OpenSource(path string, n Naming) (Source, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return openArchive(path, n)
	}
	for _, below := range []string{"", "v2", "docker/registry/v2"} {
		root := filepath.Join(path, below)
		if isFolder(filepath.Join(root, "repositories")) && isFolder(filepath.Join(root, "blobs")) {
			return newRegistry2(path, root, n)
		}
	}
	if _, err := os.Stat(filepath.Join(path, "index.json")); err == nil {
		return newLayout(folder(path), n)
	}
	if _, err := os.Stat(filepath.Join(path, "manifest.json")); err == nil {
		return nil, fmt.Errorf("%s is %w", path, errOldSave)
	}
	return nil, fmt.Errorf("%s is %w", path, ErrNoSource)
}

func isFolder(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// openFile opens a file whose bytes are a blob's.
func openFile(path string) (*Blob, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Blob{ReaderAt: f, Size: fi.Size(), File: f, close: f.Close}, nil
}
