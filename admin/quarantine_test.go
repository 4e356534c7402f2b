package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/registry"
)

// oneWaits is a quarantine in which one tag waits.
type oneWaits struct{ released bool }

var waits = quarantine.Waiting{Digest: digest.FromString("new"), Until: time.Unix(1e9, 0)}

func (o *oneWaits) Waiting(repository, tag string) *quarantine.Waiting {
	if o.released || repository != "docker.io/library/redis" || tag != "7" {
		return nil
	}
	return &waits
}

func (o *oneWaits) EachWaiting(f func(repository, tag string, w quarantine.Waiting)) {
	if w := o.Waiting("docker.io/library/redis", "7"); w != nil {
		f("docker.io/library/redis", "7", *w)
	}
}

func (o *oneWaits) Release(_ context.Context, ref name.Reference) (registry.Released, error) {
	switch {
	case ref.Repository == "docker.io/library/broken":
		return registry.Released{}, errors.New("broken")
	case o.released || ref.String() != "docker.io/library/redis:7":
		return registry.Released{}, quarantine.ErrUnknown
	}
	o.released = true
	return registry.Released{Reference: ref, Digest: waits.Digest}, nil
}

// TestQuarantineAPI: what waits is listed and can be released, by whoever may change the cache.
func TestQuarantineAPI(t *testing.T) {
	o := idle()
	o.Quarantine = &oneWaits{}
	do := func(method, path string, verb bool) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, "/api/v1/quarantine"+path, nil)
		req.Host, req.RemoteAddr = "localhost", "127.0.0.1:1000"
		if verb {
			req.Header.Set("X-Hubcache-Admin", "1")
		}
		w := httptest.NewRecorder()
		New(o).ServeHTTP(w, req)
		return w
	}
	var doc Quarantined
	w := do(http.MethodGet, "", false)
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || len(doc.Waiting) != 1 || doc.Waiting[0].Reference != "docker.io/library/redis:7" || !doc.Waiting[0].Until.Equal(waits.Until) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(http.MethodGet, "?pattern=nginx", false); w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &doc) != nil || len(doc.Waiting) != 0 {
		t.Errorf("another pattern: %d %s", w.Code, w.Body)
	}
	for _, step := range []struct {
		path string
		verb bool
		want int
	}{
		{"/redis:7", false, http.StatusForbidden},
		{"/redis@" + string(waits.Digest), true, http.StatusBadRequest},
		{"/Redis", true, http.StatusBadRequest},
		{"/redis:8", true, http.StatusNotFound},
		{"/broken:1", true, http.StatusInternalServerError},
		{"/redis:7", true, http.StatusOK},
		{"/redis:7", true, http.StatusNotFound},
	} {
		if w := do(http.MethodDelete, step.path, step.verb); w.Code != step.want {
			t.Errorf("DELETE %s: %d %s, want %d", step.path, w.Code, w.Body, step.want)
		}
	}
}
