package registry_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// verify verifies the cache and returns what was found.
func (l *lab) verify(repair bool) registry.Verified {
	l.t.Helper()
	res, err := l.reg.Verify(l.t.Context(), registry.VerifyOptions{Repair: repair})
	if err != nil {
		l.t.Error(err)
	}
	return res
}

// spoil flips a byte of each of these cached blobs.
func (l *lab) spoil(ds ...digest.Digest) {
	l.t.Helper()
	for _, d := range ds {
		l.tamper(d, flipByteOnDisk)
	}
}

// bad returns the digests of bad blobs, sorted.
func bad(res registry.Verified) (ds []digest.Digest) {
	for _, b := range res.Bad {
		ds = append(ds, b.Digest)
	}
	slices.Sort(ds)
	return ds
}

func sorted(ds ...digest.Digest) []digest.Digest { return slices.Sorted(slices.Values(ds)) }

// TestVerifyFindsBadBlobsAndAsksNothing: what is bad is dropped and counted, without a question to
// the upstream; the next pull is right.
func TestVerifyFindsBadBlobsAndAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, 1<<20), Platforms: []string{"linux/amd64"}})
		l.pull(img)
		l.drain()
		if res := l.verify(false); len(res.Bad) != 0 || res.Blobs != res.AllBlobs || res.Bytes != l.store.Stats().Bytes {
			t.Fatalf("of a cache that is right: %+v", res)
		}
		m := img.Manifests[0]
		l.spoil(m.Digest, m.Layers[1].Digest)
		l.hub.ResetLedger()
		res := l.verify(false)
		if got, want := bad(res), sorted(m.Digest, m.Layers[1].Digest); !slices.Equal(got, want) {
			t.Errorf("found %v, want %v", got, want)
		}
		if len(l.hub.Ledger()) != 0 {
			t.Errorf("the upstream was asked:\n%s", l.hub.Ledger())
		}
		if st := l.store.Stats(); st.Corrupt != 2 {
			t.Errorf("%d corrupt", st.Corrupt)
		}
		for _, b := range res.Bad {
			if !b.Dropped || b.Repaired || b.Err != nil || !errors.Is(b.Why, storage.ErrDigest) {
				t.Errorf("%+v", b)
			}
		}
		l.pull(img)
		l.checkStore()
	})
}

// TestVerifyRepairs: what was bad is fetched once each, and an image that is pinned is whole and
// pinned again. Then a pull asks nothing of the upstream.
func TestVerifyRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, 1<<20), Platforms: []string{"linux/amd64", "linux/arm64"}})
		l.pull(img)
		l.drain()
		if _, err := l.store.Pin("docker.io/library/app", "1", ""); err != nil {
			t.Fatal(err)
		}
		before := l.store.Stats()
		m := img.Manifests[0]
		harmed := []digest.Digest{img.Digest, m.Digest, m.Config.Digest, m.Layers[0].Digest}
		l.spoil(harmed...)
		l.hub.ResetLedger()
		var events []registry.VerifyEvent
		res, err := l.reg.Verify(t.Context(), registry.VerifyOptions{Repair: true, Report: func(e registry.VerifyEvent) { events = append(events, e) }})
		if err != nil || !slices.Equal(bad(res), sorted(harmed...)) {
			t.Fatalf("%v: found %v", err, bad(res))
		}
		for _, b := range res.Bad {
			if !b.Repaired || b.Err != nil || !slices.Equal(b.Repositories, []string{"docker.io/library/app"}) {
				t.Errorf("%+v", b)
			}
		}
		found, repaired := 0, 0
		for _, e := range events {
			if e.Bad != nil {
				found++
			}
			if e.Repair != nil {
				repaired++
			}
		}
		if last := events[len(events)-1]; found != 4 || repaired != 4 || last.Repair == nil {
			t.Errorf("%d found, %d repaired in the events", found, repaired)
		}
		var want []string
		for i, d := range harmed {
			kind := "manifests"
			if i >= 2 {
				kind = "blobs"
			}
			want = append(want, "GET "+kind+"/"+hubtest.Short(string(d)))
		}
		slices.Sort(want)
		if got := requested(l.hub); !slices.Equal(got, want) {
			t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if after := l.store.Stats(); after.PinnedBytes != before.PinnedBytes || after.Bytes != before.Bytes || after.PinnedBytes == 0 {
			t.Errorf("pinned %d of %d bytes, before %d of %d", after.PinnedBytes, after.Bytes, before.PinnedBytes, before.Bytes)
		}
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		l.pull(img)
		l.checkStore()
	})
}

// TestVerifyRenewsReferrers: a list of referrers has no digest that the upstream knows.
func TestVerifyRenewsReferrers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, path := l.attested("library/app")
		list, err := l.store.Tag("docker.io/library/app", string(img.Manifests[1].Digest))
		if err != nil {
			t.Fatal(err)
		}
		l.spoil(list.Digest)
		time.Sleep(time.Minute)
		if res := l.verify(true); len(res.Bad) != 1 || !res.Bad[0].Repaired {
			t.Fatalf("%+v", res.Bad)
		}
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		time.Sleep(time.Minute)
		if r := l.get(path); r.status != 200 || !strings.Contains(string(r.body), "signature/1") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}

