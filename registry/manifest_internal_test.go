package registry

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// TestManifestThatHasJustComeIsNotFetchedAgain: a request that has not found a manifest in the
// store, and begins to fetch it when another one has just brought it, costs no second GET of
// the quota.
func TestManifestThatHasJustComeIsNotFetchedAgain(t *testing.T) {
	store, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	hub, _ := url.Parse("https://hub.test")
	asked := 0
	r, err := New(Options{Store: store, Log: slog.New(slog.DiscardHandler), Upstreams: []Upstream{{Options: &upstream.Options{URL: hub, Transport: nobody(func() { asked++ })}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	q := &manifestRequest{repo: r.routes.Load().mirrors[0].repository(httptest.NewRequest(http.MethodGet, "/", nil), thisMachine, "library/app"), ref: string(d), digest: d}
	if err := store.PutManifest(q.origin(), d, "x", body); err != nil {
		t.Fatal(err)
	}
	f, err := q.fetch(t.Context(), d)
	if err != nil || string(f.body) != string(body) || f.outcome != OutcomeHit {
		t.Errorf("%+v, %v", f, err)
	}
	if asked != 0 {
		t.Errorf("upstream was asked %d times", asked)
	}
}

// nobody is a transport that says no.
type nobody func()

func (n nobody) RoundTrip(*http.Request) (*http.Response, error) {
	n()
	return nil, errors.New("nobody is there")
}
