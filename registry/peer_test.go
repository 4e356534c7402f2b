package registry_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// TestAnotherNodeGetsWhatIsHere or under way, under the rules of a client, and nothing else: for it
// nothing is asked of the upstream.
func TestAnotherNodeGetsWhatIsHere(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{anonymous: true, options: func(o *registry.Options) {
		o.Peer = func(token string, _ digest.Digest) bool { return token == "right" }
	}})
	img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 2 << 20, Seed: 1}, {Size: 3 << 20, Seed: 2}}})
	get := func(path, token string) *httptest.ResponseRecorder {
		w, req := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v2/library/app/"+path, nil)
		if token != "" {
			req.Header.Set(fetch.PeerHeader, token)
		}
		l.reg.ServeHTTP(w, req)
		return w
	}
	get("manifests/1", "")
	cached, coming := img.Blobs()[1].Digest, img.Blobs()[2].Digest
	get("blobs/"+string(cached), "")
	for len(l.reg.Stats().Inflight) > 0 {
		time.Sleep(time.Millisecond)
	}
	l.hub.ResetLedger()
	before := l.reg.Stats().Blob
	if w := get("blobs/"+string(cached), "right"); w.Code != http.StatusOK || digest.FromBytes(w.Body.Bytes()) != cached {
		t.Errorf("what is cached: %d", w.Code)
	}
	get("blobs/"+string(digest.FromString("never")), "right")
	if after := l.reg.Stats().Blob; after.Hit != before.Hit || after.Error != before.Error || after.Sent != before.Sent {
		t.Errorf("requests of another node are counted as those of clients: %+v, then %+v", before, after)
	}
	for _, token := range []string{"wrong", "right "} {
		if w := get("blobs/"+string(cached), token); w.Code != http.StatusNotFound {
			t.Errorf("with the token %q: %d", token, w.Code)
		}
	}
	absent := digest.FromString("never")
	if w := get("blobs/"+string(absent), "right"); w.Code != http.StatusNotFound {
		t.Errorf("what isn't here: %d", w.Code)
	}
	if n := len(l.hub.Ledger()); n > 0 {
		t.Errorf("the upstream was asked for another node: %v", l.hub.Ledger())
	}
	stall := l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(1<<20))
	client, node := make(chan int), make(chan int)
	if _, ok := l.store.Has(coming); ok {
		t.Fatal("it was read ahead")
	}
	go func() { client <- get("blobs/"+string(coming), "").Body.Len() }()
	for len(l.reg.Stats().Inflight) == 0 {
		time.Sleep(time.Millisecond)
	}
	go func() { node <- get("blobs/"+string(coming), "right").Body.Len() }()
	time.Sleep(10 * time.Millisecond)
	stall.Release()
	if a, b := <-client, <-node; a != 3<<20 || b != 3<<20 {
		t.Errorf("what is under way: the client got %d bytes, the node %d", a, b)
	}
}

// rememberingSource knows a tag from before, and is otherwise a memorySource.
type rememberingSource struct {
	*memorySource
	checked time.Time
	down    bool
}

func (s *rememberingSource) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	d, err := s.memorySource.Resolve(ctx, repository, k, reference)
	if s.down {
		return fetch.Descriptor{}, &upstream.Error{Cause: upstream.Unreachable, Host: "memory"}
	}
	d.Checked = s.checked
	return d, err
}

