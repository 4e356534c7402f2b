package admin

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/storage"
)

// TestOneImage: each spelling of its name finds it, and nothing in the document is null that isn't
// said to be.
func TestOneImage(t *testing.T) {
	o := idle()
	o.Cache = cache(t, 1<<30, map[string]int{"docker.io/library/redis:latest": 100, "docker.io/org/app:1": 200})
	o.Inspect = inventory.NewLister(o.Cache).Inspect
	get := func(path string) *httptest.ResponseRecorder {
		t.Helper()
		req := httptest.NewRequest(http.MethodGet, "/api/v1/images/"+path, nil)
		req.Host = "localhost"
		w := httptest.NewRecorder()
		New(o).ServeHTTP(w, req)
		return w
	}
	var digest string
	for _, path := range []string{"redis", "redis:latest", "library/redis", "docker.io/library/redis:latest"} {
		w := get(path)
		var doc Inspected
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d, %v\n%s", path, w.Code, err, w.Body)
		}
		if doc.Schema != Schema || doc.Reference != "docker.io/library/redis:latest" || doc.Freed != doc.Bytes || doc.Visibility != "unknown" || len(doc.Manifests) != 1 || doc.Manifests[0].Parts[0].Size != 100 {
			t.Errorf("%s: %+v", path, doc)
		}
		if bytes.Contains(w.Body.Bytes(), []byte("null")) != (doc.VisibilityAt == nil) || bytes.Count(w.Body.Bytes(), []byte("null")) != 1 {
			t.Errorf("%s:\n%s", path, w.Body)
		}
		digest = doc.Digest
	}
	o.Cache.SetVisibility("docker.io/library/redis", storage.Visibility{At: time.Now()})
	if w := get("redis@" + digest); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"visibility": "private"`) || !strings.Contains(w.Body.String(), `"checked": null`) {
		t.Errorf("by digest: %d\n%s", w.Code, w.Body)
	}
	for path, want := range map[string]int{"nginx": 404, "redis:8": 404, "Redis": 400, "redis@sha256:0": 400, digest: 400} {
		if w := get(path); w.Code != want || !strings.Contains(w.Body.String(), `"error"`) {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
	req := httptest.NewRequest(http.MethodGet, "/api/v1/images/redis", nil)
	req.Host = "evil.example"
	if resp := ask(t, o, req); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign Host: %s", resp.Status)
	}
}
