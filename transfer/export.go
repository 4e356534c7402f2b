package transfer

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Errors of NewArchive.
var (
	ErrNotCached = errors.New("is not cached")
	// ErrNotComplete: no platform of the image is cached as a whole.
	ErrNotComplete = errors.New("is not cached as a whole")
	// ErrPrivate: the image is private, and wasn't named by whoever asked for it.
	ErrPrivate = errors.New("is private")
)

// Wanted is an image to export.
type Wanted struct {
	name.Reference
	Listed bool // it isn't named itself, but by a file that is: then it must not be private
}

// Archive is a tar with images, as an OCI layout and as docker load reads it: Debian's engines know
// manifest.json alone.
type Archive struct {
	store *storage.Store
	head  []file
	blobs []storage.Entry
}

// file is a file of the tar that isn't in the store.
type file struct {
	name string
	body []byte
}

// saved is an image in manifest.json, as docker save writes it.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// NewArchive looks up what is to be written. An index comes whole, with those of its manifests that
// are cached as a whole; the others are left out, as an import accepts.
//
// Errors: ErrNotCached, ErrNotComplete, ErrPrivate, each with the reference; that the index can't be read.
func NewArchive(s *storage.Store, images []Wanted) (*Archive, error) {
	x := &exporter{Archive: Archive{store: s}, has: map[digest.Digest]bool{}, referring: map[digest.Digest]bool{}}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	list := []saved{}
	for _, w := range images {
		d, load, err := x.add(w)
		if err != nil {
			return nil, fmt.Errorf("%s %w", w.Reference, err)
		}
		index.Manifests = append(index.Manifests, d)
		if load != nil {
			list = append(list, *load)
		}
		referrers, err := x.refer(w.Repository)
		if err != nil {
			return nil, fmt.Errorf("%s: what refers to it: %w", w.Reference, err)
		}
		index.Manifests = append(index.Manifests, referrers...)
	}
	x.file(v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion})
	x.file(v1.ImageIndexFile, index)
	x.file("manifest.json", list)
	return &x.Archive, nil
}

// Size returns how many bytes Write writes.
func (a *Archive) Size() int64 {
	const block = 512
	padded := func(n int64) int64 { return block + (n+block-1)/block*block }
	size := int64(2 * block) // the end of a tar
	for _, f := range a.head {
		size += padded(int64(len(f.body)))
	}
	for _, e := range a.blobs {
		size += padded(e.Size)
	}
	return size
}

// Write writes the tar. Every blob is hashed on the way, and one with wrong bytes is removed from
// the store. Errors: those of w and ctx; storage.ErrDigest; fs.ErrNotExist for what has been evicted
// since NewArchive. After an error the tar isn't whole.
func (a *Archive) Write(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	for _, f := range a.head {
		if err := t.WriteHeader(header(f.name, int64(len(f.body)))); err != nil {
			return err
		}
		if _, err := t.Write(f.body); err != nil {
			return err
		}
	}
	for _, e := range a.blobs {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := a.blob(t, e); err != nil {
			return fmt.Errorf("%s: %w", e.Digest, err)
		}
	}
	return t.Close()
}

// header is that of a file; without times, so that the same images make the same tar.
func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
}

// blob writes a blob, and holds its last byte back until the digest is right.
func (a *Archive) blob(t *tar.Writer, e storage.Entry) error {
	b, err := a.store.Open(e.Digest)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Size != e.Size {
		return storage.ErrDigest
	}
	h := header(blobPath(e.Digest), b.Size)
	if b.Size > maxUSTAR {
		h.Format = tar.FormatGNU
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	hash := e.Digest.Algorithm().Hash()
	src := io.TeeReader(io.NewSectionReader(b.File, 0, b.Size), hash)
	if _, err := io.CopyN(t, src, max(0, b.Size-1)); err != nil {
		return err
	}
	last, err := io.ReadAll(src)
	if err != nil {
		return err
	}
	if digest.NewDigest(e.Digest.Algorithm(), hash) != e.Digest {
		a.store.Remove(e.Digest)
		return storage.ErrDigest
	}
	_, err = t.Write(last)
	return err
}

// maxUSTAR is the largest file in a tar of that format, in bytes.
const maxUSTAR = 8<<30 - 1

type exporter struct {
	Archive
	has       map[digest.Digest]bool // what is in blobs
	fresh     []digest.Digest        // manifests whose referrers aren't looked up yet
	referring map[digest.Digest]bool // what refers to others, and is in index.json
}

func (x *exporter) file(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // nothing in it can fail
	}
	x.head = append(x.head, file{name, b})
}

