package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/upstream"
)

// memorySource is a fetch.Source that has the content of a Hub in memory, and writes down what
// it is asked for.
type memorySource struct {
	hub   *hubtest.Hub
	image *hubtest.Image

	mu    sync.Mutex // guards asked
	asked []string
}

func (s *memorySource) note(what, repository, reference string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what+" "+repository+" "+hubtest.Short(reference))
}

// requests returns what was asked for since the last call, sorted.
func (s *memorySource) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	slices.Sort(asked)
	return asked
}

var errNotThere = &upstream.Error{Cause: upstream.NotFound, Host: "memory"}

func (s *memorySource) manifest(reference string) (v1.Descriptor, []byte, error) {
	if reference == s.image.Tag || reference == string(s.image.Digest) {
		return s.image.Descriptor, s.image.Bytes, nil
	}
	return v1.Descriptor{}, nil, errNotThere
}

func (s *memorySource) Resolve(_ context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	s.note("resolve "+string(k), repository, reference)
	d, _, err := s.manifest(reference)
	return fetch.Descriptor{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size}, err
}

func (s *memorySource) Manifest(_ context.Context, repository, reference string) (fetch.Manifest, error) {
	s.note("manifest", repository, reference)
	d, b, err := s.manifest(reference)
	return fetch.Manifest{MediaType: d.MediaType, Body: b, Host: "memory"}, err
}

func (s *memorySource) Confirm(_ context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	s.note("confirm "+string(k), repository, string(d))
	return errNotThere
}

func (s *memorySource) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return memoryBlob{s, repository, d}
}

type memoryBlob struct {
	s          *memorySource
	repository string
	digest     digest.Digest
}

func (b memoryBlob) Open(_ context.Context, p fetch.Part) (*fetch.Body, error) {
	b.s.note("blob", b.repository, string(b.digest))
	all := b.s.hub.Blob(b.digest)
	if p.To < 0 {
		p.To = all.Size()
	}
	return &fetch.Body{
		ReadCloser: io.NopCloser(io.NewSectionReader(all, p.From, p.To-p.From)),
		From:       p.From, To: p.To, Size: all.Size(), Ranged: true,
	}, nil
}

// refuseAll is the transport of an upstream that must not be asked.
type refuseAll struct{ t *testing.T }

func (r refuseAll) RoundTrip(req *http.Request) (*http.Response, error) {
	r.t.Errorf("the registry was asked: %s %s", req.Method, req.URL.Path)
	return nil, errors.New("refused")
}

// TestPullFromAnotherSource: tags, manifests and blobs may come from something other than an
// upstream registry, by the same Registry. A pull asks it for each once, a second pull for
// nothing, and nobody asks the registry behind it.
func TestPullFromAnotherSource(t *testing.T) {
	t.Parallel()
	source := &memorySource{}
	l := newLab(t, labOptions{anonymous: true, options: func(o *registry.Options) {
		o.Upstreams[0].Transport = refuseAll{t}
		o.Upstreams[0].Source = func(fetch.Source) fetch.Source { return source }
	}})
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}, {Size: 3 << 20}, {Size: 20 << 20}}})
	source.hub, source.image = l.hub, img
	get := func(path string, cache ...string) []byte {
		t.Helper()
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/redis/"+path, nil))
		if w.Code != http.StatusOK || !slices.Contains(cache, w.Header().Get("X-Hubcache")) {
			t.Errorf("%s: %d %s, want 200 %v", path, w.Code, w.Header().Get("X-Hubcache"), cache)
		}
		return w.Body.Bytes()
	}
	// A blob that arrives faster than it is asked for may be in the store before it is sent,
	// and one that was just sent may not be in the store yet: what the source was asked for
	// counts.
	pull := func() {
		t.Helper()
		get("manifests/7", "miss", "hit")
		for _, b := range img.Blobs() {
			if got := digest.FromBytes(get("blobs/"+string(b.Digest), "miss", "shared", "hit")); got != b.Digest {
				t.Errorf("%s has the bytes of %s", b.Digest, got)
			}
		}
		for len(l.reg.Stats().Inflight) > 0 {
			time.Sleep(time.Millisecond)
		}
	}

	pull()
	want := []string{"manifest library/redis " + hubtest.Short(string(img.Digest)), "resolve manifests library/redis 7"}
	for _, b := range img.Blobs() {
		want = append(want, "blob library/redis "+hubtest.Short(string(b.Digest)))
	}
	slices.Sort(want)
	// A large blob may be asked for in several ranges.
	if got := slices.Compact(source.requests()); !slices.Equal(got, want) {
		t.Errorf("the source was asked for\n%q, not\n%q", got, want)
	}
	pull() // official images are fresh for a minute
	if got := source.requests(); len(got) > 0 {
		t.Errorf("the second pull asked for %q", got)
	}

	w := httptest.NewRecorder()
	l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/redis/manifests/8", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("a tag that the source has not: %d", w.Code)
	}
}

