package transfer

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
)

// nameAnnotation is how containerd and Docker write the whole name of an image into the index of an
// OCI layout.
const nameAnnotation = "io.containerd.image.name"

// maxIndex is how many bytes of an index.json are read. 100,000 images take 40 MiB.
const maxIndex = 64 << 20

// errOldSave: what docker save wrote before Docker 25 has no manifests.
var errOldSave = errors.New("what an older docker save wrote: it has no manifests as registries have them, so nothing in it has the digest that Docker Hub knows. " +
	"Export with \"hubcache export\", \"skopeo copy docker://… oci:…\" or Docker 25 or newer")

// files is what an OCI layout lies in: a folder or a tar.
type files interface {
	open(path string) (*Blob, error) // errors: fs.ErrNotExist
	remove(path string) error
	written() time.Time // when the layout was written
	Close() error
}

// layout is an OCI layout (image-spec, image-layout.md).
type layout struct {
	files
	naming    Naming
	referrers map[digest.Digest][]v1.Descriptor // by what they refer to
}

func newLayout(f files, n Naming) (*layout, error) {
	if n.Registry != "" {
		return nil, naming("an OCI layout has the registries in its names: --registry is for the data directory of a registry")
	}
	return &layout{f, n, map[digest.Digest][]v1.Descriptor{}}, nil
}

// Referrers returns what index.json has without a name that refers to a manifest.
func (l *layout) Referrers(d digest.Digest) []v1.Descriptor { return l.referrers[d] }

// isReferrer notes what refers to another manifest. In index.json it has no name.
func (l *layout) isReferrer(m v1.Descriptor) bool {
	if m.Annotations[nameAnnotation] != "" || m.Annotations[v1.AnnotationRefName] != "" {
		return false
	}
	body, err := readManifest(l, m.Digest)
	if err != nil {
		return false
	}
	subject := subjectOf(body)
	if subject == "" {
		return false
	}
	l.referrers[subject] = append(l.referrers[subject], m)
	return true
}

// Open opens a blob of the layout.
func (l *layout) Open(d digest.Digest) (*Blob, error) { return l.open(blobPath(d)) }

// Remove deletes a blob of the layout.
func (l *layout) Remove(d digest.Digest) error { return l.remove(blobPath(d)) }

func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// Images returns what index.json names.
func (l *layout) Images() (images []Image, problems []string, err error) {
	b, err := l.open("index.json")
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	if b.Size > maxIndex {
		return nil, nil, fmt.Errorf("index.json has %d bytes: more than %d are not read", b.Size, maxIndex)
	}
	var index v1.Index
	if err := json.NewDecoder(io.NewSectionReader(b, 0, b.Size)).Decode(&index); err != nil {
		return nil, nil, fmt.Errorf("index.json: %w", err)
	}
	nameless := 0
	for _, m := range index.Manifests {
		if !name.ValidDigest(m.Digest.String()) {
			problems = append(problems, fmt.Sprintf("index.json names %q, which is no digest", m.Digest))
			continue
		}
		if l.isReferrer(m) {
			continue
		}
		i := Image{Digest: m.Digest, MediaType: m.MediaType, Used: l.written(), Checked: l.written()}
		ref, err := l.nameOf(m)
		if err != nil {
			nameless++
			problems = append(problems, err.Error())
			continue
		}
		i.Repository, i.Tag = ref.Repository, ref.Tag
		images = append(images, i)
	}
	if l.naming.As != "" && len(images) > 1 {
		return nil, nil, naming("%d images can't all be %s: --as is for a layout with one", len(images), l.naming.As)
	}
	if len(images) == 0 && nameless > 0 {
		return nil, nil, errors.New(problems[0])
	}
	return images, problems, nil
}

// nameOf is the whole name of what index.json names.
func (l *layout) nameOf(m v1.Descriptor) (name.Reference, error) {
	if l.naming.As != "" {
		return name.ParseReference(l.naming.As)
	}
	if text := m.Annotations[nameAnnotation]; text != "" {
		return name.ParseReference(text)
	}
	text := m.Annotations[v1.AnnotationRefName]
	if ref, err := name.ParseReference(text); err == nil && strings.Contains(text, "/") {
		return ref, nil
	}
	if text != "" {
		return name.Reference{}, fmt.Errorf("%s is called %q, which is no whole name: say what it is with --as, for example --as docker.io/library/redis:7", m.Digest, text)
	}
	return name.Reference{}, fmt.Errorf("%s has no name: say what it is with --as, for example --as docker.io/library/redis:7", m.Digest)
}

// folder is a layout in a folder.
type folder string

func (f folder) open(path string) (*Blob, error) {
	return openFile(filepath.Join(string(f), filepath.FromSlash(path)))
}

func (f folder) remove(path string) error {
	return os.Remove(filepath.Join(string(f), filepath.FromSlash(path)))
}

func (f folder) Close() error { return nil }

func (f folder) written() time.Time { return modified(filepath.Join(string(f), "index.json")) }

func modified(path string) time.Time {
	fi, err := os.Stat(path)
	if err != nil {
		return time.Now()
	}
	return fi.ModTime()
}

// archive is a layout in a tar, which is read where it lies.
type archive struct {
	f       *os.File
	entries map[string]span // by path
}

// span is where an entry of a tar lies in it, in bytes.
type span struct{ off, size int64 }

// openArchive opens a tar with a layout in it.
func openArchive(file string, n Naming) (Source, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	a := &archive{f: f, entries: map[string]span{}}
	err = a.read()
	if err == nil && a.entries["index.json"] == (span{}) {
		err = ErrNoSource
		if a.entries["manifest.json"] != (span{}) {
			err = errOldSave
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is %w", file, err)
	}
	l, err := newLayout(a, n)
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// read notes where everything lies. tar.Reader reads a file in blocks of 512 bytes, and no byte of
// what it isn't asked for.
func (a *archive) read() error {
	var magic [6]byte
	n, _ := a.f.ReadAt(magic[:], 0) // a file that can't be read fails below
	for begin, what := range map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "\xfd7zXZ": "xz", "BZh": "bzip2"} {
		if strings.HasPrefix(string(magic[:n]), begin) {
			return fmt.Errorf("compressed with %s: unpack it first. The layers in it are compressed anyway", what)
		}
	}
	r := tar.NewReader(a.f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("no whole tar: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		off, err := a.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		a.entries[path.Clean(h.Name)] = span{off, h.Size}
	}
}

func (a *archive) open(path string) (*Blob, error) {
	at, ok := a.entries[path]
	if !ok {
		return nil, fmt.Errorf("the tar has no %s: %w", path, fs.ErrNotExist)
	}
	return &Blob{ReaderAt: io.NewSectionReader(a.f, at.off, at.size), Size: at.size, close: func() error { return nil }}, nil
}

func (a *archive) remove(path string) error {
	return fmt.Errorf("%s can't be taken out of a tar", path)
}

func (a *archive) Close() error { return a.f.Close() }

func (a *archive) written() time.Time { return modified(a.f.Name()) }
