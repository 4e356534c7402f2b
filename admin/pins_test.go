package admin

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// cache returns a store with these images, by whole references with tags, each with one layer of
// its own of so many bytes.
func cache(t *testing.T, budget int64, images map[string]int) *storage.Store {
	t.Helper()
	s, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for ref, size := range images {
		repository, tag, _ := strings.Cut(ref, ":")
		layer := []byte(ref + strings.Repeat(" ", size-len(ref)))
		in, err := s.Begin(storage.Origin{Repository: repository}, digest.FromBytes(layer), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.WriteAt(layer, 0); err != nil {
			t.Fatal(err)
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":%d}]}`, in.Digest(), size)
		d := digest.FromBytes(body)
		if err := s.PutManifest(storage.Origin{Repository: repository}, d, "m", body); err != nil {
			t.Fatal(err)
		}
		s.SetTag(repository, tag, storage.Tag{Digest: d, MediaType: "m", Size: int64(len(body)), Checked: time.Now()})
	}
	return s
}

// verbAsked sends a request that changes the cache, as the operator does, and decodes the answer.
func verbAsked(t *testing.T, h http.Handler, method, path string, out any) (status int, text string) {
	t.Helper()
	req := httptest.NewRequest(method, path, nil)
	req.Host, req.RemoteAddr = "localhost", "127.0.0.1:40000"
	req.Header.Set(VerbHeader, "1")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			t.Fatalf("%s %s: %v\n%s", method, path, err, w.Body)
		}
	}
	return w.Code, w.Body.String()
}

// TestPinsOverHTTP: an image is pinned, listed and unpinned, by a name as people write it or whole.
func TestPinsOverHTTP(t *testing.T) {
	o := idle()
	o.Cache = cache(t, 110<<10, map[string]int{"docker.io/library/redis:7": 40 << 10, "docker.io/org/app:1": 60 << 10})
	h := New(o)
	var done Pinned
	if status, text := verbAsked(t, h, http.MethodPut, "/api/v1/pins/redis:7", &done); status != http.StatusOK || done.Reference != "docker.io/library/redis:7" || !done.Protected || done.Bytes < 40<<10 || done.Missing != 0 || done.Schema != 1 {
		t.Fatalf("%d %s", status, text)
	}
	if status, text := verbAsked(t, h, http.MethodPut, "/api/v1/pins/docker.io/library/redis@"+done.Digest, &done); status != http.StatusOK || done.Reference != "docker.io/library/redis@"+done.Digest {
		t.Fatalf("%d %s", status, text)
	}
	var all Pins
	if status, text := verbAsked(t, h, http.MethodGet, "/api/v1/pins", &all); status != http.StatusOK || len(all.Pins) != 2 || all.PinnedBytes != done.Bytes || all.LimitBytes != 110<<10/100*90 {
		t.Errorf("%d %s", status, text)
	}
	var unpinned Unpinned
	if status, text := verbAsked(t, h, http.MethodDelete, "/api/v1/pins/redis:7", &unpinned); status != http.StatusOK || unpinned.Reference != "docker.io/library/redis:7" {
		t.Errorf("%d %s", status, text)
	}
	if verbAsked(t, h, http.MethodGet, "/api/v1/pins", &all); len(all.Pins) != 1 || all.PinnedBytes != done.Bytes {
		t.Errorf("%+v", all)
	}
	for _, c := range []struct {
		method, path string
		status       int
		says         string
	}{
		{http.MethodPut, "redis:8", http.StatusNotFound, "docker.io/library/redis:8 is not cached: pull it first"},
		{http.MethodPut, "redis:7:8", http.StatusBadRequest, "not the name of an image"},
		{http.MethodPut, "org/app:1", http.StatusConflict, "docker.io/org/app:1 needs 60.12KiB more, and 40.12KiB of the 98.96KiB that pins may take (90 % of the budget) are taken"},
		{http.MethodDelete, "redis:7", http.StatusNotFound, "docker.io/library/redis:7 is not pinned"},
		{http.MethodDelete, "redis:7:8", http.StatusBadRequest, "not the name of an image"},
		{http.MethodGet, "redis:7", http.StatusMethodNotAllowed, NoSuchMethod},
	} {
		if status, text := verbAsked(t, h, c.method, "/api/v1/pins/"+c.path, nil); status != c.status || !strings.Contains(text, c.says) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
		}
	}
	if n := o.Cache.Stats().Pins; n != 1 {
		t.Errorf("%d pins after what was refused", n)
	}
}

