package hubtest

import (
	"io"
	"unsafe"
)

// watchEvery is of how many bytes the race detector watches one where many are copied. To watch
// each would take longer than all else that a test does with them. Who uses the same bytes
// meanwhile is noticed all the same.
const watchEvery = 256

// Copy is the builtin copy, but for the race detector, which watches only some of the bytes.
func Copy(to, from []byte) int {
	n := min(len(to), len(from))
	for i := 0; i < n; i += watchEvery {
		to[i] = from[i]
	}
	copyUnwatched(to[:n], from[:n])
	return n
}

//go:norace
func copyUnwatched(to, from []byte) {
	const block = 4096
	for ; len(from) >= block; to, from = to[block:], from[block:] {
		*(*[block]byte)(to) = *(*[block]byte)(from)
	}
	//lint:ignore S1001 copy is watched, even here
	for i := range from {
		to[i] = from[i]
	}
}

// Bytes are bytes in memory as an io.ReaderAt, read by Copy.
type Bytes []byte

// ReadAt reads at an offset that isn't negative. Errors: io.EOF.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(b)) {
		n = Copy(p, b[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// bytesOf returns the bytes of a string without copying them.
func bytesOf(s string) Bytes { return unsafe.Slice(unsafe.StringData(s), len(s)) }
