package prune

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/boltfile"
)

// ErrBusy means that another process has locked the records. Try again later.
var ErrBusy = errors.New("the last-use records are locked by another process")

const (
	// usesVersion is the newest version of the file's format that this program knows.
	usesVersion = 1

	// lockWait is how long a batch waits for the lock of the file. Another process holds it
	// for one batch, which takes milliseconds. Two seconds mean that the disk has a problem.
	lockWait = 2 * time.Second

	// maxSilence is how long ago the watcher may have said that it is alive. It says so every
	// heartbeat (30 s). After five minutes it has ended.
	maxSilence = 5 * time.Minute
)

// Record says when an image was used on this host.
type Record struct {
	FirstSeen time.Time `json:"first_seen"`
	LastUsed  time.Time `json:"last_used"`
}

// Uses are the last-use records in a bbolt file. Each method opens the file, runs one batch
// and closes the file, so that a watcher and a prune can share it. The methods are safe for
// concurrent use, by several processes too. Each may return [ErrBusy] and [ErrNewerFormat].
//
// A file that is damaged is renamed to Path.bad, and a new one is begun: every image then counts as
// used at that time.
type Uses struct {
	// Path is the file. The file and its folder are created when missing.
	Path string

	clock func() (clockMark, error) // nil: readClock
}

// watchState is what the watcher stores for its next start and for prune.
type watchState struct {
	Alive    time.Time `json:"alive"`    // when it last said that it is alive; zero: there is no watcher
	Event    eventMark `json:"event"`    // the last event that is in the records
	Activity Activity  `json:"activity"` // the last activity of a deploy
}

var (
	imagesBucket = []byte("images") // image ID → Record
	metaBucket   = []byte("meta")
	watchKey     = []byte("watch")   // watchState
	versionKey   = []byte("version") // of the file's format, in decimal; absent in version 1
	clockKey     = []byte("clock")   // clockMark; absent if an older program wrote the file
	basePrefix   = "base "           // and an image ID: others were built on it
	aheadPrefix  = "ahead "          // and a time of the Engine that is ahead of the clock: when it was first seen
	sumKey       = []byte("sum")     // number of the transaction that wrote it, SHA-256 of all else, CRC-32 of both
)

// update runs one batch in a transaction. It changes nothing in a file of a newer format. A
// damaged file is set aside, and the batch is run on a new one: every image then counts as used.
func (u Uses) update(batch func(*records) error) error {
	if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
		return fmt.Errorf("last-use records: %w", err)
	}
	err := u.attempt(batch, nil)
	if errors.Is(err, boltfile.ErrDamaged) {
		err = u.attempt(batch, err)
	}
	if errors.Is(err, ErrBusy) || err == nil {
		return err
	}
	return fmt.Errorf("last-use records %s: %w", u.Path, err)
}

// attempt runs one batch on the file as it is. The batch finds what was wrong with the file before
// in damage. A file that is damaged is set aside while it is locked, so that no other process can
// have made a new one. Errors: [boltfile.ErrDamaged].
func (u Uses) attempt(batch func(*records) error, damage error) (err error) {
	f, err := u.lock()
	if err != nil {
		return err
	}
	end := func() error { f.Close(); return nil }
	defer func() {
		if errors.Is(err, boltfile.ErrDamaged) {
			err = errors.Join(err, boltfile.SetAside(u.Path))
		}
		err = errors.Join(err, end())
	}()
	if err := checkRecords(f); err != nil {
		return err
	}
	defer boltfile.Recover(&err)()
	db, err := bbolt.Open(u.Path, 0o640, &bbolt.Options{OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil }})
	if err != nil {
		return err
	}
	if err := chownLikeFolder(u.Path); err != nil {
		return errors.Join(err, db.Close())
	}
	// If bbolt panics in here, its locks are lost, and it can't be closed. Closing the file frees it.
	err = db.Update(func(tx *bbolt.Tx) error { return run(tx, batch, damage) })
	end = db.Close
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// errNoChange is what a batch returns that has only read.
var errNoChange = errors.New("nothing has changed")

// run runs the batch between a check of the content and a new checksum.
func run(tx *bbolt.Tx, batch func(*records) error, damage error) error {
	if name, _ := tx.Cursor().First(); name != nil && (tx.Bucket(imagesBucket) == nil || tx.Bucket(metaBucket) == nil) {
		return fmt.Errorf("%w: a bucket is missing", boltfile.ErrDamaged) // each version makes both at once
	}
	images, err := tx.CreateBucketIfNotExists(imagesBucket)
	if err != nil {
		return err
	}
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if err := checkVersion(string(meta.Get(versionKey)), usesVersion); err != nil {
		return err
	}
	r := &records{images, meta, damage}
	if err := r.checkSum(uint64(tx.ID()) - 1); err != nil {
		return err
	}
	if err := batch(r); err != nil {
		return err
	}
	sum, err := r.sum()
	if err != nil {
		return err
	}
	row := append(binary.LittleEndian.AppendUint64(nil, uint64(tx.ID())), sum...)
	return meta.Put(sumKey, binary.LittleEndian.AppendUint32(row, crc32.ChecksumIEEE(row)))
}

// lock opens the file and locks it. Another process may set the file aside meanwhile; then the
// lock is that of the wrong file.
func (u Uses) lock() (*os.File, error) {
	for {
		f, err := os.OpenFile(u.Path, os.O_RDWR|os.O_CREATE, 0o640)
		if err != nil {
			return nil, err
		}
		if err := boltfile.Lock(f, lockWait); err != nil {
			f.Close()
			if errors.Is(err, boltfile.ErrLocked) {
				return nil, fmt.Errorf("%s: %w", u.Path, ErrBusy)
			}
			return nil, err
		}
		opened, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Stat(u.Path); err == nil && os.SameFile(opened, named) {
			return f, nil
		}
		f.Close()
	}
}

// checkRecords checks the file before bbolt opens it. Errors: [boltfile.ErrDamaged], and
// [ErrNewerFormat], even if such a file is not what this program expects.
func checkRecords(f *os.File) error {
	err := boltfile.Walk(f, [][]byte{metaBucket, imagesBucket}, func(bucket, key, row []byte) error {
		value := row[len(key):]
		var target any
		switch {
		case string(bucket) == string(metaBucket) && string(key) == string(versionKey):
			return checkVersion(string(value), usesVersion)
		case string(bucket) == string(imagesBucket):
			target = &Record{}
		case string(bucket) == string(metaBucket) && string(key) == string(watchKey):
			target = &watchState{}
		default:
			return nil
		}
		if err := json.Unmarshal(value, target); err != nil {
			return fmt.Errorf("%w: the value of %q: %w", boltfile.ErrDamaged, key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return boltfile.CheckMetas(f)
}

// chownLikeFolder gives the file to the owner of its folder. If root runs prune before the
// watcher first starts, the file is root's, and the watcher, which runs as another user,
// couldn't write it.
func chownLikeFolder(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var dir, file unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Dir(path), &dir), unix.Stat(path, &file)); err != nil {
		return fmt.Errorf("last-use records %s: %w", path, err)
	}
	if dir.Uid == file.Uid {
		return nil
	}
	return os.Chown(path, int(dir.Uid), int(dir.Gid))
}
