//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/tiertest"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// TestEvictionOnRealServers: lists of the bucket, uploads that nobody goes on with, and last uses in Redis.
func TestEvictionOnRealServers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := openBucket(t, versityConfig(t, "http://"+tiertest.StartVersity(t).Addr))
	eventually(t, "the bucket", func() error {
		return b.Put(ctx, "v1/other/x", bucket.Object{Size: 1}, bytes.NewReader([]byte("x")), "")
	})
	for i := range 5 {
		if err := b.Put(ctx, fmt.Sprint("v1/blobs/a/", i), bucket.Object{Size: int64(i)}, bytes.NewReader(make([]byte, i)), ""); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	var size int64
	err := b.Each(ctx, "v1/blobs", func(page []bucket.Listed) error {
		for _, o := range page {
			names, size = append(names, o.Name), size+o.Size
			if age := time.Since(o.Written); age < -time.Hour || age > time.Hour {
				t.Errorf("%s was written %v ago", o.Name, age)
			}
		}
		return nil
	})
	if err != nil || len(names) != 5 || size != 10 || names[0] != "v1/blobs/a/0" {
		t.Errorf("%v, %d bytes, %v", names, size, err)
	}
	var id string
	broken := b.Upload(ctx, "v1/blobs/large", bucket.Object{Size: 6 << 20}, bytes.NewReader(make([]byte, 100)), "", func(i string) error { id = i; return nil })
	if broken == nil || id == "" {
		t.Fatal("the upload didn't break")
	}
	if n, err := b.AbortOld(ctx, "v1/blobs", time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("of a young upload: %d, %v", n, err)
	}
	if n, err := b.AbortOld(ctx, "v1/blobs", time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("of an old upload: %d, %v", n, err)
	}

	server := tiertest.StartRedis(t)
	r, err := lease.New(lease.Config{Addr: server.Addr, Group: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	eventually(t, "the first use", func() error {
		return r.Use(ctx, false, lease.Use{Name: "a", At: at(10)}, lease.Use{Name: "b", At: at(20)})
	})
	if err := errors.Join(r.Use(ctx, false, lease.Use{Name: "a", At: at(5)}, lease.Use{Name: "c", At: at(15)}), r.Use(ctx, true, lease.Use{Name: "b", At: at(90)}, lease.Use{Name: "d", At: at(1)}), r.Forget(ctx, "c", "nothing")); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Oldest(ctx, 2); err != nil || !slices.Equal(got, []lease.Use{{Name: "d", At: at(1)}, {Name: "a", At: at(10)}}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := r.Oldest(ctx, 9); err != nil || len(got) != 3 || got[2].At != at(20) {
		t.Errorf("%v, %v", got, err)
	}
	server.Kill()
	if _, err := r.Oldest(ctx, 2); err == nil || r.Use(ctx, false, lease.Use{Name: "a", At: at(1)}) == nil || r.Forget(ctx, "a") == nil {
		t.Error("a server that was killed has answered")
	}
}
