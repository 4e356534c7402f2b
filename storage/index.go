package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// The buckets of index.db.
var (
	bucketBlobs    = []byte("blobs")    // digest → record
	bucketUses     = []byte("uses")     // digest → time of last use
	bucketLinks    = []byte("links")    // repository \0 digest → Link
	bucketTags     = []byte("tags")     // repository \0 tag → Tag
	bucketVerdicts = []byte("verdicts") // repository → Visibility
	bucketMeta     = []byte("meta")     // keyBuilt

	buckets = [][]byte{bucketBlobs, bucketUses, bucketLinks, bucketTags, bucketVerdicts, bucketMeta}

	// keyBuilt is there when the index has once been made from the files: an empty one,
	// or one whose rebuilding was cut short, must not be believed.
	keyBuilt = []byte("built")
)

// index is bbolt with a write-back layer over it, so that a disk that is full for a
// while loses nothing: what can't be written stays in memory and is tried again.
//
// What is durable: all that was set before a flush that returned nil. The files are
// the truth all the same; a lost index is rebuilt from them.
type index struct {
	path string
	db   *bbolt.DB

	writing sync.Mutex // held by the one flush that is going on; taken before mu

	mu      sync.RWMutex
	pending map[string]change // key: bucket name, \0, key; newest change wins
	broken  error             // bbolt found itself damaged: no more writes, rebuild at the next start
}

// change is a value to be set, or, if nil, a key to be deleted.
type change struct {
	bucket, key, value []byte
}

// lockWait is how long a start waits for another process to let go of the index:
// a server that is being restarted may still be closing it.
const (
	lockWait  = 2 * time.Second
	lockRetry = 50 * time.Millisecond // bbolt's
)

// openIndex opens the database at path and calls visit for all that is in it, see walkPages.
// errDamaged means that it can't be trusted.
func openIndex(path string, first [][]byte, visit visitor) (x *index, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Locked before the walk: a server that is being stopped may still be writing.
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := checkFile(f, first, visit); err != nil {
		f.Close()
		return nil, err
	}
	defer recoverDamage(&err)()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		// bbolt's own lock is on the open file too, and is had at once.
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	switch {
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	case err != nil:
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
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
	return &index{path: path, db: db, pending: map[string]change{}}, nil
}

func checkFile(f *os.File, first [][]byte, visit visitor) error {
	if _, err := os.Stat(f.Name() + ".damaged"); err == nil {
		return fmt.Errorf("%w: found at run time", errDamaged)
	}
	return walkPages(f, first, visit)
}

// lockFile takes the lock that bbolt takes.
func lockFile(f *os.File) error {
	for end := time.Now().Add(lockWait); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		case time.Now().After(end):
			return fmt.Errorf("%s is in use by another process", f.Name())
		}
	}
}

// recoverDamage turns what a damaged memory-mapped file does (a panic in bbolt, a fault
// on a page beyond its end) into errDamaged: defer recoverDamage(&err)().
func recoverDamage(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}
}

func pendingKey(bucket, key []byte) string {
	b := make([]byte, 0, len(bucket)+1+len(key))
	b = append(append(append(b, bucket...), 0), key...)
	return string(b)
}

// set remembers a change; the next flush writes it.
func (x *index) set(bucket, key, value []byte) {
	if value != nil {
		value = seal(key, value)
	}
	x.mu.Lock()
	x.pending[pendingKey(bucket, key)] = change{bucket, key, value}
	x.mu.Unlock()
}

func (x *index) delete(bucket, key []byte) { x.set(bucket, key, nil) }

// get returns the value of key, nil when there is none.
func (x *index) get(bucket, key []byte) (value []byte, err error) {
	x.mu.RLock()
	if len(x.pending) > 0 {
		if c, ok := x.pending[pendingKey(bucket, key)]; ok {
			x.mu.RUnlock()
			if c.value == nil {
				return nil, nil
			}
			return unseal(key, c.value)
		}
	}
	x.mu.RUnlock()
	defer recoverDamage(&err)()
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

// flush writes all changes in one synced transaction. When it fails they stay pending.
func (x *index) flush() error {
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
		if errors.Is(err, errDamaged) {
			x.condemn(err)
		}
		return fmt.Errorf("writing the index: %w", err)
	}
	x.mu.Lock()
	for k, c := range batch {
		if now := x.pending[k]; bytes.Equal(now.value, c.value) && (now.value == nil) == (c.value == nil) {
			delete(x.pending, k)
		}
	}
	x.mu.Unlock()
	return nil
}

func (x *index) write(batch map[string]change) (err error) {
	defer recoverDamage(&err)()
	return x.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range batch {
			b := tx.Bucket(c.bucket)
			if c.value == nil {
				if err := b.Delete(c.key); err != nil {
					return err
				}
			} else if err := b.Put(c.key, c.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// condemn makes the next start rebuild the index.
func (x *index) condemn(err error) {
	x.mu.Lock()
	x.broken = err
	x.mu.Unlock()
	os.WriteFile(x.path+".damaged", []byte(err.Error()+"\n"), 0o600)
}

// each calls f for every key with the prefix, in order. f must not ask the index: a second
// read transaction inside the first waits for a writer that waits for the first.
// A damaged value is errDamaged.
func (x *index) each(bucket, prefix []byte, f func(key, value []byte) error) (err error) {
	defer recoverDamage(&err)()
	pending := x.unwritten(bucket, prefix) // before the transaction: what is written between stands twice
	visit := func(k, sealed []byte) error {
		v, err := unseal(k, sealed)
		if err != nil {
			return err
		}
		return f(k, v)
	}
	before := func(k []byte) error { // those before k, or all
		for len(pending) > 0 && (k == nil || bytes.Compare(pending[0].key, k) < 0) {
			c := pending[0]
			pending = pending[1:]
			if c.value != nil {
				if err := visit(c.key, c.value); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return x.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, sealed := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, sealed = c.Next() {
			if err := before(k); err != nil {
				return err
			}
			if len(pending) > 0 && bytes.Equal(pending[0].key, k) {
				continue // the pending one's turn comes before the next
			}
			if err := visit(k, sealed); err != nil {
				return err
			}
		}
		return before(nil)
	})
}

// unwritten returns the pending changes of keys with the prefix, in order.
func (x *index) unwritten(bucket, prefix []byte) (cs []change) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, c := range x.pending {
		if bytes.Equal(c.bucket, bucket) && bytes.HasPrefix(c.key, prefix) {
			cs = append(cs, c)
		}
	}
	slices.SortFunc(cs, func(a, b change) int { return bytes.Compare(a.key, b.key) })
	return cs
}

// size returns the size of the file in bytes.
func (x *index) size() int64 {
	fi, err := os.Stat(x.path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// close flushes and closes.
func (x *index) close() error { return errors.Join(x.flush(), x.db.Close()) }

// pair is the key of what belongs to a repository. No name contains a \0.
func pair(repository, name string) []byte {
	b := make([]byte, 0, len(repository)+1+len(name))
	return append(append(append(b, repository...), 0), name...)
}

func unpair(key []byte) (repository, name string) {
	r, n, _ := bytes.Cut(key, []byte{0})
	return string(r), string(n)
}
