//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/hubcache/hubcache/integration/tiertest"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// versityConfig returns the settings for a bucket of versitygw.
func versityConfig(t *testing.T, endpoint string) bucket.Config {
	t.Helper()
	dir := t.TempDir()
	c := bucket.Config{
		Endpoint: endpoint, Name: tiertest.BucketName, Prefix: "cache", PathStyle: true, Part: 5 << 20,
		AccessKeyFile: filepath.Join(dir, "access"), SecretKeyFile: filepath.Join(dir, "secret"),
	}
	for file, key := range map[string]string{c.AccessKeyFile: tiertest.AccessKey, c.SecretKeyFile: tiertest.SecretKey} {
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func openBucket(t *testing.T, c bucket.Config) *bucket.Bucket {
	t.Helper()
	b, err := bucket.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// eventually calls f until it returns nil, since a program that starts, or a loaded machine, takes
// its time.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// TestBucketOfARealServer: signatures, metadata, ranges, uploads that go on, a private CA, wrong keys.
func TestBucketOfARealServer(t *testing.T) {
	t.Parallel()
	cert, key, _ := labCertificate(t)
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var args []string
			if scheme == "https" {
				args = []string{"--cert", cert, "--key", key}
			}
			c := versityConfig(t, scheme+"://"+tiertest.StartVersity(t, args...).Addr)
			if scheme == "https" {
				if _, err := openBucket(t, c).Stat(t.Context(), "a"); err == nil || errors.Is(err, bucket.ErrAbsent) {
					t.Errorf("without the CA: %v", err)
				}
				c.CAFile = cert
			}
			useBucket(t, c)
		})
	}
}

func useBucket(t *testing.T, c bucket.Config) {
	b, ctx := openBucket(t, c), t.Context()
	eventually(t, "the first answer", func() error {
		if _, err := b.Stat(ctx, "blobs/a"); !errors.Is(err, bucket.ErrAbsent) {
			return err
		}
		return nil
	})
	content := make([]byte, (5<<20)+100)
	rand.NewChaCha8([32]byte{}).Read(content)
	sum := sha256.Sum256(content)
	small := bucket.Object{Size: 1000, MediaType: "application/x-small", Private: true}
	smallSum := sha256.Sum256(content[:1000])
	if err := b.Put(ctx, "blobs/a", small, bytes.NewReader(content), hex.EncodeToString(sum[:])); err == nil {
		t.Error("the server has taken bytes that don't have the digest")
	}
	for range 2 { // to write the same again is no error
		if err := b.Put(ctx, "blobs/a", small, bytes.NewReader(content), hex.EncodeToString(smallSum[:])); err != nil {
			t.Fatal(err)
		}
	}
	large := bucket.Object{Size: int64(len(content)), MediaType: "application/x-large"}
	var id string
	begun := func(i string) error { id = i; return nil }
	if err := b.Upload(ctx, "blobs/b", large, io.NewSectionReader(bytes.NewReader(content), 0, (5<<20)+50), "", begun); err == nil {
		t.Fatal("the second part was short, and the upload succeeded")
	}
	first := id
	if err := b.Upload(ctx, "blobs/b", large, bytes.NewReader(content), id, begun); err != nil || id != first {
		t.Fatalf("%v; it began anew: %t", err, id != first)
	}
	if err := b.Upload(ctx, "blobs/b", large, bytes.NewReader(content), first, begun); err != nil || id == first {
		t.Errorf("of an upload that has ended: %v", err)
	}
	for name, o := range map[string]bucket.Object{"blobs/a": small, "blobs/b": large} {
		eventually(t, name, func() error {
			if got, err := b.Stat(ctx, name); err != nil || got != o {
				t.Logf("%s: %+v, %v", name, got, err)
				return err
			}
			return nil
		})
		for _, from := range []int64{0, 1, o.Size - 1} {
			body, err := b.Open(ctx, name, from, -1)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			if err != nil || !bytes.Equal(got, content[from:o.Size]) || body.Object != o {
				t.Errorf("%s from %d: %d bytes, %v, %+v", name, from, len(got), err, body.Object)
			}
		}
		if err := b.Delete(ctx, name); err != nil {
			t.Error(err)
		}
		if _, err := b.Open(ctx, name, 0, -1); !errors.Is(err, bucket.ErrAbsent) {
			t.Errorf("after Delete: %v", err)
		}
	}
	other := c
	other.Name = "no-such-bucket"
	if _, err := openBucket(t, other).Open(ctx, "a", 0, -1); err == nil || errors.Is(err, bucket.ErrAbsent) {
		t.Errorf("a bucket that isn't there: %v", err)
	}
	other = c
	other.AccessKeyFile = other.SecretKeyFile
	if _, err := openBucket(t, other).Open(ctx, "a", 0, -1); err == nil || errors.Is(err, bucket.ErrAbsent) {
		t.Errorf("wrong keys: %v", err)
	}
}

