package hubtest_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
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

// access returns the access claim of a token, and whether it has one.
func access(t *testing.T, token string) (string, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	raw, ok := claims["access"]
	return string(raw), ok
}

func TestPrivateRepositoriesAreHidden(t *testing.T) {
	onBoth(t, hubtest.Options{Accounts: []hubtest.Account{
		{Username: "alice", PAT: "a", Private: []string{"alice/*"}}, {Username: "bob", PAT: "b"},
	}}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		hub.SetPrivate("alice/secret", true)
		img := hub.AddImage("alice/secret", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100)})
		hub.AddImage("library/x", "1", hubtest.ImageSpec{})
		for _, row := range []struct {
			user, pat, repository, access string
			status                        int
		}{
			{"", "", "library/x", `[{"actions":["pull"],"name":"library/x","type":"repository"}]`, 200},
			{"", "", "alice/secret", `[]`, 401},
			{"", "", "no/such", `[]`, 401},
			{"bob", "b", "alice/secret", `[]`, 401},
			{"alice", "a", "alice/secret", `[{"actions":["pull"],"name":"alice/secret","type":"repository"}]`, 200},
		} {
			c := newClient(t, hub.RegistryURL(), rt)
			c.username, c.password = row.user, row.pat
			c.login(row.repository)
			if got, _ := access(t, c.tokens[row.repository]); got != row.access {
				t.Errorf("%s on %s: access %s", row.user, row.repository, got)
			}
			a := c.get("GET", row.repository, "manifests/1")
			scoped := strings.Contains(a.Header.Get("WWW-Authenticate"), `error="insufficient_scope"`)
			if a.StatusCode != row.status || scoped != (row.status == 401) {
				t.Errorf("%s on %s: %d %s", row.user, row.repository, a.StatusCode, a.body)
			}
		}

		// A blob is served only where it belongs.
		c := newClient(t, hub.RegistryURL(), rt)
		c.login("library/x")
		blob := img.Manifests[0].Layers[0].Digest
		if a := c.get("GET", "library/x", "blobs/"+blob.String()); a.StatusCode != 404 {
			t.Errorf("foreign blob: %d", a.StatusCode)
		}
		hub.LinkBlob("library/x", blob)
		if a := c.get("GET", "library/x", "blobs/"+blob.String()); a.StatusCode != 200 {
			t.Errorf("linked blob: %d", a.StatusCode)
		}
		// A token for one repository opens no other.
		hub.AddImage("library/y", "1", hubtest.ImageSpec{})
		c.tokens["library/y"] = c.tokens["library/x"]
		if a := c.get("GET", "library/y", "manifests/1"); a.StatusCode != 401 {
			t.Errorf("foreign token: %d", a.StatusCode)
		}
		hub.Set(func(o *hubtest.Options) { o.OmitAccess = true })
		c.login("alice/secret")
		if got, ok := access(t, c.tokens["alice/secret"]); ok {
			t.Errorf("access %s, though omitted", got)
		}
	})
}

// tokenStatus asks for a token and returns status and body.
func tokenStatus(t *testing.T, hub *hubtest.Hub, user, pat, scope string) (int, string) {
	c := newClient(t, "", hub.Transport())
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pat))
	query := url.Values{"service": {"registry.docker.io"}, "scope": {scope}}
	a := c.do("GET", hub.Network.URL(hubtest.Token)+"/token?"+query.Encode(), "Authorization: "+auth)
	return a.StatusCode, string(a.body)
}

func TestTokensAreCheckedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{Accounts: []hubtest.Account{{Username: "alice", PAT: "a"}}})
		defer hub.Close()
		hub.AddImage("library/x", "1", hubtest.ImageSpec{})

		status, body := tokenStatus(t, hub, "alice", "wrong", "repository:library/x:pull")
		if status != 401 || body != `{"details":"incorrect username or password"}` {
			t.Errorf("wrong PAT: %d %s", status, body)
		}
		if status, body = tokenStatus(t, hub, "alice", "a", "repository:library/x:pull,push"); status != 401 {
			t.Errorf("push with a read-only PAT: %d %s", status, body)
		}
		if n := hub.Ledger().TokenRequests("alice"); n != 2 {
			t.Errorf("%d token requests of alice", n)
		}

		c := newClient(t, hub.RegistryURL(), hub.Transport())
		c.login("library/x")
		for _, row := range []struct {
			after  time.Duration
			status int
		}{{0, 200}, {300 * time.Second, 200}, {time.Second, 401}} {
			time.Sleep(row.after)
			if a := c.get("GET", "library/x", "manifests/1"); a.StatusCode != row.status {
				t.Errorf("%v later: %d", row.after, a.StatusCode)
			}
		}
		hub.Set(func(o *hubtest.Options) { o.OmitExpiresIn, o.OpaqueTokens = true, true })
		if _, body = tokenStatus(t, hub, "alice", "a", ""); strings.Contains(body, "expires_in") {
			t.Error(body)
		}
		c.login("library/x")
		if strings.Contains(c.tokens["library/x"], ".") {
			t.Error("an opaque token with dots")
		}
		hub.RevokeTokens()
		if a := c.get("GET", "library/x", "manifests/1"); a.StatusCode != 401 {
			t.Errorf("revoked token: %d", a.StatusCode)
		}
	})
}

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

