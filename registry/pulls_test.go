package registry_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestPullsAreCountedByReference: each answer to a GET or HEAD counts, from memory, from the store,
// from upstream and stale; what is refused doesn't, and neither does a range of a blob.
func TestPullsAreCountedByReference(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/redis", "7")
		byDigest := "/v2/library/redis/manifests/" + img.Digest.String()
		for _, step := range []struct {
			name        string
			do          func()
			tag, digest int64 // counts after it
		}{
			{"a cold HEAD, which counts when the manifest has come", func() { l.do(http.MethodHead, manifestPath(img)) }, 0, 0},
			{"a cold GET by digest", func() { l.get(byDigest) }, 1, 1},
			{"a GET by tag", func() { l.get(manifestPath(img)) }, 2, 1},
			{"a GET from memory", func() { l.get(manifestPath(img)) }, 3, 1},
			{"a HEAD from memory", func() { l.do(http.MethodHead, manifestPath(img)) }, 4, 1},
			{"an If-None-Match", func() { l.get(manifestPath(img), "If-None-Match", `"`+img.Digest.String()+`"`) }, 5, 1},
			{"a check", func() { time.Sleep(10 * time.Minute); l.get(manifestPath(img)) }, 6, 1},
			{"a tag that isn't there", func() { l.get("/v2/library/redis/manifests/8") }, 6, 1},
			{"another method", func() { l.do(http.MethodPut, manifestPath(img)) }, 6, 1},
			{"its blobs", func() {
				for _, b := range img.Blobs() {
					l.fetch("library/redis", b.Digest)
				}
			}, 6, 1},
			{"a stale tag", func() {
				l.hub.Inject(hubtest.Match{}, hubtest.Status(http.StatusInternalServerError, ""))
				time.Sleep(10 * time.Minute)
				l.get(manifestPath(img))
			}, 7, 1},
		} {
			step.do()
			tag, err := l.store.Pulls("docker.io/library/redis", "7")
			if err != nil {
				t.Fatal(err)
			}
			digest, err := l.store.Pulls("docker.io/library/redis", img.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			if tag != step.tag || digest != step.digest {
				t.Errorf("after %s: %d by tag and %d by digest, want %d and %d", step.name, tag, digest, step.tag, step.digest)
			}
		}
		if n, _ := l.store.Pulls("docker.io/library/redis", "8"); n != 0 {
			t.Errorf("%d pulls of a tag that isn't there", n)
		}
	})
}
