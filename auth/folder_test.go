package auth

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A registry behind a folder of its host is asked there, for the verdict too.
func TestRegistryInAFolder(t *testing.T) {
	base, err := url.Parse("https://host.test/hub")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	tr := &Transport{Registry: base, Base: tripper(func(r *http.Request) (*http.Response, error) {
		asked++
		if !strings.HasPrefix(r.URL.Path, "/hub/v2/") {
			t.Errorf("asked %s", r.URL.Path)
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("")), Header: http.Header{}, Request: r}, nil
	})}
	if v, err := tr.Access(t.Context(), "library/redis"); v != Public || asked == 0 {
		t.Errorf("%v, %v", v, err)
	}
}