// TestLatencyAndBandwidthAreExact checks latency and bandwidth on a clock that only the Hub moves.
func TestLatencyAndBandwidthAreExact(t *testing.T) {
	took := func(t *testing.T, o hubtest.Options, clients int) time.Duration {
		var d time.Duration
		synctest.Test(t, func(t *testing.T) {
			hub := hubtest.New(o)
			defer hub.Close()
			c, path, want := faulty(t, hub, hub.Transport())
			start := time.Now()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
						t.Errorf("%d, %d bytes, %v", a.StatusCode, len(a.body), a.err)
					}
				})
			}
			wg.Wait()
			d = time.Since(start).Round(time.Millisecond)
		})
		return d
	}
	for name, row := range map[string]struct {
		o       hubtest.Options
		clients int
		want    time.Duration
	}{
		"nothing":         {hubtest.Options{}, 3, 0},
		"latency":         {hubtest.Options{Latency: time.Second}, 1, 2 * time.Second}, // registry and CDN
		"connections":     {hubtest.Options{ConnLatency: time.Second}, 1, 2 * time.Second},
		"first byte":      {hubtest.Options{FirstByte: time.Second}, 1, time.Second},
		"bandwidth":       {hubtest.Options{Bandwidth: 10_000}, 3, 10 * time.Second},
		"total bandwidth": {hubtest.Options{TotalBandwidth: 10_000}, 3, 30 * time.Second},
	} {
		if got := took(t, row.o, row.clients); got != row.want {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}

// TestLedgerCountsWhatWasSent checks a body that its client abandons, and many complete ones
// looked up the moment they are complete.
func TestLedgerCountsWhatWasSent(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, _ := faulty(t, hub, rt)
		for i := range 400 {
			hub.ResetLedger()
			n := int64(1 + i*4999%100_000)
			c.get("GET", faultyRepo, path, fmt.Sprintf("Range: bytes=0-%d", n-1))
			l := hub.Ledger()
			if last := l[len(l)-1]; l.BlobBytes() != n || last.Ended.IsZero() || last.Status != 206 {
				t.Fatalf("%d bytes in the ledger, want %d: %+v", l.BlobBytes(), n, last)
			}
		}

		hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(12_345))
		hub.ResetLedger()
		req, _ := http.NewRequest("GET", hub.RegistryURL()+"/v2/"+faultyRepo+"/"+path, nil)
		req.Header.Set("Authorization", "Bearer "+c.tokens[faultyRepo])
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 12_345))
		resp.Body.Close()
		if err := hub.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := hub.Ledger().BlobBytes(); n != 12_345 {
			t.Errorf("%d bytes in the ledger, and 12,345 were sent", n)
		}
	})
}

func TestTransportRefusesUnknownHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{})
		c := newClient(t, "http://nowhere.test", hub.Transport())
		_, err := c.tryGet("GET", "library/x", "manifests/1")
		if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsNotFound {
			t.Errorf("unknown host: %v", err)
		}
		hub.Close()
		c.base = hub.RegistryURL()
		if _, err := c.tryGet("GET", "library/x", "manifests/1"); err == nil {
			t.Error("a closed Hub answered")
		}
	})
}

func TestTransportReachesAddedHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{})
		defer hub.Close()
		var got http.Header
		hub.AddHost("evil.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header }))
		c, path, _ := faulty(t, hub, hub.Transport())
		hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.RedirectTo("https://evil.test/x"))
		if a := c.get("GET", faultyRepo, path); a.StatusCode != 200 || got == nil {
			t.Errorf("%d, headers %v", a.StatusCode, got)
		}
	})
}

// TestConcurrentUse does everything at once, for the race detector, and checks that Close
// leaves no goroutine behind.
func TestConcurrentUse(t *testing.T) {
	before := runtime.NumGoroutine()
	hub := hubtest.New(hubtest.Options{TotalBandwidth: 50 << 20})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	rt := hubtest.LoopbackOnly(&http.Transport{})
	c, path, want := faulty(t, hub, rt)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 5 {
				if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
					t.Errorf("%d bytes, %v", len(a.body), a.err)
				}
				hub.AddImage("library/other", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(1, 100)})
				hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Hang()).Remove()
				hub.Set(func(o *hubtest.Options) { o.Latency = time.Microsecond })
				_ = hub.Ledger().BlobBytes() + int64(hub.Used(""))
			}
		})
	}
	wg.Wait()
	if n := hub.Ledger().BlobBytes(); n != int64(16*5*len(want)) {
		t.Errorf("%d bytes in the ledger", n)
	}
	rt.CloseIdleConnections()
	hub.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, and there were %d", runtime.NumGoroutine(), before)
		}
	}
}

// TestDialContextReachesRealNamesByTLS pulls under the real names, whose addresses only the dialer knows.
func TestDialContextReachesRealNamesByTLS(t *testing.T) {
	hub := hubtest.New(hubtest.Options{
		TLS: true, RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com",
	})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	_, pool := hub.Network.CA()
	rt := &http.Transport{DialContext: hub.Network.DialContext, TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer rt.CloseIdleConnections()
	c, path, want := faulty(t, hub, rt)
	if !strings.HasPrefix(hub.RegistryURL(), "https://registry-1.docker.io:") {
		t.Error(hub.RegistryURL())
	}
	if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
		t.Errorf("%d, %d bytes", a.StatusCode, len(a.body))
	}
	hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.CutAfter(500))
	if a := c.get("GET", faultyRepo, path); len(a.body) != 500 || a.err != io.ErrUnexpectedEOF {
		t.Errorf("cut: %d bytes, %v", len(a.body), a.err)
	}
}
