package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

var bucket = buckets[0]

// openTest opens an index that is closed at the end of the test.
func openTest(t *testing.T, o Options) *Index {
	t.Helper()
	o.Buckets = buckets
	x, err := Open(filepath.Join(t.TempDir(), "index.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// TestUpdateLosesNothing counts in one value from several goroutines, while others flush.
func TestUpdateLosesNothing(t *testing.T) {
	x := openTest(t, Options{})
	const goroutines, rounds = 4, 200
	key := []byte("count")
	add := func(old []byte) []byte {
		n := uint64(0)
		if old != nil {
			n = binary.LittleEndian.Uint64(old)
		}
		return binary.LittleEndian.AppendUint64(nil, n+1)
	}
	stop := make(chan struct{})
	var flusher, adders sync.WaitGroup
	flusher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				x.Flush()
			}
		}
	})
	for range goroutines {
		adders.Go(func() {
			for range rounds {
				if set, err := x.Update(bucket, key, add); !set || err != nil {
					t.Error(set, err)
				}
			}
		})
	}
	adders.Wait()
	close(stop)
	flusher.Wait()
	v, err := x.Get(bucket, key)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint64(v); n != goroutines*rounds {
		t.Errorf("counted to %d of %d", n, goroutines*rounds)
	}
}

func TestUpdateThatDeclinesChangesNothing(t *testing.T) {
	x := openTest(t, Options{})
	key := []byte("key")
	x.Set(bucket, key, []byte("value"))
	if err := x.Flush(); err != nil {
		t.Fatal(err)
	}
	set, err := x.Update(bucket, key, func(old []byte) []byte {
		if string(old) != "value" {
			t.Errorf("old value %q", old)
		}
		return nil
	})
	if set || err != nil || x.Pending() != 0 {
		t.Errorf("set = %v, error %v, %d changes pending", set, err, x.Pending())
	}
}

// TestFailedFlushKeepsChanges: what can't be written stays readable, and is written later.
func TestFailedFlushKeepsChanges(t *testing.T) {
	var db *bbolt.DB
	x := openTest(t, Options{Opened: func(opened *bbolt.DB) { db = opened }})
	key := []byte("key")
	x.Set(bucket, key, []byte("old"))
	if err := x.Flush(); err != nil {
		t.Fatal(err)
	}
	x.Set(bucket, key, []byte("new"))
	x.Set(bucket, []byte("other"), []byte("value"))
	db.MaxSize = 1 // no room for anything more
	x.Set(bucket, []byte("large"), make([]byte, 1<<20))
	if err := x.Flush(); err == nil {
		t.Fatal("1 MiB was written without room for it")
	}
	for key, want := range map[string]string{"key": "new", "other": "value"} {
		if v, err := x.Get(bucket, []byte(key)); err != nil || string(v) != want {
			t.Errorf("%s = %q, %v after a flush that failed", key, v, err)
		}
	}
	db.MaxSize = 0
	if err := x.Flush(); err != nil || x.Pending() != 0 {
		t.Errorf("with room again: %v, %d changes pending", err, x.Pending())
	}
	v := map[string][]byte{}
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(key, value []byte) error {
			v[string(key)] = bytes.Clone(value)
			return nil
		})
	})
	if err != nil || len(v) != 3 {
		t.Errorf("%d keys written, %v", len(v), err)
	}
}

// TestReadsWhileTheFileGrows: Set, Delete, Pending and Size do not wait for a writer that
// waits for readers to end, and a Get of what is pending does not either.
func TestReadsWhileTheFileGrows(t *testing.T) {
	var db *bbolt.DB
	x := openTest(t, Options{Opened: func(opened *bbolt.DB) { db = opened }})
	tx, err := db.Begin(false) // a long read transaction
	if err != nil {
		t.Fatal(err)
	}
	x.Set(bucket, []byte("large"), make([]byte, 4<<20))
	flushed := make(chan error, 1)
	go func() { flushed <- x.Flush() }()
	waiting := make(chan error, 1)
	for blocked := false; !blocked; { // a new reader waits once the writer maps the file anew
		go func() { waiting <- db.View(func(*bbolt.Tx) error { return nil }) }()
		select {
		case <-waiting:
		case <-time.After(100 * time.Millisecond):
			blocked = true
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.Set(bucket, []byte("key"), []byte("value"))
		x.Delete(bucket, []byte("gone"))
		if v, err := x.Get(bucket, []byte("key")); err != nil || string(v) != "value" {
			t.Errorf("%q, %v", v, err)
		}
		if x.Pending() != 3 || x.Size() == 0 {
			t.Errorf("%d pending, %d bytes", x.Pending(), x.Size())
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("something waits for a transaction")
	}
	tx.Rollback()
	if err := errors.Join(<-flushed, <-waiting); err != nil {
		t.Error(err)
	}
	<-done
}

// TestEachSeesPendingChanges: Each visits pending and written keys in one order, the newest
// value of each, and no deleted ones.
func TestEachSeesPendingChanges(t *testing.T) {
	x := openTest(t, Options{})
	for _, k := range []string{"a1", "a3", "a5", "b"} {
		x.Set(bucket, []byte(k), []byte("old"))
	}
	if err := x.Flush(); err != nil {
		t.Fatal(err)
	}
	x.Set(bucket, []byte("a2"), []byte("new"))
	x.Set(bucket, []byte("a3"), []byte("new"))
	x.Delete(bucket, []byte("a5"))
	x.Set(bucket, []byte("a9"), []byte("new"))
	got := ""
	err := x.Each(bucket, []byte("a"), func(k, v []byte) error {
		got += string(k) + "=" + string(v) + " "
		return nil
	})
	if want := "a1=old a2=new a3=new a9=new "; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// TestVisitErrorIsNoDamage: an error of the caller's visitor is returned as it is, so that
// nobody sets the file aside because of it.
func TestVisitErrorIsNoDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := Open(path, Options{Buckets: buckets})
	if err != nil {
		t.Fatal(err)
	}
	x.Set(bucket, []byte("key"), []byte("value"))
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	newer := errors.New("written by a newer version")
	for _, first := range [][][]byte{nil, buckets} {
		_, err = Open(path, Options{Buckets: buckets, First: first, Visit: func(_, _, _ []byte) error { return newer }})
		if !errors.Is(err, newer) || errors.Is(err, ErrDamaged) {
			t.Errorf("first = %s: %v", first, err)
		}
	}
}
