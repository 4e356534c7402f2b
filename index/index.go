// Package index is a bbolt file with a write-back layer over it, for data that can be made
// again when it is lost.
//
// Changes are kept in memory until Flush writes them in one synced transaction. When a flush
// fails, they stay in memory and the next flush tries again, so a disk that is full for a
// while loses nothing. All that was set before a Flush that returned nil is durable.
//
// bbolt trusts what is in its file. So the pages are checked before bbolt opens it, and every
// value has a checksum. What is wrong is ErrDamaged; the caller then calls SetAside and
// begins with an empty file.
package index

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/hubcache/hubcache/boltfile"
)

// Index is an open file. All methods are safe for concurrent use.
//
// A read can take long: when a write transaction grows the file, bbolt maps it anew, and for
// that it waits until all open read transactions have ended; new ones wait behind it. So
// callers must hold no lock while they call Get, Each, Update or Flush. Set, Delete and Size
// never wait for a transaction.
type Index struct {
	path string
	db   *bbolt.DB

	// writing queues flushes. It guards no data, and is held during the write transaction.
	// Taken before mu.
	writing sync.Mutex

	// mu guards what follows. It is never held during a transaction, and no other lock is
	// taken while it is held.
	mu      sync.RWMutex
	pending map[string]change // by pendingKey: the newest change of a key
	sets    uint64            // number of changes so far, to number them
	flushes uint64            // number of flushes that have taken changes out of pending
	broken  error             // bbolt has found its file damaged: there are no more writes
}

// change is a sealed value to be set, or, if it is nil, says that the key is to be deleted.
type change struct {
	sealed []byte
	number uint64 // unique
}

// Options says what Open does besides opening. All fields but Buckets may be zero.
type Options struct {
	Buckets [][]byte // created when missing

	// First are the buckets that are visited one after the other, in this order. All others
	// are visited at the same time, from another goroutine.
	First [][]byte

	// Visit is called for every key while the file is checked, in the order of the keys.
	// Key and value are valid until it returns. When it returns an error, Open fails with it.
	Visit Visitor

	// Opened is called with the open database. It is there for tests that make transactions
	// of their own, for example to make readers wait.
	Opened func(*bbolt.DB)
}

// Visitor is called with a key of a bucket and its value.
type Visitor func(bucket, key, value []byte) error

// lockWait is how long a start waits for another process to let go of the file: a server that is
// being restarted may still be closing it.
const lockWait = 2 * time.Second

