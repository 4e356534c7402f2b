//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestPullsUseTheAccount pulls when the anonymous quota of the address is used up. Every manifest
// GET must have a token of the account.
func TestPullsUseTheAccount(t *testing.T) {
	hub := startHub(t, hubtest.Options{AnonymousLimit: 1})
	s := startServer(t, serverOptions{Hub: hub})
	hub.SetUsed("", 1)
	spec := hubtest.ImageSpec{Layers: hubtest.Layers(2, 1<<20), Platforms: []string{"linux/amd64", "linux/arm64"}}
	gets := 0
	for i := range 5 {
		img := hub.AddImage(fmt.Sprintf("library/app%d", i), "1", spec)
		gets += 1 + len(img.Manifests)
		if err := pullImage(t.Context(), s.URL, img, ""); err != nil {
			t.Error(err)
		}
	}
	isGET := func(e hubtest.Entry) bool {
		return e.Kind == "manifests" && e.Method == http.MethodGet && e.Status != http.StatusUnauthorized
	}
	if got := hub.Ledger().Count(isGET); got != gets {
		t.Errorf("%d manifest GETs for %d manifests", got, gets)
	}
	for _, e := range hub.Ledger().Filter(isGET) {
		if e.Account != labUser || e.Status != http.StatusOK {
			t.Errorf("not with the account's token: %s", e)
		}
	}
	if used := hub.Used(labUser); used != gets {
		t.Errorf("the account has used %d pulls, want %d", used, gets)
	}
	if used := hub.Used(""); used > 1 {
		t.Errorf("%d anonymous pulls", used-1)
	}
}
