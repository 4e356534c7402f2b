package registry_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestColdPullAsksOnceAndWarmPullNever: a pull of an uncached image makes one HEAD for the
// tag and one GET for each manifest and blob. The next pull asks nothing.
func TestColdPullAsksOnceAndWarmPullNever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(4, 3<<20), Index: true, Attestations: true})
		l.pull(img)
		cold := l.hub.Ledger()
		if cold.ManifestHEADs() != 1 || cold.ManifestGETs() != 2 || cold.BlobGETs() != 5 {
			t.Errorf("cold pull:\n%s", cold)
		}
		l.hub.ResetLedger()
		l.pull(img)
		if warm := l.hub.Ledger(); len(warm) != 0 {
			t.Errorf("warm pull:\n%s", warm)
		}
		if v := l.hub.Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
}

// TestWarmPullByTagIsLocal: inside the TTL a pull by tag asks upstream for nothing.
func TestWarmPullByTagIsLocal(t *testing.T) {
	t.Parallel()
	l := newRealTimeLab(t, slog.New(slog.DiscardHandler))
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Index: true, Layers: hubtest.Layers(3, 5<<20)})
	if err := l.servePull(img); err != nil {
		t.Fatal(err)
	}
	l.hub.ResetLedger()
	for range 3 {
		if err := l.servePull(img); err != nil {
			t.Fatal(err)
		}
	}
	if ledger := l.hub.Ledger(); len(ledger) > 0 {
		t.Errorf("upstream saw:\n%s", ledger)
	}
}

// TestSHA512ImageIsCached: an image with sha512 digests is cached like any other.
func TestSHA512ImageIsCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/redis", "512", hubtest.ImageSpec{Layers: hubtest.Layers(2, 2*mib), Algorithm: digest.SHA512})
		l.pullDigest(img)
		l.hub.ResetLedger()
		l.pullDigest(img)
		if len(l.hub.Ledger()) > 0 {
			t.Errorf("upstream saw\n%s", l.hub.Ledger())
		}
	})
}

// TestManifestBytesAreUpstreams: a manifest is answered with the bytes, the media type and
// the digest that upstream gave it, whatever they are, and is never compressed.
func TestManifestBytesAreUpstreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Gzip: true}})
		odd := []byte("{ \"schemaVersion\": 2,\n\t\"odd\" :\"white space\"}\n\n")
		l.hub.AddManifest("library/odd", "1", "application/vnd.example.unknown+json", odd)
		index := l.hub.AddImage("library/index", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true})
		list := l.hub.AddImage("library/list", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100), Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}})
		check := func(path, mediaType string, want []byte) {
			t.Helper()
			for _, method := range []string{"HEAD", "GET", "GET", "HEAD"} {
				r := l.do(method, path, "Accept-Encoding", "gzip")
				h := r.header
				if r.status != 200 || h.Get("Content-Type") != mediaType || h.Get("Content-Length") != fmt.Sprint(len(want)) ||
					h.Get("Docker-Content-Digest") == "" || h.Get("Etag") != `"`+h.Get("Docker-Content-Digest")+`"` || h.Get("Content-Encoding") != "" {
					t.Errorf("%s %s: %d %v", method, path, r.status, h)
				}
				if method == "GET" && !equal(r.body, want) {
					t.Errorf("%s: not the bytes of upstream", path)
				}
			}
		}
		check("/v2/library/odd/manifests/1", "application/vnd.example.unknown+json", odd)
		for _, img := range []*hubtest.Image{index, list} {
			check(manifestPath(img), img.MediaType, img.Bytes)
			for _, m := range img.Manifests {
				check("/v2/"+img.Repository+"/manifests/"+string(m.Digest), m.MediaType, m.Bytes)
			}
		}
		for _, e := range l.hub.Ledger() {
			if strings.Contains(e.Header.Get("Accept-Encoding"), "gzip") {
				t.Errorf("upstream was asked for gzip: %s", e)
			}
		}
	})
}

// TestDigestIsServedAfterAShortOutage: upstream is silent for some seconds. An hour later
// an incomplete image is served by digest again.
func TestDigestIsServedAfterAShortOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/half", "1")
		path := "/v2/library/half/manifests/" + string(img.Digest)
		if r := l.get(path); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Hang())
		l.get(blobPath("library/half", img.Manifests[0].Layers[0].Digest))
		l.hub.ClearFaults()
		time.Sleep(time.Hour)
		l.hub.ResetLedger()
		for range 5 {
			if r := l.get(path); r.status != 200 {
				t.Errorf("an hour after the outage: %d %s; upstream saw %d requests", r.status, r.body, len(l.hub.Ledger()))
			}
			time.Sleep(time.Minute)
		}
	})
}

// TestDigestIsServedAfterTheCredentialIsReplaced: upstream refuses the credential until it
// is replaced. An hour later an incomplete image is served by digest again.
func TestDigestIsServedAfterTheCredentialIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/half", "1")
		path := "/v2/library/half/manifests/" + string(img.Digest)
		if r := l.get(path); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Hour)
		if err := os.WriteFile(l.cred.Path(), []byte("dckr_pat_wrong\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.cred.Reload()
		l.get("/v2/library/half/manifests/other")
		os.WriteFile(l.cred.Path(), []byte(pat+"\n"), 0o600)
		l.cred.Reload()
		time.Sleep(time.Hour)
		l.hub.ResetLedger()
		if r := l.get(path); r.status != 200 {
			t.Errorf("an hour after the credential was replaced: %d %s; upstream saw %d requests", r.status, r.body, len(l.hub.Ledger()))
		}
	})
}

// TestIncompleteImageIsNotOfferedWhileUpstreamIsDown: Podman does not leave a mirror that
// has given it a manifest, so it gets no manifest whose layers cannot be fetched.
func TestIncompleteImageIsNotOfferedWhileUpstreamIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, whole := l.smallImage("library/half", "1"), l.smallImage("library/whole", "1")
		l.pull(whole)
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Hang())
		defer l.hub.ClearFaults()
		l.get(manifestPath(whole)) // finds that upstream is down
		time.Sleep(5 * time.Second)
		for _, ref := range []string{img.Tag, string(img.Digest)} {
			if r := l.get("/v2/library/half/manifests/" + ref); r.status != 503 {
				t.Errorf("%s: %d %s", ref, r.status, r.body)
			}
			if r := l.get("/v2/library/whole/manifests/" + whole.Tag); r.status != 200 {
				t.Errorf("a complete image: %d", r.status)
			}
		}
	})
}

// TestManifestFoundOnDiskCostsNoQuota: a crash loses the record of a manifest but not its
// file. The file is used, and the manifest is not fetched again.
func TestManifestFoundOnDiskCostsNoQuota(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		img := l.smallImage("library/redis", "7")
		l.pull(img)
		l.stop()
		l.removeIndex() // as after a crash between the rename of the file and its record
		os.RemoveAll(filepath.Join(l.dir, "data", "repos"))
		l.start()
		l.get(manifestPath(img))
		time.Sleep(10 * time.Minute)
		l.hub.ResetLedger()
		for range 3 {
			l.get("/v2/library/redis/manifests/" + string(img.Digest))
			time.Sleep(10 * time.Minute)
		}
		if n := l.hub.Ledger().ManifestGETs(); n != 0 {
			t.Errorf("%d GETs of a manifest that is on disk", n)
		}
	})
}
