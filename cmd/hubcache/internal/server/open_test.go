package server

import (
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
)

// TestDefaultsAreThoseOfFetch: the limits in the table of settings are the ones that fetch
// has for callers who set none.
func TestDefaultsAreThoseOfFetch(t *testing.T) {
	s := settings.Default()
	if got := limits(s); got != fetch.DefaultLimits() {
		t.Errorf("limits %+v, fetch has %+v", got, fetch.DefaultLimits())
	}
}
