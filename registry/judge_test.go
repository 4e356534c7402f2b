package registry_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// judgingSource is a source that knows what other nodes have found of one repository.
type judgingSource struct {
	*memorySource

	mu      sync.Mutex // guards what follows
	public  bool
	checked time.Time // zero: they know nothing
	told    []bool
}

func (s *judgingSource) Visibility(context.Context, string) (bool, time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.public, s.checked, !s.checked.IsZero()
}

func (s *judgingSource) SetVisibility(_ string, public bool, _ time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, public)
}

func (s *judgingSource) set(public bool, checked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.public, s.checked = public, checked
}

// TestWhatOtherNodesFoundOutOfARepository: while the upstream can't tell, their word counts, and the later
// one. What became private isn't served, by a node without an account either.
func TestWhatOtherNodesFoundOutOfARepository(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		anonymous bool
		public    bool
		checked   time.Time
		want      int
	}{
		"public":                      {false, true, now.Add(-time.Hour), http.StatusOK},
		"public, long ago":            {false, true, now.Add(-1000 * time.Hour), http.StatusOK},
		"private":                     {false, false, now.Add(-time.Hour), http.StatusNotFound},
		"nobody knows":                {false, true, time.Time{}, http.StatusTooManyRequests},
		"without an account":          {true, true, now.Add(-time.Hour), http.StatusOK},
		"private, without an account": {true, false, now.Add(-time.Hour), http.StatusNotFound},
		"unknown, without an account": {true, true, time.Time{}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := &judgingSource{memorySource: &memorySource{}, public: c.public, checked: c.checked}
			l := newLab(t, labOptions{anonymous: c.anonymous, options: func(o *registry.Options) {
				o.Upstreams[0].Source = func(fetch.Source) fetch.Source { return source }
			}})
			img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}}})
			source.hub, source.image = l.hub, img
			l.hub.Inject(hubtest.Match{}, hubtest.Reset())
			for _, path := range []string{"manifests/7", "blobs/" + string(img.Blobs()[0].Digest)} {
				w := httptest.NewRecorder()
				l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/redis/"+path, nil))
				if w.Code != c.want {
					t.Errorf("%s: %d, want %d: %s", path, w.Code, c.want, w.Body)
				}
			}
		})
	}
}

// TestARepositoryThatAnotherNodeFoundPrivate is hidden although this node has it, until this node
// itself finds it public again. The others are told what this one finds out.
func TestARepositoryThatAnotherNodeFoundPrivate(t *testing.T) {
	t.Parallel()
	source := &judgingSource{memorySource: &memorySource{}}
	l := newLab(t, labOptions{options: func(o *registry.Options) {
		o.Upstreams[0].Source = func(fetch.Source) fetch.Source { return source }
	}})
	img := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}}})
	source.hub, source.image = l.hub, img
	get := func() int {
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/library/redis/manifests/"+string(img.Digest), nil))
		return w.Code
	}
	if code := get(); code != http.StatusOK {
		t.Fatal(code)
	}
	source.mu.Lock()
	if len(source.told) == 0 || !source.told[0] {
		t.Errorf("the others were told %v", source.told)
	}
	source.mu.Unlock()
	source.set(false, time.Now().Add(time.Second))
	l.stop()
	l.start()
	if code := get(); code != http.StatusNotFound {
		t.Errorf("what is private: %d", code)
	}
}