// TestVerifyThatCannotRepairSaysWhy, and goes on with the others.
func TestVerifyThatCannotRepairSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		gone := l.addImage("library/gone", "1", 1<<20)[0]
		kept := l.addImage("library/kept", "1", 2<<20)[0]
		for _, r := range []struct {
			repository string
			d          digest.Digest
		}{{"library/gone", gone}, {"library/kept", kept}} {
			l.get("/v2/" + r.repository + "/manifests/1")
			l.fetch(r.repository, r.d)
		}
		l.spoil(gone, kept)
		l.hub.Inject(hubtest.Match{Reference: string(gone)}, hubtest.Status(http.StatusNotFound, `{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}`))
		res := l.verify(true)
		if len(res.Bad) != 2 {
			t.Fatalf("%+v", res.Bad)
		}
		for _, b := range res.Bad {
			if b.Repaired != (b.Digest == kept) || (b.Err == nil) != b.Repaired {
				t.Errorf("%+v", b)
			}
		}
	})
}

// TestVerifyWithoutTheUpstream finds out once that it is down, and not for each blob.
func TestVerifyWithoutTheUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(20, 1<<10)})
		l.pull(img)
		l.drain()
		var harmed []digest.Digest
		for _, layer := range img.Blobs()[1:] { // without the config
			harmed = append(harmed, layer.Digest)
		}
		l.spoil(harmed...)
		rule := l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		start := time.Now()
		res := l.verify(true)
		took := time.Since(start)
		for _, b := range res.Bad {
			if b.Repaired || b.Err == nil {
				t.Errorf("%+v", b)
			}
		}
		if len(res.Bad) != len(harmed) || took > 10*time.Second {
			t.Errorf("%d of %d, in %s", len(res.Bad), len(harmed), took)
		}
		rule.Remove()
	})
}

// TestVerifyRepairsNothingPrivate of which clients may have nothing: the repository has become
// private and isn't in the list. What is in the list is fetched, and stays private.
func TestVerifyRepairsNothingPrivate(t *testing.T) {
	for _, listed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/secret"} }})
			l.hub.SetPrivate("corp/secret", true)
			d := l.addImage("corp/secret", "1", 1<<20)[0]
			l.get("/v2/corp/secret/manifests/1")
			l.fetch("corp/secret", d)
			if !listed {
				l.setPolicy(func(p *registry.Policy) { p.Private = nil })
			}
			l.spoil(d)
			l.hub.ResetLedger()
			res := l.verify(true)
			if len(res.Bad) != 1 || res.Bad[0].Repaired != listed {
				t.Fatalf("listed %v: %+v", listed, res.Bad)
			}
			if got := requested(l.hub); !listed && len(got) > 0 {
				t.Errorf("it was asked for: %q", got)
			}
			if listed {
				b, err := l.store.Open(d)
				if err != nil || !b.Private {
					t.Fatalf("%+v, %v: it isn't private any more", b, err)
				}
				b.Close()
			}
		})
	}
}

// TestVerifyKeepsItsPace: 64 MiB a second, and 8 while a client gets a blob.
func TestVerifyKeepsItsPace(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{})
			l.zeroImage("library/large", 8<<20)
			l.pullLayers("library/large")
			want := time.Second / 8
			if busy {
				want = time.Second
				d := l.oneLayerImage(1 << 20)
				l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Delay(3*time.Second))
				done := make(chan struct{})
				go func() { defer close(done); l.get(blobPath("library/one", d)) }()
				defer func() { <-done }()
				synctest.Wait()
			}
			began := time.Now()
			res := l.verify(false)
			if took := time.Since(began); res.Bytes < 8<<20 || took < want || took > want*11/10 {
				t.Errorf("busy %v: %d bytes in %s", busy, res.Bytes, took)
			}
		})
	}
}

// TestOneVerifyAtATime, and it ends with the one who waits for it, or with the server.
func TestOneVerifyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.zeroImage("library/large", 16<<20)
		l.pullLayers("library/large")
		begin := func(ctx context.Context) <-chan error {
			done := make(chan error, 1)
			go func() { _, err := l.reg.Verify(ctx, registry.VerifyOptions{}); done <- err }()
			time.Sleep(100 * time.Millisecond)
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := begin(ctx)
		if _, err := l.reg.Verify(t.Context(), registry.VerifyOptions{}); !errors.Is(err, registry.ErrVerifying) {
			t.Errorf("the second: %v", err)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
		third := begin(t.Context())
		l.stop()
		if err := <-third; err == nil || !strings.Contains(err.Error(), "stopping") {
			t.Errorf("the server stops: %v", err)
		}
		l.start()
	})
}

// TestVerifyLeavesAFileThatCannotBeOpened: that says nothing of its bytes.
func TestVerifyLeavesAFileThatCannotBeOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		d := l.addImage("library/app", "1", 1<<20)[0]
		l.get("/v2/library/app/manifests/1")
		l.fetch("library/app", d)
		l.waitIdle()
		path := l.blobFile(d)
		if err := errors.Join(os.Rename(path, path+".away"), os.Symlink(path, path)); err != nil { // a loop
			t.Fatal(err)
		}
		res := l.verify(true)
		if len(res.Bad) != 1 || res.Bad[0].Dropped || res.Bad[0].Repaired || res.Bad[0].Err == nil {
			t.Errorf("%+v", res.Bad)
		}
		if _, ok := l.store.Has(d); !ok {
			t.Error("it was dropped")
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	})
}
