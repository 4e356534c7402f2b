package hubtest

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Layer is a layer to put into an image: Tar if it is set, else synthetic bytes.
type Layer struct {
	Tar  []byte // is sent gzipped
	Size int64  // of a synthetic layer: its exact number of bytes, which don't compress
	Seed uint64 // synthetic layers with the same size and seed, other than 0, are the same blob in all images
}

// Layers returns n synthetic layers of size bytes each. They differ from each other and from
// those of other tags, and are the same on every run. A layer of 4 KiB or more is a tar that
// can be unpacked. None takes memory.
func Layers(n int, size int64) []Layer {
	layers := make([]Layer, n)
	for i := range layers {
		layers[i].Size = size
	}
	return layers
}

// Random is an endless sequence of pseudo-random bytes that depend on the seed and the offset
// alone. They don't compress and take no memory.
type Random uint64

// ReadAt fills p. It never fails.
//
// The race detector doesn't watch it, because it would watch each byte that the loop writes,
// and that would take longer than all else that a test does with the bytes.
//
//go:norace
func (seed Random) ReadAt(p []byte, off int64) (int, error) {
	word := uint64(off) / 8
	if skip := int(off % 8); skip > 0 {
		var first [8]byte
		binary.LittleEndian.PutUint64(first[:], seed.word(word))
		n := copy(p, first[skip:])
		if n == len(p) {
			return n, nil
		}
		rest, _ := seed.ReadAt(p[n:], off+int64(n))
		return n + rest, nil
	}
	i := 0
	for ; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], seed.word(word))
		word++
	}
	var last [8]byte
	binary.LittleEndian.PutUint64(last[:], seed.word(word))
	copy(p[i:], last[:])
	return len(p), nil
}

// word is SplitMix64 (Steele, Lea, Flood 2014) at position n of its stream.
func (seed Random) word(n uint64) uint64 {
	z := uint64(seed) + (n+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// recordedName is a name inside layers and configs. It was the package's name once; digests of
// images with it have been recorded, so it must not change.
const recordedName = "fakehub"

// minTar is the size from which a synthetic layer is a tar.
const minTar = 4 << 10

// layer is a tar of one file of random bytes, with zeros after it up to the exact size.
type layer struct {
	header  []byte
	random  Random
	content int64 // size of the file
	size    int64
}

// NewLayer returns the bytes of a synthetic layer; they end at size.
func NewLayer(seed uint64, size int64) io.ReaderAt {
	if size < minTar {
		return io.NewSectionReader(Random(seed), 0, size)
	}
	const block = 512
	l := &layer{random: Random(seed), size: size}
	l.content = (size - 3*block) / block * block // a header before it, two zero blocks after it
	var buf bytes.Buffer
	err := tar.NewWriter(&buf).WriteHeader(&tar.Header{
		Name: fmt.Sprintf("%s/%016x", recordedName, seed), Mode: 0o644, Size: l.content, Format: tar.FormatGNU,
	})
	if err != nil || buf.Len() != block {
		panic(fmt.Sprintf("hubtest: tar header of %d bytes: %v", buf.Len(), err))
	}
	l.header = buf.Bytes()
	return io.NewSectionReader(l, 0, size)
}

// ReadAt is only called within the size.
func (l *layer) ReadAt(p []byte, off int64) (int, error) {
	start := int64(len(l.header))
	n := 0
	if off < start {
		n = copy(p, l.header[off:])
	}
	if at := off + int64(n); n < len(p) && at < start+l.content {
		m, _ := l.random.ReadAt(p[n:min(int64(len(p)), int64(n)+start+l.content-at)], at-start)
		n += m
	}
	clear(p[n:])
	return len(p), nil
}

// Tar makes the tar of a layer with these files (path → content). The same files always make
// the same bytes.
func Tar(files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		addFile(w, &tar.Header{Name: name, Mode: 0o644}, files[name])
	}
	w.Close()
	return buf.Bytes()
}

// addFile adds a file. It panics on a name that a tar can't hold.
func addFile(w *tar.Writer, header *tar.Header, content string) {
	header.Size = int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		panic(fmt.Sprintf("hubtest: %v", err))
	}
	w.Write([]byte(content))
}

// busyboxPath is the program of Debian's package busybox-static.
const busyboxPath = "/bin/busybox"

// applets are the names under which busybox can be run in the image.
var applets = strings.Fields("cat cp date df echo env false grep head id ln ls md5sum mkdir mv nc printf ps pwd rm sed sh sha256sum sleep sort stat tail tar test touch tr true uname wc wget")

// Busybox returns a layer that makes an image runnable: the static /bin/busybox of this
// machine, sh and other names for it, /tmp, and the users root and nobody. It fails when the
// program is missing or needs libraries; the error names the Debian package.
func Busybox() (Layer, error) {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return Layer{}, fmt.Errorf("hubtest: a static busybox is needed (package busybox-static): %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return Layer{}, fmt.Errorf("hubtest: %s: %w", busyboxPath, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return Layer{}, fmt.Errorf("hubtest: %s is not static (install package busybox-static)", busyboxPath)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "root/"} {
		addFile(w, &tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	addFile(w, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	addFile(w, &tar.Header{Name: "bin/busybox", Mode: 0o755}, string(program))
	for _, name := range applets {
		addFile(w, &tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
	}
	addFile(w, &tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	addFile(w, &tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nnogroup:x:65534:\n")
	w.Close()
	return Layer{Tar: buf.Bytes()}, nil
}
