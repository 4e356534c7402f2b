package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// files is the files of blobs: it opens and checks them, brings new ones in, and knows which
// are being written at the moment. One Ingest at a time writes the files of a digest.
type files struct {
	layout    layout
	faults    *faults
	room      *room
	catalogue *catalogue
	// folderLost is called when a folder under blobs/ is gone.
	folderLost func()

	// mu guards ingests. It is taken after room.evicting and before room.mu, and never held
	// during I/O.
	mu      sync.Mutex
	ingests map[digest.Digest]*Ingest
}

// claim makes in the only ingest of its digest, until unclaim. It waits while an older file of
// that digest is unlinked. Errors: ErrBusy; fs.ErrExist.
func (f *files) claim(in *Ingest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if f.ingests[in.digest] != nil {
			return ErrBusy
		}
		unlinked, err := f.room.claim(in)
		if unlinked == nil {
			if err == nil {
				f.ingests[in.digest] = in
			}
			return err
		}
		f.mu.Unlock()
		<-unlinked
		f.mu.Lock()
	}
}

// unclaim ends the claim. account is called with room.mu held and turns the reservation into
// what the ingest has become, so that there is no moment at which neither is known.
func (f *files) unclaim(in *Ingest, account func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room.mu.Lock()
	defer f.room.mu.Unlock()
	account()
	delete(f.ingests, in.digest)
}

// state returns what the room knows of d, and whether it is coming in or could be resumed.
func (f *files) state(d digest.Digest) (s state, coming bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s = f.room.state(d)
	return s, f.ingests[d] != nil || s.partial
}

// adopt adds an entry and a record for the file of d, which the index doesn't know. Its digest is
// checked when it is first read. A file that is coming in or leaving is left alone.
func (f *files) adopt(d digest.Digest, fi fs.FileInfo) {
	r := adoptedRecord(fi)
	used := f.lastUse(d, fi, time.Now().UnixNano())
	f.mu.Lock()
	adopted := f.ingests[d] == nil && f.room.adopt(r.entry(d, used))
	f.mu.Unlock()
	if adopted {
		f.catalogue.setRecord(d, r)
		f.catalogue.setUse(d, time.Unix(0, used))
	}
}

// adoptedRecord is the record of a file that the index doesn't know.
func adoptedRecord(fi fs.FileInfo) record {
	return record{fileID: fileIDOf(fi), unverified: true, private: fi.Mode().Perm()&privateBit != 0}
}

// The modes of blobs' files. That a blob came through a private repository is in the mode of
// its file, as the owner's x, because it must not be forgotten when the index is lost.
const (
	modePublic  = 0o400
	modePrivate = 0o500
	privateBit  = 0o100
)

// commit makes a verified ingest a blob: fsync, chmod, rename, fsync of the folder, index.
//
// A manifest isn't synced, because a client waits for its commit. Whoever reads it from disk
// hashes it (Open), so a power cut costs one more fetch. If it is private it is synced all the
// same: that must outlive the index.
func (f *files) commit(in *Ingest) error {
	synced := in.manifest == nil || in.from.Private
	if synced {
		if err := in.f.Sync(); err != nil {
			return err
		}
	}
	// Not before the sync, which is the long part: a partial that a crash leaves behind must
	// be writable.
	mode := fs.FileMode(modePublic)
	if in.from.Private {
		mode = modePrivate
	}
	if err := in.f.Chmod(mode); err != nil {
		return err
	}
	if !in.from.Used.IsZero() {
		if err := os.Chtimes(in.f.Name(), time.Time{}, in.from.Used); err != nil {
			return err
		}
	}
	id, err := identify(in.f)
	if err != nil {
		return err
	}
	if err := place(f.layout.partial(in.digest), f.layout.blob(in.digest), synced); err != nil {
		return err
	}
	os.Remove(f.layout.partialState(in.digest))
	f.admit(in, id)
	return nil
}

// admit turns a committed ingest into an entry in the room and a record in the catalogue.
func (f *files) admit(in *Ingest, id fileID) {
	r := record{fileID: id, private: in.from.Private}
	if in.manifest != nil {
		r.setManifest(in.manifest)
	}
	used := in.from.Used
	if used.IsZero() {
		used = time.Now()
	}
	f.catalogue.setRecord(in.digest, r)
	f.catalogue.setUse(in.digest, used)
	e := r.entry(in.digest, used.UnixNano())
	f.unclaim(in, func() {
		in.reservation.commit(e)
		in.become(e)
	})
	f.catalogue.linkCommitted(in.from.Repository, in.digest, id.size)
}

