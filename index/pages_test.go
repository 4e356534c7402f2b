package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var buckets = [][]byte{[]byte("blobs"), []byte("links"), []byte("tags"), []byte("meta")}

// bbolt's format, as package boltfile knows it.
const (
	pageHeader = 16
	element    = 16
	bucketLeaf = 0x01
	branchPage = 0x01
	leafPage   = 0x02
)

// noise returns n random bytes.
func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// contents opens the index at path and returns what the check of its pages visits, by
// pendingKey.
func contents(t *testing.T, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	// All buckets are first, so that visit isn't called twice at the same time.
	visit := func(bucket, key, value []byte) error {
		all[pendingKey(bucket, key)] = string(value)
		return nil
	}
	x, err := Open(path, Options{Buckets: buckets, First: buckets, Visit: visit})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWalkFindsWhatBboltHas: after any history of writes the check of the pages finds no damage, and
// visits all keys and values that bbolt has.
func TestWalkFindsWhatBboltHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	for round := range 12 {
		x, err := Open(path, Options{Buckets: buckets})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for range 1 + rand.IntN(5) {
			for range rand.IntN(2000) {
				bucket := buckets[rand.IntN(len(buckets))]
				key := fmt.Appendf(nil, "%x", rand.IntN(3000))
				if rand.IntN(12) < round { // more and more deletions: it fills up first and is empty in the end
					x.Delete(bucket, key)
				} else {
					x.Set(bucket, key, noise(rand.IntN(100)+rand.IntN(2)*rand.IntN(9000)))
				}
			}
			if err := x.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]string{}
		for _, b := range buckets {
			err := x.Each(b, nil, func(k, v []byte) error {
				want[pendingKey(b, k)] = string(v)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, path); !maps.Equal(got, want) {
			t.Fatalf("round %d: the walk finds %d keys, bbolt has %d, or their values differ", round, len(got), len(want))
		}
	}
}

// TestWrongPagesAreDamage: damage that no checksum of a value shows.
func TestWrongPagesAreDamage(t *testing.T) {
	dir := t.TempDir()
	x, err := Open(filepath.Join(dir, "good"), Options{Buckets: buckets})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2000 {
		x.Set(buckets[1], fmt.Appendf(nil, "key %04d", n), []byte("value"))
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "good"))
	if err != nil {
		t.Fatal(err)
	}
	const pageSize = 4096
	// Leaves with fewer than ten elements are not changed: they are those of the small buckets and of
	// the names of the buckets.
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	for name, change := range map[string]func(page []byte) (changed bool){
		"two keys in the wrong order": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			a, b := page[pageHeader:], page[pageHeader+element:]
			// The position of a key is counted from its element.
			posA, posB := u32(a[4:]), u32(b[4:])
			binary.LittleEndian.PutUint32(a[4:], posB+element)
			binary.LittleEndian.PutUint32(b[4:], posA-element)
			return true
		},
		"the same key twice": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			binary.LittleEndian.PutUint32(page[pageHeader+element+4:], u32(page[pageHeader+4:])-element)
			return true
		},
		"a branch's key that is too great": func(page []byte) bool {
			if u16(page[8:]) != branchPage {
				return false
			}
			second := page[pageHeader+element:]
			second[u32(second)] = 'z'
			return true
		},
		"a branch's key that is too small": func(page []byte) bool {
			if u16(page[8:]) != branchPage {
				return false
			}
			second := page[pageHeader+element:]
			second[u32(second)] = 'A'
			return true
		},
		"a bucket's value that is a bucket": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			binary.LittleEndian.PutUint32(page[pageHeader:], bucketLeaf)
			return true
		},
		"a value with the bit of a bucket among others": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			binary.LittleEndian.PutUint32(page[pageHeader:], bucketLeaf|0x10)
			return true
		},
		"a key without bytes": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			binary.LittleEndian.PutUint32(page[pageHeader+8:], 0)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(good)
			changed := 0
			for page := range slices.Chunk(bad[2*pageSize:], pageSize) {
				if change(page) {
					changed++
				}
			}
			if changed == 0 {
				t.Fatal("no page to change")
			}
			path := filepath.Join(t.TempDir(), "index.db")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if x, err := Open(path, Options{Buckets: buckets}); !errors.Is(err, ErrDamaged) {
				t.Error("the file was not found damaged:", err)
				x.Close()
			}
		})
	}
}

// TestOpenWaitsForTheProcessBefore: a server that is being stopped may still write its index. That
// isn't damage.
func TestOpenWaitsForTheProcessBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := Open(path, Options{Buckets: buckets})
	if err != nil {
		t.Fatal(err)
	}
	x.Set(buckets[3], []byte("built"), []byte{1})
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, len(good)), 0); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	time.AfterFunc(200*time.Millisecond, func() {
		_, err := f.WriteAt(good, 0)
		closed <- errors.Join(err, f.Close())
	})
	if all := contents(t, path); len(all) != 1 {
		t.Errorf("%d keys", len(all))
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
