//go:build integration

package integration

import (
	"errors"
	"net/http"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestRequestsOfTestsStayInsideTheLab checks that the tests' own clients refuse addresses
// outside of loopback and of dockertest's networks.
func TestRequestsOfTestsStayInsideTheLab(t *testing.T) {
	for name, client := range map[string]*http.Client{"labClient": labClient, "http.DefaultClient": http.DefaultClient} {
		for _, url := range []string{"http://192.0.2.1/", "http://[2001:db8::1]/", "http://registry-1.docker.io/"} {
			resp, err := client.Get(url)
			if err == nil {
				resp.Body.Close()
			}
			if !errors.Is(err, hubtest.ErrNotLoopback) {
				t.Errorf("%s, %s: %v, want %v", name, url, err, hubtest.ErrNotLoopback)
			}
		}
	}
}
