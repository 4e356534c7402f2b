package dockerhost

import (
	"reflect"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/prune"
)

// TestDefaultsAreThoseOfPrune: the defaults in the table of settings are the ones that
// prune has for callers who set none.
func TestDefaultsAreThoseOfPrune(t *testing.T) {
	if got := PrunePolicy(settings.Default()); !reflect.DeepEqual(got, prune.DefaultPolicy()) {
		t.Errorf("docker.prune %+v, prune has %+v", got, prune.DefaultPolicy())
	}
}