// add adds an image. It returns the row of index.json, and that of manifest.json if there is an
// image in it that docker load can run.
func (x *exporter) add(w Wanted) (v1.Descriptor, *saved, error) {
	var none v1.Descriptor
	d := w.Digest
	if w.Tag != "" {
		t, err := x.store.Tag(w.Repository, w.Tag)
		if errors.Is(err, fs.ErrNotExist) {
			return none, nil, ErrNotCached
		}
		if err != nil {
			return none, nil, err
		}
		d = t.Digest
	} else if _, err := x.store.Link(w.Repository, d); err != nil {
		return none, nil, ErrNotCached
	}
	m, err := x.store.Manifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil, ErrNotCached
	}
	if err != nil {
		return none, nil, err
	}
	if w.Listed {
		if v, err := x.store.Visibility(w.Repository); m.Private || err == nil && !v.Public {
			return none, nil, ErrPrivate
		}
	}
	load, err := x.manifest(m, 0)
	if err != nil {
		return none, nil, err
	}
	out := v1.Descriptor{MediaType: m.MediaType, Digest: d, Size: m.Size, Annotations: map[string]string{nameAnnotation: w.String()}}
	if w.Tag == "" {
		return out, load, nil
	}
	out.Annotations[v1.AnnotationRefName] = w.Tag
	if load != nil {
		load.RepoTags = []string{name.Familiar(w.String())}
	}
	return out, load, nil
}

// manifest adds a manifest with all that it names and that is cached as a whole. It returns what
// docker load gets of it: of an index, the image for this server's own processor, or else the first.
// Errors: ErrNotComplete.
func (x *exporter) manifest(m *storage.Manifest, depth int) (*saved, error) {
	body, err := x.body(m)
	if err != nil {
		return nil, err
	}
	members := image.Members(body)
	if len(members) == 0 {
		return x.image(m, body)
	}
	if depth == maxDepth {
		return nil, ErrNotComplete
	}
	var load *saved
	whole := 0
	for _, c := range members {
		child, err := x.store.Manifest(c.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		l, err := x.manifest(child, depth+1)
		if errors.Is(err, ErrNotComplete) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if c.Attests != "" {
			continue
		}
		whole++
		own := c.Platform != nil && c.Platform.OS == "linux" && c.Platform.Architecture == runtime.GOARCH
		if l != nil && (load == nil || own) {
			load = l
		}
	}
	if whole == 0 {
		return nil, ErrNotComplete
	}
	x.blob(m.Digest)
	x.fresh = append(x.fresh, m.Digest)
	return load, nil
}

// body is the bytes of a manifest.
func (x *exporter) body(m *storage.Manifest) ([]byte, error) {
	if m.Body != nil {
		return m.Body, nil
	}
	b, err := x.store.Open(m.Digest)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(io.NewSectionReader(b.File, 0, b.Size))
}

// image adds a manifest that is no index.
func (x *exporter) image(m *storage.Manifest, body []byte) (*saved, error) {
	without := image.Dispensable(body)
	var here []digest.Digest
	for _, c := range m.Children {
		if _, ok := x.store.Has(c.Digest); ok {
			here = append(here, c.Digest)
		} else if !without[c.Digest] {
			return nil, ErrNotComplete
		}
	}
	for _, d := range append(here, m.Digest) {
		x.blob(d)
	}
	x.fresh = append(x.fresh, m.Digest)
	// Without some layers it is a Windows image, whose layers come from elsewhere.
	var parsed v1.Manifest
	if json.Unmarshal(body, &parsed) != nil || !runnable(parsed) || len(here) < len(m.Children) {
		return nil, nil
	}
	load := &saved{Config: blobPath(parsed.Config.Digest)}
	for _, l := range parsed.Layers {
		load.Layers = append(load.Layers, blobPath(l.Digest))
	}
	return load, nil
}

// runnable reports whether a manifest is of a container image, and not of a chart or a signature. An
// upstream may have manifests in which something else stands for a digest.
func runnable(m v1.Manifest) bool {
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Digest.Validate() != nil {
			return false
		}
	}
	return slices.Contains([]string{v1.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json"}, m.Config.MediaType)
}

func (x *exporter) blob(d digest.Digest) {
	if x.has[d] {
		return
	}
	if e, ok := x.store.Entry(d); ok {
		x.has[d] = true
		x.blobs = append(x.blobs, e)
	}
}
