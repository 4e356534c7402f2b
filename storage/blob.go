package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// Blob is a committed blob, open for reading. Close it.
type Blob struct {
	File    *os.File // for reading and sendfile; its offset belongs to the caller
	Digest  digest.Digest
	Size    int64 // bytes
	Private bool  // came through a repository that isn't public
	room    *room
	e       *entry // nil when it is closed
	to      *Recipient
}

// Close ends the reading; the second time it does nothing. Errors: those of os.File.Close.
func (b *Blob) Close() error {
	if b.e == nil {
		return nil
	}
	err := b.File.Close()
	b.room.release(b.e) // an unlinked file takes room until it is closed
	b.e = nil
	return err
}

// Recipient is the client that the blob is sent to.
func (b *Blob) Recipient() *Recipient { return b.to }

// open opens the blob d. hashManifest says that a manifest is to be hashed: its file wasn't
// synced. Callers that hash what they read set it to false.
func (f *files) open(d digest.Digest, hashManifest bool) (*Blob, error) {
	e, was := f.room.hold(d)
	if e == nil {
		return nil, missing{"not cached"}
	}
	if hashManifest && was.has(isManifest) {
		was.bits |= unverified
	}
	return f.openHeld(e, was)
}

// openHeld is open for an entry that is held. The Blob, or a failure, releases it.
func (f *files) openHeld(e *entry, was info) (*Blob, error) {
	d := e.Key
	file, why, err := f.openFile(e, was)
	if why == "" && err == nil {
		return &Blob{File: file, Digest: d, Size: e.Size, Private: f.room.isPrivate(e), room: f.room, e: e, to: f.room.recipients.Add(e)}, nil
	}
	if why != "" {
		if _, err := os.Lstat(filepath.Dir(f.layout.blob(d))); errors.Is(err, fs.ErrNotExist) {
			f.folderLost() // more than this blob is gone
		}
		if f.room.remove(d, e) {
			f.faults.lost(d, why)
		}
		err = missing{why}
	}
	f.room.release(e)
	return nil, err
}

// openFile opens the file of e and compares it with what was committed. why says how it
// differs.
func (f *files) openFile(e *entry, was info) (file *os.File, why string, err error) {
	file, err = openQuietly(f.layout.blob(e.Key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "its file is gone", nil
	}
	if err != nil {
		return nil, "", err
	}
	id, err := identify(file)
	switch {
	case err != nil:
	case id.size != e.Size:
		why = fmt.Sprintf("its file has %d bytes instead of %d", id.size, e.Size)
	// It may be right all the same: after a crash the index may have the record of an older
	// file.
	case id.ino != was.ino || id.mtime != was.mtime || was.has(unverified):
		why, err = f.checkFile(e, file, id)
	}
	if why != "" || err != nil {
		file.Close()
		return nil, why, err
	}
	return file, "", nil
}

// checkFile hashes a file that was found without a record, or with the record of another one,
// and notes that it is right.
func (f *files) checkFile(e *entry, file *os.File, id fileID) (why string, err error) {
	fi, err := file.Stat()
	if err != nil {
		return "", err
	}
	h := e.Key.Algorithm().Hash()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	if digest.NewDigest(e.Key.Algorithm(), h) != e.Key {
		return "its bytes have another digest", nil
	}
	if !f.trust(e, id, fi.Mode()) {
		return "it was replaced", nil
	}
	_, err = file.Seek(0, io.SeekStart)
	return "", err
}

// trust notes that the file of e has been hashed and is right. It reports false when e has been
// removed meanwhile.
func (f *files) trust(e *entry, id fileID, mode fs.FileMode) bool {
	private := mode.Perm()&privateBit != 0
	if !f.room.verified(e, id, private) {
		return false
	}
	f.catalogue.amend(e.Key, func(r *record) {
		r.fileID, r.unverified, r.private = id, false, r.private || private
	})
	return true
}
