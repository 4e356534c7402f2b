// Package boltfile opens bbolt files that may be damaged. bbolt trusts what is in its file: a wrong
// pointer on a page can lead it in circles, or into a panic. So [Lock] the file, [Walk] its pages
// before bbolt opens it, and do what reads it under [Recover].
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrDamaged says that a file, or what is in it, is not what was written.
var ErrDamaged = errors.New("damaged")

// Visitor is called with a key of a bucket, and with the row that it begins: key and value, one
// after the other, as they are in the file.
type Visitor func(bucket, key, row []byte) error

// Walk checks all pages of a bbolt file before bbolt opens it. Anything wrong is [ErrDamaged]. An
// empty file is right.
//
// It calls visit for every key, in the order of the keys: a start needs all of them, and to read
// them again would take as long again. The buckets in first are visited one after the other, and
// all others at the same time, from another goroutine. Key and row are valid until visit returns.
// The error of visit is returned as it is, unless it is ErrDamaged: then the file is.
//
// The format is described in bbolt's internal/common/{page,meta}.go. It has been version 2
// since 2014, and is little-endian on the machines that hubcache runs on.
func Walk(f *os.File, first [][]byte, visit Visitor) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() == 0 {
		return nil // bbolt writes a new database into it
	}
	readAhead(f, fi.Size())
	file := pageFile{f: f, size: fi.Size()}
	var visitFailed visitError
	err = file.walk(first, func(bucket, key, row []byte) error {
		if err := visit(bucket, key, row); err != nil && !errors.Is(err, ErrDamaged) {
			return visitError{err}
		} else {
			return err
		}
	})
	switch {
	case errors.As(err, &visitFailed):
		return visitFailed.error
	case err != nil && !errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// visitError marks an error of the caller's visitor, which says nothing about the pages.
type visitError struct{ error }

// readAhead asks the kernel to read the file from beginning to end, which disks do fast. The
// walk reads pages in the order of their keys, and they lie in the order in which they were
// last written: after a reboot it would wait for each page by itself.
func readAhead(f *os.File, size int64) {
	const piece = 1 << 20 // Linux reads no more for one call
	for at := int64(0); at < size; at += piece {
		unix.Fadvise(int(f.Fd()), at, piece, unix.FADV_WILLNEED)
	}
}

// pageFile is the file whose pages are checked. Two goroutines walk its trees.
type pageFile struct {
	f        io.ReaderAt
	size     int64
	pageSize uint64
	high     uint64        // number of pages in use
	seen     []atomic.Bool // by page: a page belongs to one place
}

// pageWalk is the walk of one tree.
type pageWalk struct {
	*pageFile
	depth   int
	buffers [][]byte // one page for each level
	leaf    func(kind uint32, key, row []byte) error

	// last is the key before. The next key must be greater, since bbolt searches by halves.
	// It may be equal if last is in a branch and the next key is the first below it.
	last     []byte
	inBranch bool
}

const (
	pageHeader = 16
	element    = 16
	bucketLeaf = 0x01 // flag of a leaf element that is a bucket

	branchPage = 0x01
	leafPage   = 0x02
	freePage   = 0x10

	bboltMagic = 0xED0CDAED
)

func (p *pageFile) walk(first [][]byte, visit Visitor) error {
	meta, err := p.meta()
	if err != nil {
		return err
	}
	root := binary.LittleEndian.Uint64(meta[16:])
	free := binary.LittleEndian.Uint64(meta[32:])
	p.high = binary.LittleEndian.Uint64(meta[40:])
	if p.high < 4 || p.high > uint64(p.size)/p.pageSize {
		return fmt.Errorf("the file ends before page %d", p.high)
	}
	p.seen = make([]atomic.Bool, p.high)
	if free != ^uint64(0) { // otherwise the free list isn't in the file
		w := pageWalk{pageFile: p}
		page, err := w.page(free, freePage)
		if err != nil {
			return err
		}
		if err := w.freelist(page); err != nil {
			return err
		}
	}
	return p.buckets(root, first, visit)
}

// buckets walks the tree that names the buckets, and then the tree of each bucket.
func (p *pageFile) buckets(root uint64, first [][]byte, visit Visitor) error {
	roots := map[string][]byte{}
	w := pageWalk{pageFile: p, leaf: func(kind uint32, key, row []byte) error {
		if kind != bucketLeaf {
			return fmt.Errorf("%q is not a bucket", key)
		}
		roots[string(key)] = bytes.Clone(row[len(key):])
		return nil
	}}
	if err := w.tree(root); err != nil {
		return err
	}
	var others sync.WaitGroup
	var err, othersErr error
	others.Go(func() {
		for name, root := range roots {
			if !slices.ContainsFunc(first, func(b []byte) bool { return string(b) == name }) {
				othersErr = errors.Join(othersErr, p.bucket([]byte(name), root, visit))
			}
		}
	})
	for _, name := range first {
		if root, ok := roots[string(name)]; ok && err == nil {
			err = p.bucket(name, root, visit)
		}
	}
	others.Wait()
	return errors.Join(err, othersErr)
}

// bucket walks a bucket's tree. Its root is a page, or, for a small bucket, follows the header.
func (p *pageFile) bucket(name, header []byte, visit Visitor) error {
	w := pageWalk{pageFile: p, leaf: func(kind uint32, key, row []byte) error {
		if kind != 0 || len(key) == 0 { // bbolt looks at one bit, and takes the row for a bucket if it is set
			return fmt.Errorf("bucket %s has %q, which is not a key with a value", name, key)
		}
		return visit(name, key, row)
	}}
	if len(header) < 16 {
		return fmt.Errorf("bucket %s has no header", name)
	}
	if root := binary.LittleEndian.Uint64(header); root != 0 {
		return w.tree(root)
	}
	if len(header) < 16+pageHeader || binary.LittleEndian.Uint16(header[24:]) != leafPage {
		return fmt.Errorf("bucket %s has neither a root nor a page", name)
	}
	return w.elements(0, header[16:])
}

// CheckMetas checks that both meta pages of the file are undamaged and were written by two
// transactions, one after the other. If the newest one is damaged, bbolt takes the other, and what
// the last transaction wrote is lost without a word. Errors: [ErrDamaged]. An empty file is right.
func CheckMetas(f *os.File) error {
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return err
	}
	metas := (&pageFile{f: f}).metas()
	if len(metas) != 2 {
		return fmt.Errorf("%w: %d of 2 meta pages are good", ErrDamaged, len(metas))
	}
	a, b := binary.LittleEndian.Uint64(metas[0][48:]), binary.LittleEndian.Uint64(metas[1][48:])
	if a+1 != b && b+1 != a {
		return fmt.Errorf("%w: the meta pages are of transactions %d and %d", ErrDamaged, a, b)
	}
	return nil
}

