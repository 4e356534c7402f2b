package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
)

// ErrLost says that the file of a blob is gone: somebody else has removed it.
var ErrLost = errors.New("lost from the disk")

// Verify hashes the file of blob d. A blob that has other bytes, can't be read to its end or has
// lost its file is dropped, and logged; its readers can read on. It is not a use. pace is called
// after each piece with its length in bytes, and can wait; an error of it ends the work. nil: the
// disk alone sets the pace.
//
// Errors: ErrDigest, ErrDisk and ErrLost: it has been dropped. fs.ErrNotExist: it isn't cached, or
// not any more. Those of ctx and pace. Any other: its file can't be opened, and it is still there.
func (s *Store) Verify(ctx context.Context, d digest.Digest, pace func(bytes int) error) error {
	e, was := s.room.hold(d)
	if e == nil {
		return missing{"not cached"}
	}
	defer s.room.release(e)
	file, err := openQuietly(s.files.layout.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return s.files.dropBad(e, fmt.Errorf("%w: its file is gone", ErrLost))
	}
	if err != nil {
		return err
	}
	defer file.Close()
	v := &verification{ctx: ctx, room: &s.room, e: e, file: file, pace: pace}
	switch err := v.hash(); {
	case errors.Is(err, ErrDigest), errors.Is(err, ErrDisk):
		return s.files.dropBad(e, err)
	case err != nil:
		return err
	}
	return s.files.known(e, was, file)
}

// known notes that the file of e is right, if it was found without a record.
func (f *files) known(e *entry, was info, file *os.File) error {
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	id := fileIDOf(fi)
	if id.ino == was.ino && id.mtime == was.mtime && !was.has(unverified) {
		return nil
	}
	if !f.trust(e, id, fi.Mode()) {
		return missing{"it has just left"}
	}
	return nil
}

// dropBad drops e, whose file is not as it was. It returns why, or fs.ErrNotExist when e had left
// by itself: then its successor is left alone.
func (f *files) dropBad(e *entry, why error) error {
	if errors.Is(why, ErrLost) {
		if _, err := os.Lstat(filepath.Dir(f.layout.blob(e.Key))); errors.Is(err, fs.ErrNotExist) {
			f.folderLost() // more than this blob is gone
		}
	}
	if !f.room.remove(e.Key, e) {
		return missing{"it has just left"}
	}
	if errors.Is(why, ErrLost) {
		f.faults.lost(e.Key, why.Error())
	} else {
		f.faults.changed(e.Key, why)
	}
	return why
}

// verification hashes the file of one blob.
type verification struct {
	ctx  context.Context
	room *room
	e    *entry
	file *os.File
	pace func(bytes int) error // may be nil
}

// hash compares length and digest. Errors: those of Verify.
func (v *verification) hash() error {
	fi, err := v.file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	if fi.Size() != v.e.Size {
		return fmt.Errorf("%w: its file has %d bytes instead of %d", ErrDigest, fi.Size(), v.e.Size)
	}
	algorithm := v.e.Key.Algorithm()
	h := algorithm.Hash()
	buf := hashBuffers.Get().(*[Piece]byte)
	defer hashBuffers.Put(buf)
	for {
		if v.ctx.Err() != nil {
			return context.Cause(v.ctx)
		}
		if v.room.isLeaving(v.e) { // its room is wanted, and is free only when nobody reads it
			return missing{"it has just left"}
		}
		n, err := v.file.Read(buf[:])
		h.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDisk, err)
		}
		if v.pace != nil {
			if err := v.pace(n); err != nil {
				return err
			}
		}
	}
	if got := digest.NewDigest(algorithm, h); got != v.e.Key {
		return fmt.Errorf("%w: its bytes have %s", ErrDigest, got)
	}
	return nil
}

// isLeaving reports whether e has been evicted or removed while it is held.
func (r *room) isLeaving(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, leaving := r.lru.Held(e)
	return leaving
}

// Blobs returns the digests of all that is cached, manifests too, and how many bytes that is. They
// are in the order of their inodes, which is about that on disk: a spinning disk then reads on
// instead of seeking.
func (s *Store) Blobs() (all []digest.Digest, bytes int64) {
	type place struct {
		d   digest.Digest
		ino uint64
	}
	var places []place
	s.room.mu.Lock()
	s.room.lru.All(func(e *entry) {
		places = append(places, place{e.Key, e.Value.ino})
		bytes += e.Size
	})
	s.room.mu.Unlock()
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.ino, b.ino) })
	for _, p := range places {
		all = append(all, p.d)
	}
	return all, bytes
}

// Subjects returns the manifests, by repository, of which a manifest is the list of what refers to
// them; none if it is no such list. Errors: that the index can't be read.
func (s *Store) Subjects(list digest.Digest) (map[string][]digest.Digest, error) {
	all, err := s.catalogue.referrersOf("")
	var subjects map[string][]digest.Digest
	for row, l := range all {
		if l != list {
			continue
		}
		if subjects == nil {
			subjects = map[string][]digest.Digest{}
		}
		subjects[row.repository] = append(subjects[row.repository], digest.Digest(row.tag))
	}
	return subjects, err
}