// TestATagThatAnotherNodeKnows is served as stale, within max_stale from when the upstream said it.
func TestATagThatAnotherNodeKnows(t *testing.T) {
	t.Parallel()
	source := &rememberingSource{memorySource: &memorySource{}}
	l := newLab(t, labOptions{anonymous: true, options: func(o *registry.Options) {
		o.Policy.MaxStale = time.Hour
		o.Upstreams[0].Transport = refuseAll{t}
		o.Upstreams[0].Source = func(fetch.Source) fetch.Source { return source }
	}})
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}}})
	source.hub, source.image = l.hub, img
	get := func(method string, want int, cache string) {
		t.Helper()
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(w, httptest.NewRequest(method, "/v2/library/redis/manifests/7", nil))
		if w.Code != want || w.Header().Get("X-Hubcache") != cache {
			t.Errorf("%s: %d %q, want %d %q: %s", method, w.Code, w.Header().Get("X-Hubcache"), want, cache, w.Body)
		}
	}
	source.checked = time.Now().Add(-2 * time.Hour)
	get(http.MethodGet, http.StatusBadGateway, "")
	source.checked = time.Now().Add(-30 * time.Minute)
	get(http.MethodHead, http.StatusOK, "stale")
	get(http.MethodGet, http.StatusOK, "stale")
	get(http.MethodGet, http.StatusOK, "stale") // not from memory: it is asked again each time
	if tag, err := l.store.Tag("docker.io/library/redis", "7"); err != nil || !tag.Checked.Equal(source.checked) {
		t.Errorf("the tag is remembered as checked at %s, not at %s: %v", tag.Checked, source.checked, err)
	}
	source.checked = time.Now().Add(-40 * time.Minute) // older than what this node knows
	get(http.MethodGet, http.StatusOK, "stale")
	source.down = true
	get(http.MethodGet, http.StatusOK, "stale")
	source.down, source.checked = false, time.Time{}
	get(http.MethodGet, http.StatusOK, "revalidated")
}

// recallingSource is told what the upstream has said of a tag to another node.
type recallingSource struct {
	*memorySource
	checked time.Time
}

func (s *recallingSource) Recall(_ context.Context, _, _ string, maxAge time.Duration) (fetch.Descriptor, bool) {
	d := s.image.Descriptor
	return fetch.Descriptor{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Checked: s.checked}, time.Since(s.checked) < maxAge
}

// TestATagThatAnotherNodeHasChecked isn't asked for until its TTL from that check has passed.
func TestATagThatAnotherNodeHasChecked(t *testing.T) {
	t.Parallel()
	source := &recallingSource{memorySource: &memorySource{}}
	l := newLab(t, labOptions{anonymous: true, options: func(o *registry.Options) {
		o.Policy.MaxStale, o.Policy.TagTTL = time.Hour, new(10*time.Minute)
		o.Upstreams[0].Transport = refuseAll{t}
		o.Upstreams[0].Source = func(fetch.Source) fetch.Source { return source }
	}})
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}}})
	source.hub, source.image = l.hub, img
	get := func(method, cache string, requests ...string) {
		t.Helper()
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(w, httptest.NewRequest(method, "/v2/library/redis/manifests/7", nil))
		if asked := source.requests(); w.Code != http.StatusOK || w.Header().Get("X-Hubcache") != cache || !slices.Equal(asked, requests) {
			t.Errorf("%s: %d %q after %q: %s", method, w.Code, w.Header().Get("X-Hubcache"), asked, w.Body)
		}
	}
	kept := func() time.Time {
		tag, err := l.store.Tag("docker.io/library/redis", "7")
		if err != nil {
			t.Error(err)
		}
		return tag.Checked
	}
	source.checked = time.Now().Add(-9 * time.Minute)
	get(http.MethodHead, "miss")
	get(http.MethodGet, "miss", "manifest library/redis "+hubtest.Short(string(img.Digest)))
	get(http.MethodGet, "hit")
	if !kept().Equal(source.checked) {
		t.Errorf("the tag counts as checked at %s, not at %s", kept(), source.checked)
	}
	// Its TTL has passed here, and another node has checked it since.
	l.store.SetTag("docker.io/library/redis", "7", storage.Tag{Digest: img.Digest, MediaType: img.MediaType, Size: img.Descriptor.Size, Checked: time.Now().Add(-time.Hour)})
	l.reg.ForgetManifests()
	source.checked = time.Now().Add(-time.Minute)
	get(http.MethodGet, "revalidated")
	if !kept().Equal(source.checked) {
		t.Errorf("the tag counts as checked at %s, not at %s", kept(), source.checked)
	}
}