// meta returns the body of the newest meta page, of two, that is undamaged.
func (p *pageFile) meta() (best []byte, err error) {
	for _, m := range p.metas() {
		if best == nil || binary.LittleEndian.Uint64(m[48:]) > binary.LittleEndian.Uint64(best[48:]) {
			best, p.pageSize = m, uint64(binary.LittleEndian.Uint32(m[8:]))
		}
	}
	if best == nil {
		return nil, errors.New("both meta pages are damaged")
	}
	return best, nil
}

// metas returns the bodies of the meta pages that are undamaged.
func (p *pageFile) metas() (good [][]byte) {
	// The second one is on the second page, and only the meta page says how large pages are.
	for _, size := range []uint64{4096, 8192, 16384, 32768, 65536} {
		for _, at := range []uint64{0, size} {
			b := make([]byte, pageHeader+64)
			if _, err := p.f.ReadAt(b, int64(at)); err != nil {
				continue
			}
			m := b[pageHeader:]
			sum := fnv.New64a()
			sum.Write(m[:56])
			if binary.LittleEndian.Uint32(m) != bboltMagic || binary.LittleEndian.Uint32(m[4:]) != 2 ||
				uint64(binary.LittleEndian.Uint32(m[8:])) != size || sum.Sum64() != binary.LittleEndian.Uint64(m[56:]) {
				continue
			}
			good = append(good, m)
		}
	}
	return good
}

// page reads a whole page, its overflow included, and checks its header. The result is valid
// until the next call at this depth.
func (w *pageWalk) page(id uint64, flags ...uint16) ([]byte, error) {
	if id < 2 || id >= w.high || w.seen[id].Swap(true) {
		return nil, fmt.Errorf("page %d is beyond the end or reached twice", id)
	}
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
	if n == 0xFFFF { // the length of a longer list comes before it
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
		w.seen[id].Store(true) // so that it is an error if the page is also in use
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
			from := uint64(at) + pos
			if from+key > uint64(len(b)) {
				return fmt.Errorf("page %d: element %d lies outside", id, i)
			}
			if err := w.inOrder(b[from:from+key], true); err != nil {
				return err
			}
			if err := w.tree(binary.LittleEndian.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		pos, key := uint64(binary.LittleEndian.Uint32(e[4:])), uint64(binary.LittleEndian.Uint32(e[8:]))
		val := uint64(binary.LittleEndian.Uint32(e[12:]))
		from := uint64(at) + pos
		if from+key+val > uint64(len(b)) {
			return fmt.Errorf("page %d: element %d lies outside", id, i)
		}
		row := b[from : from+key+val]
		if err := w.inOrder(row[:key], false); err != nil {
			return err
		}
		if err := w.leaf(binary.LittleEndian.Uint32(e), row[:key], row); err != nil {
			return err
		}
	}
	return nil
}

// inOrder checks that key, which is in a branch or in a leaf, comes after the one before.
func (w *pageWalk) inOrder(key []byte, branch bool) error {
	c := bytes.Compare(key, w.last)
	if w.last != nil && (c < 0 || c == 0 && !w.inBranch) {
		return fmt.Errorf("key %q comes after %q", key, w.last)
	}
	w.last, w.inBranch = append(w.last[:0], key...), branch
	return nil
}