// place renames a finished file to where it belongs. If synced is set, the folder is synced.
func place(from, to string, synced bool) error {
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if !synced {
		return nil
	}
	// Some file systems can't sync a folder, and don't need it.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		os.Remove(to) // there is no entry of it yet
		return err
	}
	return nil
}

// writeFile replaces the file at path by one with these bytes, whole or not at all. Its folder
// is made when missing. It isn't synced: a crash of the machine may leave the old one.
func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// tempPrefix begins the names of files that a killed process may leave behind. No digest and
// no part of a repository's name begins with a dot.
const tempPrefix = ".tmp-"

// remove unlinks a file that may be gone already.
func (f *files) remove(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.faults.disk(err)
	}
}

// removePartial unlinks the partial of d and its state.
func (f *files) removePartial(d digest.Digest) {
	f.remove(f.layout.partialState(d))
	f.remove(f.layout.partial(d))
}

// walk calls visit for every file under blobs/ that has a digest as its name, until stop
// returns true. Other files, other folders (lost+found, if blobs/ is a file system of its own) and
// what can't be read are left alone. Errors: that blobs/ itself can't be read.
func (f *files) walk(stop func() bool, visit func(digest.Digest, fs.FileInfo)) error {
	root := f.layout.blobs()
	return f.faults.walkReadable(root, func(path string, file fs.DirEntry) error {
		if stop() {
			return fs.SkipAll
		}
		if file.IsDir() && !isFolderOfBlobs(strings.TrimPrefix(path, root)) {
			f.faults.leftAlone(path, "it is no folder of blobs")
			return fs.SkipDir
		}
		if !file.Type().IsRegular() {
			return nil
		}
		d, ok := digestOf(filepath.Base(filepath.Dir(filepath.Dir(path))), file.Name())
		if fi, err := file.Info(); ok && err == nil {
			visit(d, fi)
		}
		return nil
	})
}

// isFolderOfBlobs reports whether a folder with that path under blobs/ may have blobs in it or
// below it: "", "/sha256" or "/sha256/0f".
func isFolderOfBlobs(path string) bool {
	parts := strings.Split(path, "/")[1:]
	if path == "" {
		return true
	}
	if len(parts) > 2 || !digest.Algorithm(parts[0]).Available() {
		return false
	}
	return len(parts) < 2 || len(parts[1]) == 2 && strings.Trim(parts[1], "0123456789abcdef") == ""
}

// layout knows where things are under the data directory (docs/design/disk-format.md).
type layout string

func (l layout) blobs() string  { return filepath.Join(string(l), "blobs") }
func (l layout) ingest() string { return filepath.Join(string(l), "ingest") }
func (l layout) repos() string  { return filepath.Join(string(l), "repos") }
func (l layout) pins() string   { return filepath.Join(string(l), "pins.json") }
func (l layout) index() string  { return filepath.Join(string(l), indexName(indexVersion)) }

// blob is the path of a committed blob. d must be valid.
func (l layout) blob(d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(l.blobs(), d.Algorithm().String(), hex[:2], hex)
}

// partial is the path of a blob that is coming in, partialState that of what is known of it.
func (l layout) partial(d digest.Digest) string {
	return filepath.Join(l.ingest(), d.Algorithm().String()+"-"+d.Encoded())
}

func (l layout) partialState(d digest.Digest) string { return l.partial(d) + ".json" }

// repo is the path of the file of a repository, whose name begins with its registry. On Docker
// Hub a name has two parts besides, and the file has the folder of the first. A longer name,
// which other registries have, is hashed, so that it makes no folders; no name contains a %.
func (l layout) repo(name string) string {
	if strings.Count(name, "/") <= 2 {
		return l.nestedRepo(name)
	}
	registry, rest, _ := strings.Cut(name, "/")
	return filepath.Join(l.repos(), registry, "%"+digest.FromString(rest).Encoded()+".json")
}

