package registry_test

import (
	"bytes"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// TestPrivateRepositoryIsUnknown: a private repository that the private list does not name
// is answered with 404, though the credential could read it.
func TestPrivateRepositoryIsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, opaque := range []bool{false, true} {
			l := newLab(t, labOptions{hub: hubtest.Options{OpaqueTokens: opaque}})
			img := l.smallImage("corp/secret", "1")
			l.hub.SetPrivate("corp/secret", true)
			for range 2 {
				for _, path := range []string{manifestPath(img), "/v2/corp/secret/manifests/" + string(img.Digest),
					blobPath("corp/secret", img.Manifests[0].Layers[0].Digest), "/v2/corp/secret/tags/list", "/v2/corp/secret/referrers/" + string(img.Digest)} {
					if r := l.get(path); r.status != 404 {
						t.Errorf("%s: %d %s", path, r.status, r.body)
					}
				}
			}
		}
	})
}

// TestNothingIsStoredBeforeVisibilityIsKnown: the first request for a repository asks for
// the tag and for the visibility at once. Nothing is stored before the repository is known
// to be public, so a forged index that names the private manifest gets nothing.
func TestNothingIsStoredBeforeVisibilityIsKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		secret := l.smallImage("corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		l.hub.AddManifest("evil/public", "index", "application/vnd.oci.image.index.v1+json",
			[]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(secret.Digest)+`","size":1}]}`))
		l.hub.Inject(hubtest.Match{Face: hubtest.Token, Times: 1, Skip: 1}, hubtest.Delay(time.Second)) // the visibility is known late
		if r := l.get(manifestPath(secret)); r.status != 404 {
			t.Fatal(r.status)
		}
		if st := l.store.Stats(); st.Bytes != 0 || st.Tags != 0 {
			t.Errorf("stored: %+v", st)
		}
		if r := l.get("/v2/evil/public/manifests/index"); r.status != 200 {
			t.Fatal(r.status)
		}
		if r := l.get("/v2/evil/public/manifests/" + string(secret.Digest)); r.status != 404 {
			t.Errorf("the private manifest under another repository: %d", r.status)
		}
	})
}