// Open opens or creates the file at path, and checks and visits all that is in it.
//
// Errors: ErrDamaged when the file can't be trusted, or MarkDamaged was called for it; that
// another process has it open; that of Options.Visit; that it can't be opened or written.
func Open(path string, o Options) (x *Index, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// The lock is taken before the check: a server that is being stopped may still be writing.
	if err := boltfile.Lock(f, lockWait); err != nil {
		f.Close()
		return nil, err
	}
	if err := check(f, o); err != nil {
		f.Close()
		return nil, err
	}
	defer boltfile.Recover(&err)()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		// bbolt locks the open file, which has the lock already, so it gets it at once.
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	switch {
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range o.Buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	if o.Opened != nil {
		o.Opened(db)
	}
	return &Index{path: path, db: db, pending: map[string]change{}}, nil
}

func check(f *os.File, o Options) error {
	if _, err := os.Stat(damagedNote(f.Name())); err == nil {
		return fmt.Errorf("%w: found while it was in use", ErrDamaged)
	}
	visit := o.Visit
	if visit == nil {
		visit = func(_, _, _ []byte) error { return nil }
	}
	return boltfile.Walk(f, o.First, func(bucket, key, row []byte) error {
		value, err := unsealRow(row, len(key))
		if err != nil {
			return err
		}
		return visit(bucket, key, value)
	})
}

// damagedNote is the file that says that the one at path was found damaged.
func damagedNote(path string) string { return path + ".damaged" }

// SetAside renames a damaged file at path, which must not be open, to path.bad, so that
// someone can look at it. One such file is kept, the newest.
func SetAside(path string) error {
	if err := boltfile.SetAside(path); err != nil {
		return err
	}
	// Last, or a crash in between would leave a damaged file without its note.
	if err := os.Remove(damagedNote(path)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// pendingKey is the key of a change: the name of the bucket, which contains no \0, a \0, and
// the key.
func pendingKey(bucket, key []byte) string { return string(bucket) + "\x00" + string(key) }

// Set changes the value of key. The next Flush writes it. value belongs to the index from then
// on.
func (x *Index) Set(bucket, key, value []byte) {
	sealed := seal(key, value)
	x.mu.Lock()
	x.put(bucket, key, sealed)
	x.mu.Unlock()
}

// Delete removes key, if it is there. The next Flush writes it.
func (x *Index) Delete(bucket, key []byte) {
	x.mu.Lock()
	x.put(bucket, key, nil)
	x.mu.Unlock()
}

// put remembers a change. mu is held.
func (x *Index) put(bucket, key, sealed []byte) {
	x.sets++
	x.pending[pendingKey(bucket, key)] = change{sealed, x.sets}
}

// change returns the pending change of key, if there is one. mu is held.
func (x *Index) change(bucket, key []byte) (c change, ok bool) {
	if len(x.pending) == 0 {
		return c, false
	}
	var space [256]byte // enough for most keys, so that looking one up allocates nothing
	c, ok = x.pending[string(append(append(append(space[:0], bucket...), 0), key...))]
	return c, ok
}

// Get returns the value of key, or nil when there is none. The value belongs to the caller
// but must not be changed. Errors: ErrDamaged.
func (x *Index) Get(bucket, key []byte) (value []byte, err error) {
	x.mu.RLock()
	c, ok := x.change(bucket, key)
	x.mu.RUnlock()
	switch {
	case ok && c.sealed == nil:
		return nil, nil
	case ok:
		return unseal(key, c.sealed)
	}
	defer boltfile.Recover(&err)()
	err = x.db.View(func(tx *bbolt.Tx) error {
		sealed := tx.Bucket(bucket).Get(key)
		if sealed == nil {
			return nil
		}
		v, err := unseal(key, sealed)
		value = bytes.Clone(v)
		return err
	})
	return value, err
}

// Update sets the value of key to what f makes of the old one, which is nil when there is
// none. When f returns nil nothing is changed. Reading and setting are one step: when another
// change comes between them, f is called again. set says whether there was a change.
//
// Errors: ErrDamaged.
func (x *Index) Update(bucket, key []byte, f func(old []byte) []byte) (set bool, err error) {
	for {
		before := x.stateOf(bucket, key)
		old, err := x.Get(bucket, key)
		if err != nil {
			return false, err
		}
		value := f(old)
		if value == nil {
			return false, nil
		}
		sealed := seal(key, value)
		x.mu.Lock()
		if x.state(bucket, key) == before {
			x.put(bucket, key, sealed)
			x.mu.Unlock()
			return true, nil
		}
		x.mu.Unlock()
	}
}

// keyState stays the same as long as nobody changes the key. It also changes when a flush
// ends, since after it nobody can tell whether the key was among what it wrote.
type keyState struct{ pending, flushes uint64 }

// state returns the state of key. mu is held.
func (x *Index) state(bucket, key []byte) keyState {
	c, _ := x.change(bucket, key)
	return keyState{c.number, x.flushes}
}

func (x *Index) stateOf(bucket, key []byte) keyState {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state(bucket, key)
}

// Pending returns how many changes are only in memory.
func (x *Index) Pending() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.pending)
}

// Flush writes all changes in one synced transaction. When it fails they stay in memory.
//
// Errors: ErrDamaged, now and in every later call, when bbolt finds its file damaged: the
// next Open will fail with it too; that the file can't be written.
func (x *Index) Flush() error {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.mu.RLock()
	err, n := x.broken, len(x.pending)
	batch := make(map[string]change, n)
	for k, c := range x.pending {
		batch[k] = c
	}
	x.mu.RUnlock()
	if err != nil || n == 0 {
		return err
	}
	if err := x.write(batch); err != nil {
		if errors.Is(err, ErrDamaged) {
			x.MarkDamaged(err)
		}
		return fmt.Errorf("writing the index: %w", err)
	}
	x.mu.Lock()
	x.flushes++
	for k, c := range batch {
		if x.pending[k].number == c.number {
			delete(x.pending, k)
		}
	}
	x.mu.Unlock()
	return nil
}

func (x *Index) write(batch map[string]change) (err error) {
	defer boltfile.Recover(&err)()
	// In order, or a large batch would take a time that grows with its square: bbolt splits the
	// pages only at the end, and each key moves all that are after it.
	keys := slices.Sorted(maps.Keys(batch))
	return x.db.Update(func(tx *bbolt.Tx) error {
		var name []byte
		for _, k := range keys {
			c := batch[k]
			name = append(name[:0], k...) // bbolt copies what it keeps of it
			bucket, key, _ := bytes.Cut(name, []byte{0})
			b := tx.Bucket(bucket)
			if c.sealed == nil {
				if err := b.Delete(key); err != nil {
					return err
				}
			} else if err := b.Put(key, c.sealed); err != nil {
				return err
			}
		}
		return nil
	})
}

// MarkDamaged ends all writing and makes the next Open fail with ErrDamaged. Flush calls it
// when bbolt finds the file damaged.
func (x *Index) MarkDamaged(why error) {
	x.mu.Lock()
	x.broken = why
	x.mu.Unlock()
	os.WriteFile(damagedNote(x.path), []byte(why.Error()+"\n"), 0o600)
}

// Each calls f for every key that begins with prefix, in order, until f returns an error.
// Key and value are valid until f returns. f must not read the index: it would be a second
// read transaction inside the first, and could wait for a writer that waits for the first.
//
// Errors: ErrDamaged; that of f.
func (x *Index) Each(bucket, prefix []byte, f func(key, value []byte) error) (err error) {
	defer boltfile.Recover(&err)()
	// Before the transaction begins: a change that is flushed in between is then in both.
	pending := x.unwritten(bucket, prefix)
	visit := func(k, sealed []byte) error {
		v, err := unseal(k, sealed)
		if err != nil {
			return err
		}
		return f(k, v)
	}
	// visitPending visits the pending keys before k, or all if k is nil.
	visitPending := func(k []byte) error {
		for len(pending) > 0 && (k == nil || bytes.Compare(pending[0].key, k) < 0) {
			c := pending[0]
			pending = pending[1:]
			if c.sealed != nil {
				if err := visit(c.key, c.sealed); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return x.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, sealed := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, sealed = c.Next() {
			if err := visitPending(k); err != nil {
				return err
			}
			if len(pending) > 0 && bytes.Equal(pending[0].key, k) {
				continue // the pending value is newer; it is visited before the next key
			}
			if err := visit(k, sealed); err != nil {
				return err
			}
		}
		return visitPending(nil)
	})
}

// unwritten returns the pending changes of keys that begin with prefix, in order.
func (x *Index) unwritten(bucket, prefix []byte) (rows []row) {
	start := pendingKey(bucket, prefix)
	x.mu.RLock()
	defer x.mu.RUnlock()
	for k, c := range x.pending {
		if strings.HasPrefix(k, start) {
			rows = append(rows, row{[]byte(k[len(bucket)+1:]), c.sealed})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.key, b.key) })
	return rows
}

// row is a key and its sealed value; nil if it is to be deleted.
type row struct{ key, sealed []byte }

// Size returns the size of the file in bytes, 0 when it can't be told.
func (x *Index) Size() int64 {
	fi, err := os.Stat(x.path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// Close flushes and closes the file. Errors: those of Flush; that it can't be closed.
func (x *Index) Close() error { return errors.Join(x.Flush(), x.db.Close()) }
