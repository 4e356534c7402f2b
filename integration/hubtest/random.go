package hubtest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Random is pseudo-random bytes that depend on the seed and the offset alone: they don't
// compress, have no end and take no memory.
type Random uint64

// ReadAt fills p. It never fails.
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

// minTar is the size from which a synthetic layer is a tar.
const minTar = 4 << 10

// layer is a tar of one file of random bytes, and zeros up to its exact size.
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
		Name: fmt.Sprintf("hubtest/%016x", seed), Mode: 0o644, Size: l.content, Format: tar.FormatGNU,
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
