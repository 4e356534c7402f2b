package hubtest_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

func TestSignedURLsAreCheckedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{URLLifetime: 2 * time.Second})
		defer hub.Close()
		c, path, want := faulty(t, hub, hub.Transport())
		c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		location := c.get("GET", faultyRepo, path).Header.Get("Location")

		if a := c.do("GET", location); len(a.body) != len(want) {
			t.Errorf("fresh: %d", a.StatusCode)
		}
		if a := c.do("GET", strings.Replace(location, "verify=", "verify=1", 1)); a.StatusCode != 403 {
			t.Errorf("changed expiry: %d", a.StatusCode)
		}
		if a := c.do("GET", location, "Authorization: Bearer x"); a.StatusCode != 400 || len(hub.Violations()) != 1 {
			t.Errorf("Authorization: %d, %q", a.StatusCode, hub.Violations())
		}
		time.Sleep(2 * time.Second)
		if a := c.do("GET", location); a.StatusCode != 403 {
			t.Errorf("expired: %d", a.StatusCode)
		}
		hub.Set(func(o *hubtest.Options) { o.HeadBlobOK, o.InlineBlobs = true, 1<<20 })
		if a := c.get("GET", faultyRepo, path); a.StatusCode != 200 || len(a.body) != len(want) {
			t.Errorf("inline: %d", a.StatusCode)
		}
	})
}

func TestRangesFollowTheRFC(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, want := faulty(t, hub, rt)
		for header, row := range map[string]struct{ status, from, to int }{
			"bytes=100-":            {206, 100, 100_000},
			"bytes=-1":              {206, 99_999, 100_000},
			"bytes=-999999":         {206, 0, 100_000},
			"bytes=0-999999999999":  {206, 0, 100_000},
			"bytes=5-5":             {206, 5, 6},
			"bytes=0--1":            {200, 0, 100_000},
			"bytes=5-1,9-10":        {200, 0, 100_000},
			"bytes=9-5":             {200, 0, 100_000},
			"items=0-1":             {200, 0, 100_000},
			"bytes=100000-":         {416, 0, 0},
			"bytes=-0":              {416, 0, 0},
			"bytes=99999999999999-": {416, 0, 0},
		} {
			a := c.get("GET", faultyRepo, path, "Range: "+header)
			if a.StatusCode != row.status || string(a.body) != string(want[row.from:row.to]) {
				t.Errorf("%s: %d, %d bytes, %s", header, a.StatusCode, len(a.body), a.Header.Get("Content-Range"))
			}
		}
	})
}
