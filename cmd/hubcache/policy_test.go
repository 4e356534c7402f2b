package main

import (
	"reflect"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/prune"
)

// TestDefaultsAreThoseOfThePackages: the numbers in the table of settings are the ones
// that the packages have for callers who set none.
func TestDefaultsAreThoseOfThePackages(t *testing.T) {
	s := settings.Default()
	if got := registryPolicy(s).Limits; got != fetch.DefaultLimits() {
		t.Errorf("limits %+v, fetch has %+v", got, fetch.DefaultLimits())
	}
	if got := prunePolicy(s); !reflect.DeepEqual(got, prune.DefaultPolicy()) {
		t.Errorf("docker.prune %+v, prune has %+v", got, prune.DefaultPolicy())
	}
}