// TestPinsAreGuarded, and a wrong method is told which are right.
func TestPinsAreGuarded(t *testing.T) {
	o := idle()
	o.Cache = cache(t, 1<<20, map[string]int{"docker.io/library/redis:7": 1000})
	for method, want := range map[string]int{http.MethodPut: http.StatusForbidden, http.MethodDelete: http.StatusForbidden, http.MethodPost: http.StatusMethodNotAllowed} {
		req := httptest.NewRequest(method, "/api/v1/pins/redis:7", nil)
		req.Host = "localhost"
		resp := ask(t, o, req)
		if resp.StatusCode != want || want == http.StatusMethodNotAllowed && resp.Header.Get("Allow") != "PUT, DELETE" {
			t.Errorf("%s: %s, allowed %q", method, resp.Status, resp.Header.Get("Allow"))
		}
	}
	if n := o.Cache.Stats().Pins; n != 0 {
		t.Errorf("%d pins", n)
	}
}

// TestPurgeOverHTTP: a dry run and the run say the same, and memory is told what to forget.
func TestPurgeOverHTTP(t *testing.T) {
	o := idle()
	o.Cache = cache(t, 1<<20, map[string]int{"docker.io/library/redis:7": 40 << 10, "docker.io/org/app:1": 60 << 10})
	var forgotten []string
	o.Forget = func(repository string) { forgotten = append(forgotten, repository) }
	h := New(o)
	if status, text := verbAsked(t, h, http.MethodPut, "/api/v1/pins/redis:7", nil); status != http.StatusOK {
		t.Fatal(text)
	}
	app, err := o.Cache.Tag("docker.io/org/app", "1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path   string
		status int
		says   string
	}{
		{"images/redis:7", http.StatusConflict, "docker.io/library/redis:7: it is pinned"},
		{"images/redis:7?dry_run=1", http.StatusConflict, "it is pinned"},
		{"images/redis:8?dry_run=1", http.StatusNotFound, "docker.io/library/redis:8 is not cached"},
		{"images/redis:7:8", http.StatusBadRequest, "not the name of an image"},
		{"blobs/sha256:1", http.StatusBadRequest, "is not a digest"},
		{"blobs/" + digest.FromString("x").String(), http.StatusNotFound, "is not cached"},
		{"blobs/" + app.Digest.String() + "?dry_run=1", http.StatusOK, `"docker.io/org/app:1"`},
	} {
		if status, text := verbAsked(t, h, http.MethodDelete, "/api/v1/"+c.path, nil); status != c.status || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %s", c.path, status, text)
		}
	}
	if st := o.Cache.Stats(); st.Manifests != 2 || len(forgotten) != 0 {
		t.Errorf("%+v, %q forgotten", st, forgotten)
	}
	var dry, done Purged
	verbAsked(t, h, http.MethodDelete, "/api/v1/images/redis:7?dry_run=1&unpin=1", &dry)
	verbAsked(t, h, http.MethodDelete, "/api/v1/images/redis:7?unpin=1", &done)
	if !dry.DryRun || done.DryRun || dry.Freed != done.Freed || len(done.Blobs) != 2 || len(dry.Blobs) != 2 || len(done.Unpinned) != 1 || done.Freed < 40<<10 {
		t.Errorf("%+v, %+v", dry, done)
	}
	verbAsked(t, h, http.MethodDelete, "/api/v1/images/redis:7", nil) // the upstream may have said that it hasn't got it
	if verbAsked(t, h, http.MethodDelete, "/api/v1/blobs/"+app.Digest.String(), &done); len(done.Blobs) != 1 || len(done.Partial) != 1 {
		t.Errorf("%+v", done)
	}
	if strings.Join(forgotten, " ") != "docker.io/library/redis docker.io/library/redis " {
		t.Errorf("%q", forgotten)
	}
	if st := o.Cache.Stats(); st.Manifests != 0 || st.Blobs != 1 || st.Pins != 0 {
		t.Errorf("%+v", st)
	}
}
