package storage

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/index"
)

// numbered returns another digest for each n.
func numbered(n int) digest.Digest {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	return digest.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// indexOf makes a data directory whose index names n blobs of 1 MiB, all linked to one repository.
// There are no files; that is found out only after the start.
func indexOf(tb testing.TB, n int) string {
	tb.Helper()
	dir := tb.TempDir()
	for _, d := range []string{layout(dir).blobs(), layout(dir).ingest(), layout(dir).repos()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	var db *bbolt.DB
	x, err := index.Open(layout(dir).index(), index.Options{Buckets: buckets, Opened: func(opened *bbolt.DB) { db = opened }})
	if err != nil {
		tb.Fatal(err)
	}
	x.Set(bucketMeta, keyBuilt, []byte{1})
	// In order and in large batches: otherwise this would take minutes. bbolt leaves its pages half
	// full, as it does with keys in random order.
	db.NoSync = true
	digests := make([]digest.Digest, n)
	for i := range digests {
		digests[i] = numbered(i)
	}
	slices.Sort(digests)
	for part := range slices.Chunk(digests, 100_000) {
		err := db.Update(func(tx *bbolt.Tx) error {
			for i, d := range part {
				r := record{fileID: fileID{size: 1 << 20, ino: uint64(i), mtime: int64(i)}}
				link := pair("docker.io/library/redis", string(d))
				err := errors.Join(
					tx.Bucket(bucketBlobs).Put([]byte(d), seal([]byte(d), r.encode())),
					tx.Bucket(bucketUses).Put([]byte(d), seal([]byte(d), encodeTime(time.Unix(rand.Int64N(1<<30), 0)))),
					tx.Bucket(bucketLinks).Put(link, seal(link, Link{true, 1 << 20}.encode())),
				)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// seal appends the checksum that the index wants.
func seal(key, value []byte) []byte {
	return binary.LittleEndian.AppendUint32(value, crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, value))
}

// opened loads dir and starts nothing in the background: no reconcile, no eviction.
func opened(tb testing.TB, dir string, budget int64) *Store {
	tb.Helper()
	s := newStore(Options{Dir: dir, Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err := s.house.load(); err != nil {
		tb.Fatal(err)
	}
	return s
}

const plenty = 1 << 50

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemoryOfAnEntry: what is known of a blob takes some 300 bytes of memory, so that a million blobs
// fit in a small machine.
func TestMemoryOfAnEntry(t *testing.T) {
	const n = 30_000 // the map has just grown and has the most free places
	dir := indexOf(t, n)
	before := heap()
	s := opened(t, dir, plenty)
	per := float64(heap()-before) / n
	t.Logf("%.0f bytes an entry", per)
	if per > 450 {
		t.Errorf("%.0f bytes an entry", per)
	}
	if err := s.catalogue.index.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkOpen is the start with a million blobs.
func BenchmarkOpen(b *testing.B) {
	const n = 1_000_000
	dir := indexOf(b, n)
	b.ResetTimer()
	for range b.N {
		before := heap()
		start := time.Now()
		s := opened(b, dir, plenty)
		b.ReportMetric(time.Since(start).Seconds(), "s/start")
		b.ReportMetric(float64(heap()-before)/n, "B/entry")
		b.ReportMetric(float64(s.catalogue.index.Size())/n, "index-B/entry")
		b.StopTimer()
		if err := s.catalogue.index.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkEvict is an eviction with all its accounting, of files that don't exist.
func BenchmarkEvict(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := opened(b, indexOf(b, n), int64(n)<<20)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				r := reservation{room: &s.room}
				if err := r.grow(1 << 20); err != nil {
					b.Fatal(err)
				}
				d := numbered(n + i) // another blob comes in
				s.room.mu.Lock()
				r.commit((&record{fileID: fileID{size: 1 << 20}}).entry(d, 0))
				s.room.mu.Unlock()
			}
			b.StopTimer()
			s.catalogue.index.Close()
		})
	}
}

// BenchmarkHit is what a hit costs without its file. It must not depend on the number of entries.
func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := opened(b, indexOf(b, n), plenty)
			hot := make([]digest.Digest, 500)
			for i := range hot {
				hot[i] = numbered(i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				d := hot[i%len(hot)]
				s.room.mu.Lock()
				e := s.room.lru.Peek(d)
				s.room.lru.Hold(e)
				s.room.mu.Unlock()
				s.Link("docker.io/library/redis", d)
				s.Touch(d)
				s.room.release(e)
			}
			b.StopTimer()
			s.catalogue.index.Close()
		})
	}
}
