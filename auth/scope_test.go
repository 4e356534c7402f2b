package auth

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
)

func TestTokenIsForTheRepositoryOfTheContext(t *testing.T) {
	for repository, want := range map[string]string{
		"":                           "",
		"redis":                      "repository:redis:pull",
		"library/redis":              "repository:library/redis:pull",
		"a/b/c":                      "repository:a/b/c:pull",
		"a/manifests":                "repository:a/manifests:pull",
		"v2/redis":                   "repository:v2/redis:pull",
		"a__b/c-d":                   "repository:a__b/c-d:pull",
		"a b":                        "",
		"a:pull repository:secret":   "",
		"../a":                       "",
		"a/":                         "",
		"a\n/v2/b":                   "",
		"a,pull&scope=repository:b":  "",
		"library/redis:pull,push":    "",
		"https://elsewhere/v2/a/b/c": "",
	} {
		synctest.Test(t, func(t *testing.T) {
			up := newFakeUpstream()
			tr, _ := transport(up, nil)
			// The path says nothing about the scope.
			req, err := http.NewRequestWithContext(WithScope(t.Context(), repository), http.MethodGet, registryURL+"/v2/other/manifests/1", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			up.wantRequests(t, "TOKEN", "TOKEN anonymous "+want)
		})
	}
}

func TestRequestWithoutRepositoryGetsTokenWithoutScope(t *testing.T) {
	if got := scope(context.Background()); got != "" {
		t.Errorf("%q", got)
	}
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, nil)
		want(t, tr, "/v2/", 200)
		up.wantRequests(t, "TOKEN", "TOKEN anonymous ")
	})
}