// nestedRepo is the path with a folder for each part of the name but the last. Older programs
// used it for long names too. A part of the name may itself end in ".json". As a folder it gets
// a %, so that it can't be the file of another repository.
func (l layout) nestedRepo(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts[:len(parts)-1] {
		if strings.HasSuffix(p, ".json") {
			parts[i] = p + "%"
		}
	}
	return filepath.Join(l.repos(), filepath.Join(parts...)+".json")
}

// digestOf returns the digest that a file's name and folder say; ok is false when they don't.
func digestOf(algorithm, hex string) (d digest.Digest, ok bool) {
	d = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	return d, d.Validate() == nil
}

// fileID is what fstat said of a blob's file when it was committed.
type fileID struct {
	size  int64
	ino   uint64
	mtime int64 // Unix nanoseconds
}

func fileIDOf(fi fs.FileInfo) fileID {
	id := fileID{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.ino = st.Ino
	}
	return id
}

// identify returns what fstat says of file.
func identify(file *os.File) (fileID, error) {
	fi, err := file.Stat()
	if err != nil {
		return fileID{}, err
	}
	return fileIDOf(fi), nil
}

// faults counts and logs what goes wrong with the disk. Its methods are safe for concurrent
// use.
type faults struct {
	log         *slog.Logger
	dir         string
	writeErrors atomic.Int64
	corrupt     atomic.Int64 // blobs dropped because their bytes had changed
	logged      atomic.Int64 // Unix seconds of the last log line about a failing disk
	fullLogged  atomic.Int64 // the same about a full one

	// mu guards foreign. It is not held during I/O, and no other lock is taken while it is held.
	mu      sync.Mutex
	foreign map[string]bool // paths of which was logged that they are left alone
}

// maxForeign is of how many files and folders the log says that they are left alone. A folder in
// which more can't be read has one cause.
const maxForeign = 20

// leftAlone logs, once, that a file or folder in the data directory is not read or changed.
func (f *faults) leftAlone(path, why string) {
	f.mu.Lock()
	said := f.foreign[path] || len(f.foreign) >= maxForeign
	if !said {
		f.foreign[path] = true
	}
	f.mu.Unlock()
	if !said {
		f.log.Warn("something in the data directory is left alone", "path", path, "reason", why)
	}
}

// walkReadable is filepath.WalkDir for what can be read below root. Other folders are left alone.
// Errors: that root can't be read; those of visit.
func (f *faults) walkReadable(root string, visit func(path string, file fs.DirEntry) error) error {
	return filepath.WalkDir(root, func(path string, file fs.DirEntry, err error) error {
		switch {
		case err == nil:
			return visit(path, file)
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case path == root:
			return err
		}
		f.leftAlone(path, err.Error())
		return nil // WalkDir doesn't enter a folder that it can't read
	})
}

// disk counts and logs err, at most once a minute: a full disk fails many times a second.
func (f *faults) disk(err error) {
	f.writeErrors.Add(1)
	now, last := time.Now().Unix(), f.logged.Load()
	if now-last >= 60 && f.logged.CompareAndSwap(last, now) {
		f.log.Error("the cache disk fails; clients are served without it", "error", err, "dir", f.dir)
	}
}

// full logs, at most once a minute, that the file system has no room, though everything that
// could be evicted has been.
func (f *faults) full(short int64) {
	now, last := time.Now().Unix(), f.fullLogged.Load()
	if now-last >= 60 && f.fullLogged.CompareAndSwap(last, now) {
		f.log.Error("the disk is full (min_free): clients are served without keeping anything", "missing_bytes", short, "dir", f.dir)
	}
}

// diskError counts err and returns it as an ErrDisk.
func (f *faults) diskError(err error) error {
	err = fmt.Errorf("%w: %w", ErrDisk, err)
	f.disk(err)
	return err
}

// changed counts and logs a blob whose bytes have changed on disk.
func (f *faults) changed(d digest.Digest, why error) {
	f.corrupt.Add(1)
	f.log.Error("a cached blob has changed on disk and will be fetched again", "digest", d, "error", why)
}

// lost logs a blob whose file is gone, or isn't the one that was committed.
func (f *faults) lost(d digest.Digest, why string) {
	f.log.Warn("a cached blob is lost and will be fetched again", "digest", d, "reason", why)
}