// TestListedPrivateRepositoryIsServedAndDoesNotLeak: a private repository that the private
// list names is served. Its blobs and manifests are not served under a public repository
// that merely names their digests: not before they are cached, not while they are
// downloaded, and not afterwards.
func TestListedPrivateRepositoryIsServedAndDoesNotLeak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/*"} }})
		secret := l.smallImage("corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		layer := secret.Manifests[0].Layers[0].Digest

		// A public repository whose manifest names the private layer, but which does not have it.
		forged := []byte(`{"schemaVersion":2,"config":{"digest":"` + string(secret.Manifests[0].Config.Digest) + `","size":1},"layers":[{"digest":"` + string(layer) + `","size":65536}]}`)
		d := l.hub.AddManifest("evil/public", "1", "application/vnd.oci.image.manifest.v1+json", forged)
		l.hub.AddManifest("evil/public", "index", "application/vnd.oci.image.index.v1+json",
			[]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(secret.Digest)+`","size":1}]}`))
		steal := func(when string) {
			t.Helper()
			for _, path := range []string{blobPath("evil/public", layer), "/v2/evil/public/manifests/" + string(secret.Digest)} {
				for _, method := range []string{"GET", "HEAD"} {
					if r := l.do(method, path); r.status != 404 {
						t.Errorf("%s: %s %s: %d", when, method, path, r.status)
					}
				}
			}
		}
		for _, tag := range []string{"1", "index", string(d.Digest)} {
			if r := l.get("/v2/evil/public/manifests/" + tag); r.status != 200 {
				t.Fatal(r.status)
			}
		}
		steal("before")
		l.hub.Set(func(o *hubtest.Options) { o.Bandwidth = 10_000 })
		done := make(chan bool)
		go func() { l.pull(secret); close(done) }()
		time.Sleep(2 * time.Second)
		steal("while it is downloaded")
		<-done
		steal("when it is cached")
		l.stop()
		l.start()
		steal("after a restart")
		l.pull(secret)

		// A repository that really has the layer gets it, after one HEAD.
		l.hub.LinkBlob("evil/public", layer)
		time.Sleep(time.Minute)
		l.hub.ResetLedger()
		for range 3 {
			l.blob("evil/public", string(layer))
		}
		if n := len(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Kind == "blobs" })); n != 1 || l.hub.Ledger().BlobBytes() != 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}

// TestPrivateBlobStaysPrivateAfterIndexRebuild: what
// TestListedPrivateRepositoryIsServedAndDoesNotLeak says of a restart also holds when the
// index is lost and rebuilt from the files.
func TestPrivateBlobStaysPrivateAfterIndexRebuild(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/*"} }})
		secret := l.smallImage("corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		layer := secret.Manifests[0].Layers[0].Digest
		orphan := l.hub.AddBlob("corp/secret", "application/octet-stream", bytes.Repeat([]byte("s3cret"), 1000)).Digest
		forged := []byte(`{"schemaVersion":2,"config":{"digest":"` + string(secret.Manifests[0].Config.Digest) + `","size":1},"layers":[{"digest":"` + string(layer) + `","size":65536},{"digest":"` + string(orphan) + `","size":6000}]}`)
		l.hub.AddManifest("evil/forged", "1", "application/vnd.oci.image.manifest.v1+json", forged)
		l.hub.AddManifest("evil/public", "index", "application/vnd.oci.image.index.v1+json",
			[]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(secret.Digest)+`","size":1}]}`))
		l.pull(secret)
		l.blob("corp/secret", string(orphan))
		l.get("/v2/evil/public/manifests/index")
		l.get("/v2/evil/forged/manifests/1")
		paths := []string{blobPath("evil/forged", layer), blobPath("evil/forged", orphan), "/v2/evil/public/manifests/" + string(secret.Digest)}
		for _, p := range paths {
			if r := l.get(p); r.status != 404 {
				t.Errorf("before: %s %d", p, r.status)
			}
		}
		time.Sleep(5 * time.Second)
		l.stop()
		l.removeIndex()
		l.start()
		for _, p := range paths {
			if r := l.get(p); r.status != 404 {
				t.Errorf("after a rebuild: %s %d %.60q", p, r.status, r.body)
			}
		}
	})
}

// TestPrivateBlobThatCannotBeOpenedStaysPrivate: opening a private blob fails with an error
// other than ENOENT (as EMFILE or EIO would; here ELOOP). Another repository still gets
// 404.
func TestPrivateBlobThatCannotBeOpenedStaysPrivate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Private = []string{"corp/*"} }})
		secret := l.smallImage("corp/secret", "1")
		l.hub.SetPrivate("corp/secret", true)
		l.smallImage("evil/public", "1")
		l.pull(secret)
		time.Sleep(time.Second) // the blob is committed
		d := secret.Manifests[0].Layers[0].Digest
		file := l.blobFile(d)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, file); err != nil {
			t.Fatal(err)
		}
		if _, err := l.store.Open(d); err == nil {
			t.Fatal("the blob could be opened")
		} else {
			t.Log(err)
		}
		if r := l.do("HEAD", blobPath("evil/public", d)); r.status != 404 {
			t.Errorf("HEAD: %d %v", r.status, r.header)
		}
		if r := l.do("GET", blobPath("evil/public", d)); r.status != 404 {
			t.Errorf("GET: %d %v", r.status, r.header)
		}
	})
}

// TestVisibilityCheckNeedsNoAnonymousQuota: with the quota of anonymous pulls used up, a
// public repository is still found to be public, and manifests are asked for with the
// credential.
func TestVisibilityCheckNeedsNoAnonymousQuota(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.hub.SetUsed("", 1000)
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		for _, e := range l.hub.Ledger() {
			if e.Face == hubtest.Registry && e.Kind == "manifests" && e.Account != username && e.Status != 401 {
				t.Errorf("without the credential: %s", e)
			}
		}
		if l.hub.Used("") != 0 && l.hub.Used("") != 1000 {
			t.Errorf("anonymous pulls: %d", l.hub.Used(""))
		}
	})
}

// TestImageOfUnknownVisibilityIsNotServed: as long as nobody knows whether a repository is
// public, its image is refused. A visibility that was known stays in force while it is
// renewed and while it cannot be renewed; a repository that became private is then refused.
func TestImageOfUnknownVisibilityIsNotServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/redis", "7")
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Status(500, "oops"))
		r := l.get(manifestPath(img))
		if r.status != 429 || r.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", r.status, r.body)
		}
		rule.Remove()
		time.Sleep(time.Minute)
		l.pull(img)
		// A day later the visibility is old, and can't be renewed.
		time.Sleep(25 * time.Hour)
		l.hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Status(500, "oops"))
		if r := l.get("/v2/library/redis/manifests/" + string(img.Digest)); r.status != 200 {
			t.Errorf("with an old visibility: %d", r.status)
		}
		l.hub.ClearFaults()
		l.hub.SetPrivate("library/redis", true)
		time.Sleep(2 * time.Hour)
		l.get("/v2/library/redis/manifests/" + string(img.Digest))
		time.Sleep(2 * time.Minute)
		if r := l.get("/v2/library/redis/manifests/" + string(img.Digest)); r.status != 404 {
			t.Errorf("after it became private: %d", r.status)
		}
	})
}

// TestVisibilityDatedInTheFutureIsRechecked: a visibility stored while the clock was wrong
// does not last until that time comes.
func TestVisibilityDatedInTheFutureIsRechecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("corp/app", "1")
		l.store.SetVisibility("docker.io/corp/app", storage.Visibility{Public: false, At: time.Now().Add(10 * 365 * 24 * time.Hour)})
		for range 3 {
			l.get(manifestPath(img))
			time.Sleep(5 * time.Minute)
		}
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Errorf("a public repository after 15 minutes: %d", r.status)
		}
	})
}

// TestDeniedRepositoryIsUnknownWithoutAskingUpstream: a repository outside allow or inside
// deny is answered with 404, also for blobs that are cached for others, and upstream is not
// asked.
func TestDeniedRepositoryIsUnknownWithoutAskingUpstream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Allow, p.Deny = []string{"library/*"}, []string{"library/bad"} }})
		base := hubtest.Layer{Size: 5000, Seed: 7}
		good := l.hub.AddImage("library/good", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{base}})
		l.pull(good)
		l.hub.ResetLedger()
		for _, repository := range []string{"library/bad", "corp/app"} {
			img := l.hub.AddImage(repository, "1", hubtest.ImageSpec{Layers: []hubtest.Layer{base}})
			for _, path := range []string{manifestPath(img), "/v2/" + repository + "/manifests/" + string(img.Digest), blobPath(repository, img.Manifests[0].Layers[0].Digest), "/v2/" + repository + "/tags/list"} {
				if r := l.get(path); r.status != 404 {
					t.Errorf("%s: %d", path, r.status)
				}
			}
		}
		if len(l.hub.Ledger()) > 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}

// TestManifestRequestedUnderTheOldPolicyIsDeniedByTheNew: a manifest that was requested
// before the policy was replaced is not kept in memory for requests that come after it.
func TestManifestRequestedUnderTheOldPolicyIsDeniedByTheNew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		l.hub.AddManifest("other/copy", "1", img.MediaType, img.Bytes)
		l.hub.Inject(hubtest.Match{Repository: "other/copy"}, hubtest.Delay(time.Second))
		path := "/v2/other/copy/manifests/" + string(img.Digest)
		done := make(chan bool)
		go func() { l.get(path); close(done) }()
		time.Sleep(500 * time.Millisecond)
		l.setPolicy(func(p *registry.Policy) { p.Deny = []string{"other/*"} })
		<-done
		if r := l.get(path); r.status != 404 {
			t.Errorf("after it was denied: %d %s", r.status, r.header.Get("X-Hubcache"))
		}
	})
}
