package auth

import (
	"net/http"
	"os"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestMain lets the tests of this package reach loopback addresses only.
func TestMain(m *testing.M) {
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport))
	os.Exit(m.Run())
}
