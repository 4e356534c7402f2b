package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/name"
)

// TestUnservedRegistriesAreNamed: whatever is asked about an image that isn't cached, and whose
// registry isn't configured, the answer says that.
func TestUnservedRegistriesAreNamed(t *testing.T) {
	s := cache(t, 1<<20, map[string]int{"quay.io/org/old:1": 100})
	h := New(Options{Store: s, Cache: s, Registry: fakeRegistry{}, Forget: func(string) {}, Unserved: func(ref name.Reference) error {
		return fmt.Errorf("does not serve %s", ref.Repository)
	}})
	for _, c := range []struct{ method, path string }{
		{http.MethodPut, "/api/v1/pins/"}, {http.MethodDelete, "/api/v1/images/"}, {http.MethodGet, "/api/v1/export/"},
	} {
		for ref, want := range map[string]int{"ghcr.io/org/app:1": http.StatusNotFound, "quay.io/org/old:1": http.StatusOK} {
			req := httptest.NewRequest(c.method, "http://localhost"+c.path+ref, nil)
			req.RemoteAddr = "127.0.0.1:1"
			req.Header.Set("X-Hubcache-Admin", "1")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if c.method == http.MethodDelete && want == http.StatusOK {
				continue // it would be gone for the next
			}
			if w.Code != want || want == http.StatusNotFound && !strings.Contains(w.Body.String(), "ghcr.io/org/app:1: does not serve ghcr.io/org/app") {
				t.Errorf("%s %s%s: %d %s", c.method, c.path, ref, w.Code, w.Body)
			}
		}
	}
}