// TestLeaseOfARealServer: of many that want it one gets it, and only who has it can keep it or
// give it back.
func TestLeaseOfARealServer(t *testing.T) {
	t.Parallel()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("verysecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := tiertest.StartRedis(t, "--requirepass", "verysecret")
	open := func(c lease.Config) *lease.Redis {
		c.Addr = server.Addr
		r, err := lease.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	r, ctx := open(lease.Config{PasswordFile: password, Group: "a"}), t.Context()
	const ttl = 10 * time.Minute
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		found = map[lease.Lease]int{}
		got   atomic.Int32
	)
	for range 20 {
		mine := lease.Of("http://10.0.0.1:5000")
		wg.Go(func() {
			eventually(t, "Take", func() error {
				l, err := r.Take(ctx, "blob", mine, ttl)
				if err != nil {
					return err
				}
				if l == mine {
					got.Add(1)
				}
				mu.Lock()
				defer mu.Unlock()
				found[l]++
				return nil
			})
		})
	}
	wg.Wait()
	if len(found) != 1 || got.Load() != 1 {
		t.Fatalf("%d holders, %d got it", len(found), got.Load())
	}
	var holder lease.Lease
	for l := range found {
		holder = l
	}
	other := lease.Of("http://10.0.0.2:5000")
	if ok, err := r.Extend(ctx, "blob", other, ttl); ok || err != nil {
		t.Errorf("another has extended it: %v", err)
	}
	if err := r.Release(ctx, "blob", other); err != nil {
		t.Error(err)
	}
	if ok, err := r.Extend(ctx, "blob", holder, ttl); !ok || err != nil {
		t.Errorf("the holder hasn't extended it: %v", err)
	}
	if l, err := r.Replace(ctx, "blob", other, other, ttl); err != nil || l != holder {
		t.Errorf("replaced: %v, %v", l, err)
	}
	if l, err := r.Replace(ctx, "blob", holder, other, ttl); err != nil || l != other {
		t.Errorf("not replaced: %v, %v", l, err)
	}
	if l, err := open(lease.Config{PasswordFile: password, Group: "b"}).Take(ctx, "blob", holder, ttl); err != nil || l != holder {
		t.Errorf("another group: %v, %v", l, err)
	}
	if err := r.Release(ctx, "blob", other); err != nil {
		t.Error(err)
	}
	if l, err := r.Take(ctx, "blob", holder, time.Millisecond); err != nil || l != holder {
		t.Errorf("after Release: %v, %v", l, err)
	}
	eventually(t, "after its time", func() error {
		if l, err := r.Take(ctx, "blob", other, ttl); err != nil || l != other {
			return errors.Join(err, errors.New("still held"))
		}
		return nil
	})
	for name, c := range map[string]lease.Config{"no password": {}, "no file": {PasswordFile: password + "x"}} {
		if _, err := open(c).Take(ctx, "blob", other, ttl); err == nil {
			t.Errorf("%s: it has answered", name)
		}
	}
}

// TestLeaseOfASickServer: stopped, killed, and back. Each call ends, and with its context too.
func TestLeaseOfASickServer(t *testing.T) {
	t.Parallel()
	server := tiertest.StartRedis(t)
	r, err := lease.New(lease.Config{Addr: server.Addr})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	mine := lease.Of("http://10.0.0.1:5000")
	take := func() error { _, err := r.Take(t.Context(), "blob", mine, time.Minute); return err }
	eventually(t, "Take", take)
	server.Stop()
	for range 3 {
		if err := take(); err == nil {
			t.Error("a stopped server has answered")
		}
	}
	why := errors.New("the client has left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := r.Take(ctx, "blob", mine, time.Minute); !errors.Is(err, why) {
		t.Errorf("with an ended context: %v", err)
	}
	server.Continue()
	eventually(t, "after it goes on", take)
	server.Kill()
	if take() == nil {
		t.Error("a killed server has answered")
	}
	if _, err := r.Extend(t.Context(), "blob", mine, time.Minute); err == nil {
		t.Error("a killed server has answered")
	}
	server.Start()
	eventually(t, "after its start", take)
}

// TestNotesOfARealServer: the newer note wins, the longer pause lasts, and another group has its own.
func TestNotesOfARealServer(t *testing.T) {
	t.Parallel()
	server := tiertest.StartRedis(t)
	open := func(group string) *lease.Redis {
		r, err := lease.New(lease.Config{Addr: server.Addr, Group: group})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	r, ctx := open("a"), t.Context()
	eventually(t, "the first note", func() error { return r.Note(ctx, "tag", "an hour ago", time.Hour, time.Hour) })
	for _, n := range []struct {
		value string
		age   time.Duration
	}{{"a minute ago", time.Minute}, {"a day ago", 24 * time.Hour}, {"half an hour ago", 30 * time.Minute}} {
		if err := r.Note(ctx, "tag", n.value, n.age, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range []time.Duration{time.Minute, time.Hour, time.Second} {
		if err := r.Lengthen(ctx, "pause", left); err != nil {
			t.Fatal(err)
		}
	}
	found, err := r.Notes(ctx, "nothing", "tag", "pause")
	if err != nil || len(found) != 3 {
		t.Fatal(found, err)
	}
	if found[0] != (lease.Noted{}) {
		t.Errorf("of nothing: %+v", found[0])
	}
	if n := found[1]; n.Value != "a minute ago" || n.Age < time.Minute || n.Age > 30*time.Minute || n.Left <= 0 || n.Left > time.Hour {
		t.Errorf("of the tag: %+v", n)
	}
	if n := found[2]; n.Value != "" || n.Left < 30*time.Minute || n.Left > time.Hour {
		t.Errorf("of the pause: %+v", n)
	}
	if other, err := open("b").Notes(ctx, "tag", "pause"); err != nil || other[0] != (lease.Noted{}) || other[1] != (lease.Noted{}) {
		t.Errorf("another group: %+v, %v", other, err)
	}
	// A full server refuses all calls, those that need no room too.
	admin := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer admin.Close()
	mine := lease.Of("http://10.0.0.1:5000")
	if _, err := r.Take(ctx, "blob", mine, time.Minute); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"Notes":    func() error { _, err := r.Notes(ctx, "tag"); return err },
		"Note":     func() error { return r.Note(ctx, "tag", "now", 0, time.Hour) },
		"Lengthen": func() error { return r.Lengthen(ctx, "pause", time.Minute) },
		"Take":     func() error { _, err := r.Take(ctx, "blob", mine, time.Minute); return err },
		"Replace":  func() error { _, err := r.Replace(ctx, "blob", mine, mine, time.Minute); return err },
		"Extend":   func() error { _, err := r.Extend(ctx, "blob", mine, time.Minute); return err },
		"Release":  func() error { return r.Release(ctx, "other", mine) },
	}
	for _, full := range []bool{true, false} {
		if err := admin.ConfigSet(ctx, "maxmemory", map[bool]string{true: "1", false: "0"}[full]).Err(); err != nil {
			t.Fatal(err)
		}
		for name, call := range calls {
			if err := call(); (err != nil) != full {
				t.Errorf("%s, full %t: %v", name, full, err)
			}
		}
	}
	server.Stop()
	if _, err := r.Notes(ctx, "tag"); err == nil {
		t.Error("a stopped server has answered")
	}
	if r.Note(ctx, "tag", "now", 0, time.Hour) == nil || r.Lengthen(ctx, "pause", time.Hour) == nil {
		t.Error("a stopped server has answered")
	}
}