// TestMirrorsShareOnlyBytes: two upstreams may have the same names with other content, and
// one may have blobs that the other has not. What one has cached, or is downloading, is
// served under the other only when its own upstream says that it has it.
func TestMirrorsShareOnlyBytes(t *testing.T) {
	t.Parallel()
	other := hubtest.New(hubtest.Options{})
	t.Cleanup(other.Close)
	l := newLab(t, labOptions{anonymous: true, options: func(o *registry.Options) {
		u, _ := url.Parse(other.RegistryURL())
		o.Upstreams = append(o.Upstreams, registry.Upstream{Options: &upstream.Options{Name: "other.example", URL: u, Transport: other.Transport()}})
	}})
	hub := l.hub
	get := func(path, ns string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		if ns != "" {
			path += "?ns=" + ns
		}
		l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/app/"+path, nil))
		return w
	}
	here := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 1000, Seed: 1}}})
	there := other.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 2000, Seed: 2}, {Size: 3000, Seed: 3}}})

	for range 2 { // from upstream, and from memory
		for ns, img := range map[string]*hubtest.Image{"": here, "docker.io": here, "other.example": there} {
			w := get("manifests/1", ns)
			if got := digest.FromBytes(w.Body.Bytes()); w.Code != http.StatusOK || got != img.Digest {
				t.Errorf("ns=%q: %d, %s instead of %s", ns, w.Code, got, img.Digest)
			}
			if want := ns; w.Header().Get("Oci-Namespace") != want {
				t.Errorf("ns=%q: Oci-Namespace is %q", ns, w.Header().Get("Oci-Namespace"))
			}
		}
	}
	if w := get("manifests/1", "quay.io"); w.Code != http.StatusNotFound {
		t.Errorf("a registry that isn't configured: %d", w.Code)
	}

	layer := there.Blobs()[1]
	want, _ := io.ReadAll(other.Blob(layer.Digest))
	path := "blobs/" + string(layer.Digest)
	if w := get(path, "other.example"); !equal(w.Body.Bytes(), want) {
		t.Fatalf("%d, %d bytes", w.Code, w.Body.Len())
	}
	hub.ResetLedger()
	if w := get(path, "docker.io"); w.Code != http.StatusNotFound {
		t.Errorf("a blob of the other registry: %d", w.Code)
	}
	if w := get("manifests/"+string(there.Digest), "docker.io"); w.Code != http.StatusNotFound {
		t.Errorf("a manifest of the other registry: %d", w.Code)
	}
	if n := len(hub.Ledger()); n == 0 {
		t.Error("its own upstream was not asked")
	}

	// While the other's blob is on its way.
	slow := there.Blobs()[2]
	rule := other.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(1000))
	done := make(chan int)
	go func() { done <- get("blobs/"+string(slow.Digest), "other.example").Body.Len() }()
	for len(l.reg.Stats().Inflight) == 0 {
		select {
		case n := <-done:
			t.Fatalf("not stalled, %d bytes", n)
		case <-time.After(time.Millisecond):
		}
	}
	if w := get("blobs/"+string(slow.Digest), "docker.io"); w.Code != http.StatusNotFound {
		t.Errorf("a blob that is on its way from the other registry: %d", w.Code)
	}
	rule.Release()
	if n := <-done; n != 3000 {
		t.Errorf("%d bytes", n)
	}
	if n := len(l.reg.Stats().Upstreams); n != 2 {
		t.Errorf("%d upstreams in the stats", n)
	}
}
