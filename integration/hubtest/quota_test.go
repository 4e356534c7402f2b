package hubtest_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

func TestQuotaIsCountedPerSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{
			AnonymousLimit: 2,
			Accounts:       []hubtest.Account{{Username: "alice", PAT: "a"}, {Username: "team", PAT: "t", Limit: hubtest.Unlimited}},
		})
		defer hub.Close()
		hub.AddImage("library/x", "1", hubtest.ImageSpec{})
		from := func(ip, user, pat string) *client {
			c := newClient(t, hub.RegistryURL(), hub.Network.TransportFrom(ip))
			c.username, c.password = user, pat
			c.login("library/x")
			return c
		}
		expect := func(c *client, method, remaining string, status int) {
			t.Helper()
			a := c.get(method, "library/x", "manifests/1")
			if got := a.Header.Get("ratelimit-remaining"); a.StatusCode != status || got != remaining {
				t.Errorf("%d, remaining %q; want %d, %q", a.StatusCode, got, status, remaining)
			}
		}
		c := from("192.0.2.1", "", "")
		expect(c, "HEAD", "2;w=21600", 200)
		expect(c, "GET", "1;w=21600", 200)
		expect(c, "HEAD", "1;w=21600", 200)
		expect(c, "GET", "0;w=21600", 200)
		expect(c, "GET", "0;w=21600", 429)
		expect(c, "HEAD", "0;w=21600", 429)
		expect(from("192.0.2.2", "", ""), "GET", "1;w=21600", 200)
		expect(from("2001:db8::1", "", ""), "GET", "1;w=21600", 200)
		expect(from("2001:db8::2", "", ""), "GET", "0;w=21600", 200)
		expect(from("192.0.2.1", "alice", "a"), "GET", "199;w=21600", 200)
		expect(from("192.0.2.1", "team", "t"), "GET", "", 200)

		a := from("192.0.2.2", "", "").get("GET", "library/x", "blobs/sha256:"+strings.Repeat("0", 64))
		if a.StatusCode != 404 {
			t.Errorf("a blob cost quota: %d", a.StatusCode)
		}
		hub.SetUsed("", 2)
		expect(from("192.0.2.9", "", ""), "GET", "0;w=21600", 429)
		hub.SetUsed("alice", 200)
		expect(from("192.0.2.1", "alice", "a"), "HEAD", "0;w=21600", 429)
		if got := hub.Used("alice"); got != 200 {
			t.Errorf("alice used %d", got)
		}

		time.Sleep(6 * time.Hour)
		expect(from("192.0.2.1", "alice", "a"), "GET", "199;w=21600", 200)
		hub.Set(func(o *hubtest.Options) { o.AnonymousLimit = hubtest.Unlimited })
		expect(from("192.0.2.1", "", ""), "GET", "", 200)
	})
}
