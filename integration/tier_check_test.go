//go:build integration

package integration

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/hubcache/hubcache/admin"
)

// TestTheSharedTierIsChecked by the server, as hubcache doctor asks it to.
func TestTheSharedTierIsChecked(t *testing.T) {
	t.Parallel()
	l := newTierLab(t)
	s := l.node("")
	check := func() (c admin.SharedCheck) {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.Admin+"/api/v1/shared/check", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Hubcache-Admin", "1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return c
	}
	if c := check(); c.Bucket != "well" || c.Lease != "well" {
		t.Errorf("%+v", c)
	}
	l.bucket.Kill()
	l.redis.Kill()
	if c := check(); c.Bucket == "well" || c.Lease == "well" {
		t.Errorf("both are dead: %+v", c)
	}
}
