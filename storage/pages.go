package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// checkPages walks the tree of a bbolt file before bbolt does. bbolt trusts its pages:
// a pointer that a bad disk or an editor has changed can lead it in circles for ever,
// or beyond the end of the mapped file. A missing file is fine; anything wrong is errDamaged.
//
// The format is described in bbolt's internal/common/{page,meta}.go; it has been
// version 2 since 2014, and is little-endian on the machines that hubcache runs on.
func checkPages(path string) error {
	if _, err := os.Stat(path + ".damaged"); err == nil {
		return fmt.Errorf("%w: found at run time", errDamaged)
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() == 0 {
		return nil // bbolt makes a new one of it
	}
	w := pageWalk{f: f, size: fi.Size()}
	if err := w.check(); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

type pageWalk struct {
	f        io.ReaderAt
	size     int64
	pageSize uint64
	high     uint64   // number of pages in use
	seen     []bool   // by page
	depth    int      // of the tree at hand, and
	buffers  [][]byte // one page for each level of it
}

const (
	pageHeader = 16
	element    = 16
	bucketLeaf = 0x01 // leaf element that is a bucket

	branchPage = 0x01
	leafPage   = 0x02
	freePage   = 0x10

	bboltMagic = 0xED0CDAED
)

func (w *pageWalk) check() error {
	meta, err := w.meta()
	if err != nil {
		return err
	}
	root := binary.LittleEndian.Uint64(meta[16:])
	free := binary.LittleEndian.Uint64(meta[32:])
	w.high = binary.LittleEndian.Uint64(meta[40:])
	if w.high < 4 || w.high > uint64(w.size)/w.pageSize {
		return fmt.Errorf("the file ends before page %d", w.high)
	}
	w.seen = make([]bool, w.high)
	if free != ^uint64(0) { // not kept in the file
		page, err := w.page(free, freePage)
		if err != nil {
			return err
		}
		if err := w.freelist(page); err != nil {
			return err
		}
	}
	return w.tree(root)
}

// meta returns the body of the newer of the two meta pages that are whole.
func (w *pageWalk) meta() (best []byte, err error) {
	// The second one stands a page further on, and the page's size is in it.
	for _, size := range []uint64{4096, 8192, 16384, 32768, 65536} {
		for _, at := range []uint64{0, size} {
			b := make([]byte, pageHeader+64)
			if _, err := w.f.ReadAt(b, int64(at)); err != nil {
				continue
			}
			m := b[pageHeader:]
			sum := fnv.New64a()
			sum.Write(m[:56])
			if binary.LittleEndian.Uint32(m) != bboltMagic || binary.LittleEndian.Uint32(m[4:]) != 2 ||
				uint64(binary.LittleEndian.Uint32(m[8:])) != size || sum.Sum64() != binary.LittleEndian.Uint64(m[56:]) {
				continue
			}
			if best == nil || binary.LittleEndian.Uint64(m[48:]) > binary.LittleEndian.Uint64(best[48:]) {
				best, w.pageSize = m, size
			}
		}
	}
	if best == nil {
		return nil, errors.New("no whole meta page")
	}
	return best, nil
}

// page reads a whole page, overflow included, and checks its header. What it returns is
// good until the next call at this depth.
func (w *pageWalk) page(id uint64, flags ...uint16) ([]byte, error) {
	if id < 2 || id >= w.high || w.seen[id] {
		return nil, fmt.Errorf("page %d is beyond the end or reached twice", id)
	}
	w.seen[id] = true
	for len(w.buffers) <= w.depth {
		w.buffers = append(w.buffers, make([]byte, w.pageSize))
	}
	b := w.buffers[w.depth]
	if _, err := w.f.ReadAt(b, int64(id*w.pageSize)); err != nil {
		return nil, err
	}
	kind := binary.LittleEndian.Uint16(b[8:])
	overflow := uint64(binary.LittleEndian.Uint32(b[12:]))
	if !slices.Contains(flags, kind) || binary.LittleEndian.Uint64(b) != id || id+overflow >= w.high {
		return nil, fmt.Errorf("page %d has a wrong header", id)
	}
	if overflow == 0 {
		return b, nil
	}
	b = make([]byte, (overflow+1)*w.pageSize)
	_, err := w.f.ReadAt(b, int64(id*w.pageSize))
	return b, err
}

func (w *pageWalk) freelist(b []byte) error {
	n, at := uint64(binary.LittleEndian.Uint16(b[10:])), uint64(pageHeader)
	if n == 0xFFFF { // a longer list has its length in front
		n, at = binary.LittleEndian.Uint64(b[at:]), at+8
	}
	if n > (uint64(len(b))-at)/8 {
		return fmt.Errorf("a free list of %d pages does not fit its page", n)
	}
	for last := uint64(1); n > 0; n-- {
		id := binary.LittleEndian.Uint64(b[at:])
		if id <= last || id >= w.high {
			return fmt.Errorf("page %d in the free list", id)
		}
		w.seen[id] = true // in use as well would be seen twice
		last, at = id, at+8
	}
	return nil
}

func (w *pageWalk) tree(id uint64) error {
	w.depth++
	defer func() { w.depth-- }()
	b, err := w.page(id, branchPage, leafPage)
	if err != nil {
		return err
	}
	return w.elements(id, b)
}

// elements checks the elements of a page, or of a small bucket inside a leaf.
func (w *pageWalk) elements(id uint64, b []byte) error {
	flags, n := binary.LittleEndian.Uint16(b[8:]), int(binary.LittleEndian.Uint16(b[10:]))
	if pageHeader+n*element > len(b) {
		return fmt.Errorf("page %d has %d elements, too many", id, n)
	}
	for i := range n {
		at := pageHeader + i*element
		e := b[at : at+element]
		if flags == branchPage {
			pos, key := uint64(binary.LittleEndian.Uint32(e)), uint64(binary.LittleEndian.Uint32(e[4:]))
			if uint64(at)+pos+key > uint64(len(b)) {
				return fmt.Errorf("page %d: element %d lies outside", id, i)
			}
			if err := w.tree(binary.LittleEndian.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		pos, key := uint64(binary.LittleEndian.Uint32(e[4:])), uint64(binary.LittleEndian.Uint32(e[8:]))
		val := uint64(binary.LittleEndian.Uint32(e[12:]))
		from := uint64(at) + pos + key
		if from+val > uint64(len(b)) {
			return fmt.Errorf("page %d: element %d lies outside", id, i)
		}
		if binary.LittleEndian.Uint32(e) == bucketLeaf {
			if err := w.bucket(id, b[from:from+val]); err != nil {
				return err
			}
		}
	}
	return nil
}

// bucket follows a bucket's root, which is a page or, for a small one, follows its header.
func (w *pageWalk) bucket(id uint64, v []byte) error {
	if len(v) < 16 {
		return fmt.Errorf("page %d: a bucket without a header", id)
	}
	if root := binary.LittleEndian.Uint64(v); root != 0 {
		return w.tree(root)
	}
	if len(v) < 16+pageHeader || binary.LittleEndian.Uint16(v[24:]) != leafPage {
		return fmt.Errorf("page %d: an inline bucket without a page", id)
	}
	return w.elements(id, v[16:])
}
