package history

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/boltfile"
)

// version is that of the file's format. It rises when an older program would misread the file.
const version = 1

// The buckets. A point's key is the number of its resolution, a byte, and the beginning of its
// step, eight bytes big-endian; its value is the CRC-32 of key and JSON, four bytes little-endian,
// and the Counts as JSON.
var (
	metaBucket   = []byte("meta")
	pointsBucket = []byte("points")
	versionKey   = []byte("version")
)

const (
	keySize  = 9
	sumSize  = 4
	lockWait = time.Second // no other process should have the file
)

// newerError says that a newer program has written the file.
type newerError struct{ version string }

func (e newerError) Error() string {
	return fmt.Sprintf("it has version %s, and this hubcache knows %d: use the newer hubcache, or move the file away and lose the history", e.version, version)
}

// file is the bbolt file. It is opened for each use, checked before, and closed after: what damages
// it meanwhile is found, and costs nothing, since the points are in memory. Not for concurrent use.
type file struct {
	path     string
	log      *slog.Logger
	absorb   func([len(resolutions)]points)  // takes the points of earlier runs
	snapshot func() [len(resolutions)]points // returns a copy of all points

	loaded  bool // the points of earlier runs are in memory
	foreign bool // the file isn't ours to write
	failing bool // the last write has failed, which the log says
	written [len(resolutions)]points
}

// read gives the points of earlier runs to absorb.
func (f *file) read() {
	if _, err := os.Stat(f.path); errors.Is(err, os.ErrNotExist) {
		f.loaded = true
		return
	}
	f.report(f.tolerant(false))
}

// write makes the file have the points of memory, unless it has them. If those of earlier runs
// could not be read before, absorb gets them first.
func (f *file) write() {
	if f.foreign || equal(f.snapshot(), f.written) {
		return
	}
	f.report(f.tolerant(true))
}

// tolerant is attempt, and once more on a new file if the one there is damaged.
func (f *file) tolerant(write bool) error {
	err := f.attempt(write)
	if !errors.Is(err, boltfile.ErrDamaged) {
		return err
	}
	f.log.Warn("the history of the dashboard is damaged and was set aside", "path", f.path+".bad", "error", err)
	f.loaded = true
	return f.attempt(write)
}

// report logs that the file can't be used, once.
func (f *file) report(err error) {
	var newer newerError
	switch {
	case errors.As(err, &newer):
		f.foreign = true
		f.log.Warn("the history of the dashboard can't be used: its file stays as it is, and that of this run isn't kept", "path", f.path, "error", err)
	case err != nil && !f.failing:
		f.log.Warn("the history of the dashboard can't be read or written; this is tried again every minute", "path", f.path, "error", err)
	}
	f.failing = err != nil
}

// attempt opens and checks the file, reads it if that wasn't done, and writes the points if it
// shall. A damaged file is set aside. Errors: boltfile.ErrDamaged, newerError, those of the disk.
func (f *file) attempt(write bool) (err error) {
	opened, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	end := opened.Close
	defer func() {
		if errors.Is(err, boltfile.ErrDamaged) {
			err = errors.Join(err, boltfile.SetAside(f.path))
		}
		err = errors.Join(err, end())
	}()
	if err := boltfile.Lock(opened, lockWait); err != nil {
		return err
	}
	old, err := check(opened)
	if err != nil {
		return err
	}
	if !f.loaded {
		f.absorb(old)
		f.loaded = true
	}
	if !write {
		return nil
	}
	defer boltfile.Recover(&err)()
	// If bbolt panics in here, its locks are lost, and it can't be closed. Closing the file frees it.
	db, err := bbolt.Open(f.path, 0o600, &bbolt.Options{OpenFile: func(string, int, os.FileMode) (*os.File, error) { return opened, nil }})
	if err != nil {
		return err
	}
	p := f.snapshot()
	err = db.Update(func(tx *bbolt.Tx) error { return put(tx, p) })
	end = db.Close
	if err == nil {
		f.written = p
	}
	return err
}

// check checks the file and returns its points.
func check(opened *os.File) (all [len(resolutions)]points, err error) {
	for i := range all {
		all[i] = points{}
	}
	err = boltfile.Walk(opened, [][]byte{metaBucket, pointsBucket}, func(bucket, key, row []byte) error {
		switch string(bucket) {
		case string(metaBucket):
			if string(key) != string(versionKey) {
				return nil
			}
			text := string(row[len(key):])
			if n, err := strconv.Atoi(text); err != nil || n < 1 {
				return fmt.Errorf("%w: version %q", boltfile.ErrDamaged, text)
			} else if n > version {
				return newerError{text}
			}
		case string(pointsBucket):
			i, at, c, err := parse(key, row[len(key):])
			if err != nil {
				return fmt.Errorf("%w: point %x: %w", boltfile.ErrDamaged, key, err)
			}
			all[i][at] = c
		}
		return nil
	})
	if err != nil {
		return all, err
	}
	return all, boltfile.CheckMetas(opened)
}

// parse reads a row of the bucket of points.
func parse(key, value []byte) (resolution int, at int64, c Counts, err error) {
	if len(key) != keySize || int(key[0]) >= len(resolutions) || len(value) < sumSize {
		return 0, 0, c, errors.New("it has a wrong form")
	}
	if binary.LittleEndian.Uint32(value) != sum(key, value[sumSize:]) {
		return 0, 0, c, errors.New("its checksum is wrong")
	}
	err = json.Unmarshal(value[sumSize:], &c)
	return int(key[0]), int64(binary.BigEndian.Uint64(key[1:])), c, err
}

// row is the inverse of parse.
func row(resolution int, at int64, c Counts) (key, value []byte) {
	key = binary.BigEndian.AppendUint64([]byte{byte(resolution)}, uint64(at))
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // numbers
	}
	return key, append(binary.LittleEndian.AppendUint32(nil, sum(key, text)), text...)
}

func sum(key, text []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, text)
}

// put makes the file have these points and no others.
func put(tx *bbolt.Tx, p [len(resolutions)]points) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err == nil {
		err = meta.Put(versionKey, strconv.AppendInt(nil, version, 10))
	}
	if err != nil {
		return err
	}
	b, err := tx.CreateBucketIfNotExists(pointsBucket)
	if err != nil {
		return err
	}
	rows := map[string]string{}
	for i := range p {
		for at, c := range p[i] {
			key, value := row(i, at, c)
			rows[string(key)] = string(value)
		}
	}
	var gone [][]byte
	err = b.ForEach(func(key, value []byte) error {
		switch was, ok := rows[string(key)]; {
		case !ok:
			gone = append(gone, key)
		case was == string(value):
			delete(rows, string(key))
		}
		return nil
	})
	for _, key := range gone {
		err = errors.Join(err, b.Delete(key))
	}
	for key, value := range rows {
		err = errors.Join(err, b.Put([]byte(key), []byte(value)))
	}
	return err
}

func equal(a, b [len(resolutions)]points) bool {
	for i := range a {
		if !maps.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
