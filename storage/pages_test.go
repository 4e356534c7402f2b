package storage

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

// nothing is a visitor that wants to know nothing.
func nothing(_, _, _ []byte) error { return nil }

// contents opens the index at path and returns what the walk of its pages finds, as
// bucket\0key → value.
func contents(t *testing.T, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	// All are first, or two would come at a time.
	x, err := openIndex(path, buckets, func(bucket, key, value []byte) error {
		all[pendingKey(bucket, key)] = string(value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWalkFindsWhatBboltHas: after any history of writes the walk of the pages finds nothing
// wrong, and all keys and values that bbolt has.
func TestWalkFindsWhatBboltHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	for round := range 12 {
		x, err := openIndex(path, nil, nothing)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for range 1 + rand.IntN(5) {
			for range rand.IntN(2000) {
				bucket := buckets[rand.IntN(len(buckets))]
				key := fmt.Appendf(nil, "%x", rand.IntN(3000))
				if rand.IntN(12) < round { // it fills up first and is empty in the end
					x.delete(bucket, key)
				} else {
					x.set(bucket, key, noise(rand.Uint64(), rand.IntN(100)+rand.IntN(2)*rand.IntN(9000)))
				}
			}
			if err := x.flush(); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]string{}
		for _, b := range buckets {
			err := x.each(b, nil, func(k, v []byte) error {
				want[pendingKey(b, k)] = string(v)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := x.close(); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, path); !maps.Equal(got, want) {
			t.Fatalf("round %d: the walk finds %d keys, bbolt has %d, or their values differ", round, len(got), len(want))
		}
	}
}

// TestPagesThatLie: damage that no checksum of a value tells of.
func TestPagesThatLie(t *testing.T) {
	dir := t.TempDir()
	x, err := openIndex(filepath.Join(dir, "good"), nil, nothing)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2000 {
		x.set(bucketLinks, fmt.Appendf(nil, "key %04d", n), []byte("value"))
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "good"))
	if err != nil {
		t.Fatal(err)
	}
	const pageSize = 4096
	// Leaves with fewer than ten elements are those of the small buckets and of their names.
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	for name, lie := range map[string]func(page []byte) (lied bool){
		"two keys in the wrong order": func(page []byte) bool {
			if u16(page[8:]) != leafPage || u16(page[10:]) < 10 {
				return false
			}
			a, b := page[pageHeader:], page[pageHeader+element:]
			// Where a key lies is counted from its element.
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
			lied := 0
			for page := range slices.Chunk(bad[2*pageSize:], pageSize) {
				if lie(page) {
					lied++
				}
			}
			if lied == 0 {
				t.Fatal("no page to change")
			}
			path := filepath.Join(t.TempDir(), "index.db")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if x, err := openIndex(path, nil, nothing); !errors.Is(err, errDamaged) {
				t.Error("it was believed:", err)
				x.close()
			}
		})
	}
}

// TestIndexThatIsStillWritten: the server before may still be closing its index, and what it
// is writing at that moment is no damage.
func TestIndexThatIsStillWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := openIndex(path, nil, nothing)
	if err != nil {
		t.Fatal(err)
	}
	x.set(bucketMeta, keyBuilt, []byte{1})
	if err := x.close(); err != nil {
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
