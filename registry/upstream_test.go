package registry_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// knocks counts the connections that are made to a server.
func knocks(h http.Handler) (*httptest.Server, *atomic.Int32) {
	n := new(atomic.Int32)
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.Add(1)
		}
	}
	srv.Start()
	return srv, n
}

// One blob after the other needs one connection to the registry and one to the CDN: to the
// real ones each new one costs two round trips. The registry's redirects have bodies.
func TestConnectionsAreKept(t *testing.T) {
	const blobs = 10
	var ds []digest.Digest
	bodies := map[string][]byte{}
	var layers []string
	for i := range blobs {
		b := fmt.Appendf(nil, "layer %d", i)
		d := digest.FromBytes(b)
		ds, bodies[string(d)] = append(ds, d), b
		layers = append(layers, fmt.Sprintf(`{"digest":%q,"size":%d}`, d, len(b)))
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[%s]}`, strings.Join(layers, ","))
	cdn, atCDN := knocks(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(bodies[strings.TrimPrefix(r.URL.Path, "/")])
	}))
	defer cdn.Close()
	hub, atHub := knocks(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
			http.Redirect(w, r, cdn.URL+"/"+d, http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		if r.Method == http.MethodGet {
			w.Write(manifest)
		}
	}))
	defer hub.Close()

	log := slog.New(slog.DiscardHandler)
	store, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: 1 << 30, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	up, _ := url.Parse(hub.URL)
	r, err := registry.New(registry.Options{Store: store, Log: log, Upstreams: []registry.Upstream{{Options: upstream.Options{URL: up}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	front := httptest.NewServer(r)
	defer front.Close()
	get := func(path string) []byte {
		t.Helper()
		resp, err := http.Get(front.URL + "/v2/library/app" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		return b
	}
	get("/manifests/1")
	for _, d := range ds {
		if b := get("/blobs/" + string(d)); string(b) != string(bodies[string(d)]) {
			t.Errorf("%s: %q", d, b)
		}
	}
	if n := atHub.Load(); n != 1 {
		t.Errorf("%d connections to the registry", n)
	}
	if n := atCDN.Load(); n != 1 {
		t.Errorf("%d connections to the CDN", n)
	}
}
