package registry_test

import (
	"context"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// tamper changes the file of a cached blob without the store's knowledge.
func (l *lab) tamper(d digest.Digest, change func(path string) error) {
	l.t.Helper()
	l.waitIdle()
	if err := os.Chmod(l.blobFile(d), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := change(l.blobFile(d)); err != nil {
		l.t.Fatal(err)
	}
}

// flipByteOnDisk changes one byte of a file, and neither its size nor its time.
func flipByteOnDisk(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	f.ReadAt(b, fi.Size()/2)
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, fi.Size()/2); err != nil {
		return err
	}
	return os.Chtimes(path, fi.ModTime(), fi.ModTime())
}

// TestChangedBlobFileIsAMiss: a cached blob whose file was changed is downloaded once more.
// Clients see no error and no wrong or missing byte.
func TestChangedBlobFileIsAMiss(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 1000) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"grown":     func(path string) error { return os.Truncate(path, 9<<20) },
		"replaced": func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 0xff
			os.Remove(path)
			return os.WriteFile(path, b, 0o600)
		},
		"written to": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			time.Sleep(time.Second)
			_, err = f.WriteAt([]byte("other"), 99)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
				d := l.addImage("library/app", "1", 5<<18)[0]
				l.get("/v2/library/app/manifests/1")
				l.fetch("library/app", d)
				l.tamper(d, change)
				l.hub.ResetLedger()
				for _, c := range l.mixedClients("library/app", d) {
					c.check(t, l, d, whole)
				}
				if n := l.hub.Ledger().BlobGETs(); n != 1 {
					t.Errorf("%d downloads:\n%s", n, l.hub.Ledger())
				}
				l.checkStore(d)
			})
		})
	}
}

// TestBlobTruncatedWhileSentIsCompletedFromUpstream: a client in the middle of a blob whose
// file is truncated gets the rest from upstream.
func TestBlobTruncatedWhileSentIsCompletedFromUpstream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
		d := l.addImage("library/app", "1", 17<<19)[0]
		l.get("/v2/library/app/manifests/1")
		l.fetch("library/app", d)
		l.waitIdle()
		resp, err := l.ask(context.Background(), "GET", "/v2/library/app/blobs/"+string(d))
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		defer resp.Body.Close()
		b := l.hub.Blob(d)
		c := &client{}
		if err := c.compare(io.LimitReader(resp.Body, 1<<20), b); err != nil {
			t.Fatal(err)
		}
		l.tamper(d, func(path string) error { return os.Truncate(path, 5<<20) })
		if err := c.compare(resp.Body, b); err != nil || c.wrong || c.n != b.Size() {
			t.Errorf("%d of %d bytes, wrong: %v, %v\n%s", c.n, b.Size(), c.wrong, err, l.log)
		}
		l.fetch("library/app", d)
		l.checkStore(d)
	})
}

// TestBitRotIsFoundOnRepeatedRequests: only the bytes of a file differ, not its size or
// time. When a client asks for the same whole blob twice within a minute, the blob is
// hashed, and the third answer is right. A manifest is hashed every time it is read.
func TestBitRotIsFoundOnRepeatedRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
		d := l.addImage("library/app", "1", 5<<18)[0]
		m := l.get("/v2/library/app/manifests/1")
		l.fetch("library/app", d)
		l.tamper(d, flipByteOnDisk)
		// It was hashed when it was downloaded, and isn't hashed again for ten minutes.
		for range 3 {
			(&client{}).get(l, "library/app", d)
			synctest.Wait()
		}
		if n := l.store.Stats().Corrupt; n != 0 {
			t.Errorf("hashed %d times right after the download", n)
		}
		time.Sleep(10*time.Minute + time.Second)
		for range 2 {
			c := &client{}
			if c.get(l, "library/app", d); c.err != nil || !c.wrong {
				t.Fatalf("%v, wrong bytes: %v: the test damaged nothing", c.err, c.wrong)
			}
			time.Sleep(time.Second) // the hashing takes its time
		}
		l.fetch("library/app", d)
		if n := l.store.Stats().Corrupt; n != 1 {
			t.Errorf("%d corrupt blobs counted", n)
		}
		l.checkStore(d)

		l.tamper(digest.FromBytes(m.body), flipByteOnDisk)
		l.stop() // so that no copy is in memory
		l.start()
		if r := l.get("/v2/library/app/manifests/1"); r.status != 200 || !equal(r.body, m.body) {
			t.Errorf("a damaged manifest: %d %q", r.status, r.body)
		}
		l.checkStore()
	})
}

// TestOccasionalRequestsCauseNoRehash: a blob that is requested every two minutes is not
// hashed again.
func TestOccasionalRequestsCauseNoRehash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
		d := l.addImage("library/app", "1", 5<<18)[0]
		l.get("/v2/library/app/manifests/1")
		l.fetch("library/app", d)
		time.Sleep(10*time.Minute + time.Second) // before that it is never hashed again
		l.tamper(d, flipByteOnDisk)
		for range 3 {
			(&client{}).get(l, "library/app", d)
			time.Sleep(2 * time.Minute)
		}
		if n := l.store.Stats().Corrupt; n != 0 {
			t.Errorf("hashed %d times", n)
		}
	})
}

// TestRebuiltIndexServesWithoutUpstream: after the index is lost, everything that was
// cached is served from the files, with upstream unreachable.
func TestRebuiltIndexServesWithoutUpstream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(3, 2*mib), Index: true})
		l.pull(img)
		l.drain()
		l.stop()
		l.removeIndex()
		l.start()
		l.hub.Inject(hubtest.Match{}, hubtest.Drop())
		time.Sleep(2 * time.Minute)
		l.hub.ResetLedger()
		l.pull(img)
		if n := l.hub.Ledger().BlobGETs() + l.hub.Ledger().ManifestGETs(); n != 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}
