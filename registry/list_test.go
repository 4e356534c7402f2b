package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestListsArePassedThroughAndCached: tag lists and referrers come from upstream, are kept
// for the TTL, and are served stale while upstream fails. Unknown referrers are an empty
// index.
func TestListsArePassedThroughAndCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		for _, tag := range []string{"1", "2", "3"} {
			l.smallImage("library/redis", tag)
		}
		r := l.get("/v2/library/redis/tags/list?n=2")
		if r.status != 200 || !strings.Contains(string(r.body), `"1"`) || !strings.HasPrefix(r.header.Get("Link"), "</v2/library/redis/tags/list?") {
			t.Errorf("%d %v %s", r.status, r.header, r.body)
		}
		if r := l.get("/v2/library/redis/tags/list?n=2&last=2"); !strings.Contains(string(r.body), `"3"`) || strings.Contains(string(r.body), `"1"`) {
			t.Errorf("%s", r.body)
		}
		n := len(l.hub.Ledger())
		l.get("/v2/library/redis/tags/list?n=2")
		if len(l.hub.Ledger()) != n {
			t.Error("asked again inside the TTL")
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		if r := l.get("/v2/library/redis/tags/list?n=2"); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("a cached list while upstream fails: %d %v", r.status, r.header)
		}
		if r := l.get("/v2/library/redis/tags/list"); r.status != 502 {
			t.Errorf("a list that is not cached: %d", r.status)
		}
		d := string(digest.FromString("x"))
		r = l.get("/v2/library/redis/referrers/" + d)
		if r.status != 200 || r.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" || !strings.Contains(string(r.body), `"manifests":[]`) || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("referrers: %d %v %s", r.status, r.header, r.body)
		}
		l.hub.ClearFaults()
		l.hub.Set(func(o *hubtest.Options) { o.NoReferrers = true })
		if r := l.get("/v2/library/redis/referrers/" + d); r.status != 200 || !strings.Contains(string(r.body), `"manifests":[]`) {
			t.Errorf("referrers that upstream does not know: %d %s", r.status, r.body)
		}
		if r := l.get("/v2/library/redis/referrers/sha256:bad"); r.status != http.StatusBadRequest {
			t.Errorf("a bad digest: %d", r.status)
		}
		l.get("/v2/library/redis/manifests/1")
		if r := l.get("/v2/_catalog"); !strings.Contains(string(r.body), `["library/redis"]`) {
			t.Errorf("catalogue: %s", r.body)
		}
	})
}

// TestCachedListsAreBoundedInBytes: lists of any length do not fill the memory.
func TestCachedListsAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		body := []byte(`{"name":"library/x","tags":["` + strings.Repeat("a", 3*mib) + `"]}`)
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range 30 {
			l.get(fmt.Sprintf("/v2/library/x/tags/list?n=1000&last=%d", n))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 64*mib {
			t.Errorf("30 lists of 3 MiB took %d MiB of memory", grew/mib)
		}
	})
}
