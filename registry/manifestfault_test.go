package registry_test

import (
	"cmp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// manifestFault is a row of the fault matrix of manifests and tokens. Every fault is tried
// with a cached and with an uncached tag.
type manifestFault struct {
	name   string
	match  hubtest.Match
	faults []hubtest.Fault
	hub    func(*hubtest.Options) // in place of match and faults: changes the Hub's options
	cold   int                    // status of an uncached tag; 0: any failure
	cached int                    // status of a cached tag; 0: 200, stale
	heals  bool                   // a cached tag is not stale
	rest   time.Duration          // time until upstream is asked again
}

func manifestFaults() []manifestFault {
	heads := hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}
	gets := hubtest.Match{Face: hubtest.Registry, Kind: "manifests", Method: "GET"}
	tokens := hubtest.Match{Face: hubtest.Token}
	one := func(f ...hubtest.Fault) []hubtest.Fault { return f }
	return []manifestFault{
		// Before the headers.
		{name: "connection closed", match: heads, faults: one(hubtest.Drop()), cold: 502},
		{name: "connection reset", match: heads, faults: one(hubtest.Reset()), cold: 502},
		{name: "silence", match: heads, faults: one(hubtest.Hang()), cold: 504},
		{name: "one repository is slow", match: hubtest.Match{Face: hubtest.Registry, Repository: "library/app"}, faults: one(hubtest.Delay(3 * time.Second)), cold: 200},
		{name: "500", match: heads, faults: one(hubtest.Status(500, "")), cold: 502},
		{name: "503", match: heads, faults: one(hubtest.Status(503, "")), cold: 502},
		{name: "401 for ever", match: heads, faults: one(hubtest.Status(401, "")), cold: 502},
		{name: "403", match: heads, faults: one(hubtest.Status(403, "")), cold: 502},
		{name: "404", match: heads, faults: one(hubtest.Status(404, "")), cold: 502},
		{name: "410", match: heads, faults: one(hubtest.Status(410, "")), cold: 502},
		{name: "a firewall's 403", match: heads, faults: one(hubtest.Status(403, "<html>blocked</html>", "Content-Type: text/html")), cold: 502},
		{name: "a gateway's 404", match: heads, faults: one(hubtest.Status(404, `{"message":"Not Found"}`, "Content-Type: application/json")), cold: 502},
		{name: "401 to a token that grants the repository", match: heads, faults: one(apiRefusal(401, "UNAUTHORIZED")), cold: 502},
		{name: "401 to an invalid token", match: heads, faults: one(bearerRefusal("invalid_token")), cold: 502},
		{name: "the registry's own 401", match: heads, faults: one(bearerRefusal("insufficient_scope")), cold: 404, cached: 404},
		{name: "the registry's own 403", match: heads, faults: one(apiRefusal(403, "DENIED")), cold: 404, cached: 404},
		{name: "the registry's own 404", match: heads, faults: one(apiRefusal(404, "MANIFEST_UNKNOWN")), cold: 404, cached: 404},
		{name: "the registry's own 410", match: heads, faults: one(apiRefusal(410, "MANIFEST_UNKNOWN")), cold: 404, cached: 404},
		{name: "429", match: heads, faults: one(hubtest.TooManyRequests()), cold: 429, rest: time.Minute},
		{name: "429 with Retry-After", match: heads, faults: one(hubtest.TooManyRequests("Retry-After: 300")), cold: 429, rest: 300 * time.Second},
		{name: "HAP429", match: heads, faults: one(hubtest.HAP429()), cold: 429, rest: time.Minute},
		{name: "HAP429 well formed", match: heads, faults: one(hubtest.Status(429, "Too Many Requests (HAP429).\n", "Retry-After: 60")), cold: 429, rest: time.Minute},
		{name: "redirect loop", match: heads, faults: one(hubtest.RedirectLoop()), cold: 502},
		{name: "redirect into the network", match: heads, faults: one(hubtest.RedirectTo("https://127.0.0.1/v2/")), cold: 502},

		// In the headers: HEAD has no digest, and GET has another body.
		{name: "HTML", match: heads, faults: one(hubtest.HTML()), cold: 0, cached: 0},

		// In the body.
		{name: "cut", match: gets, faults: one(hubtest.CutAfter(20)), cold: 502, heals: true},
		{name: "reset in the body", match: gets, faults: one(hubtest.ResetAfter(20)), cold: 502, heals: true},
		{name: "stall in the body", match: gets, faults: one(hubtest.StallAfter(20)), cold: 504, heals: true},
		{name: "wrong byte", match: gets, faults: one(hubtest.FlipByte(20)), cold: 502, heals: true},
		{name: "shorter", match: gets, faults: one(hubtest.Shorter(10)), cold: 502, heals: true},
		{name: "longer", match: gets, faults: one(hubtest.Longer(10)), cold: 502, heals: true},
		{name: "shorter without length", match: gets, faults: one(hubtest.Shorter(10), hubtest.Chunked()), cold: 502, heals: true},
		{name: "without length", match: gets, faults: one(hubtest.Chunked()), cold: 200, heals: true},
		{name: "endless", match: gets, faults: one(hubtest.Longer(1<<40), hubtest.Chunked()), cold: 502, heals: true},

		// The token service.
		{name: "no token service", match: tokens, faults: one(hubtest.Reset()), cold: 429},
		{name: "slow token service", match: tokens, faults: one(hubtest.Delay(20 * time.Second)), cold: 429},
		{name: "token service 401", match: tokens, faults: one(hubtest.Status(401, `{"details":"incorrect username or password"}`)), rest: time.Minute},
		{name: "token service 401 to everybody", match: tokens, faults: one(hubtest.Status(401, `{"details":"unauthorized"}`, "Content-Type: application/json")), rest: time.Minute},
		{name: "token service 403", match: tokens, faults: one(apiRefusal(403, "DENIED")), rest: time.Minute},
		{name: "token service 403 of a firewall", match: tokens, faults: one(hubtest.Status(403, "<html>", "Content-Type: text/html")), rest: time.Minute},
		{name: "token service 404", match: tokens, faults: one(apiRefusal(404, "NAME_UNKNOWN")), cold: 429},
		{name: "token service sends tokens of no use", match: tokens, faults: one(hubtest.Status(200, `{"token":"opaque"}`, "Content-Type: application/json"))},
		{name: "token service 429", match: tokens, faults: one(hubtest.TooManyRequests()), cold: 429, rest: time.Minute},
		{name: "token service 500", match: tokens, faults: one(hubtest.Status(500, "")), cold: 429},
		{name: "token service HTML", match: tokens, faults: one(hubtest.HTML()), cold: 429},
		{name: "tokens without expires_in", hub: func(o *hubtest.Options) { o.OmitExpiresIn = true }, cold: 200, heals: true},
		{name: "upstream's clock an hour ahead", hub: func(o *hubtest.Options) { o.ClockSkew = time.Hour }, cold: 200, heals: true},
		{name: "upstream's clock an hour behind", hub: func(o *hubtest.Options) { o.ClockSkew = -time.Hour }, cold: 200, heals: true},
	}
}

// bearerRefusal is a registry's 401 that says what is wrong with the token.
func bearerRefusal(problem string) hubtest.Fault {
	return hubtest.Status(401, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, "Content-Type: application/json",
		`WWW-Authenticate: Bearer realm="https://auth.hub.test/token",service="registry.docker.io",error="`+problem+`"`)
}

// TestManifestFaultsAreAnsweredInTime: whatever fault upstream has, a cached tag is
// answered within 2 s and an uncached one within 5 s, and both are served again after the
// fault.
func TestManifestFaultsAreAnsweredInTime(t *testing.T) {
	t.Parallel()
	for _, row := range manifestFaults() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testManifestFault(t, row) })
		})
	}
}

// testManifestFault tests one row.
func testManifestFault(t *testing.T, row manifestFault) {
	l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
	forbidden := l.watchForbiddenHosts()
	l.addImage("library/app", "cached", 1000, 5<<18)
	l.addImage("library/new", "cold", 1000, 1001)
	cached := l.get("/v2/library/app/manifests/cached")
	for _, c := range image.Children(cached.body) {
		l.fetch("library/app", c.Digest)
	}
	time.Sleep(10 * time.Minute) // all tokens have expired
	if row.hub != nil {
		l.hub.Set(row.hub)
	} else {
		l.hub.Inject(row.match, row.faults...)
	}
	for _, method := range []string{"HEAD", "GET", "GET"} {
		start := time.Now()
		r := l.do(method, "/v2/library/app/manifests/cached")
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("a cached tag took %s", took)
		}
		if r.status != cmp.Or(row.cached, 200) {
			t.Fatalf("cached %s: %d %s", method, r.status, r.body)
		}
		if r.status == 200 && method == "GET" && !equal(r.body, cached.body) {
			t.Errorf("cached: wrong bytes, %q", r.body)
		}
		if stale := r.header.Get("X-Hubcache") == "stale"; r.status == 200 && stale == row.heals {
			t.Errorf("cached: X-Hubcache: %s", r.header.Get("X-Hubcache"))
		}
	}
	// By digest, what is cached needs no upstream.
	if r := l.get("/v2/library/app/manifests/" + digest.FromBytes(cached.body).String()); r.status != 200 || !equal(r.body, cached.body) {
		t.Errorf("cached, by digest: %d %s", r.status, r.body)
	}
	for _, c := range image.Children(cached.body) {
		l.fetch("library/app", c.Digest)
	}
	start := time.Now()
	r := l.get("/v2/library/new/manifests/cold")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("an uncached tag took %s", took)
	}
	want := row.cold
	if want == 0 && r.status < 400 || want != 0 && r.status != want || r.status == 401 {
		t.Errorf("uncached: %d instead of %d: %s", r.status, want, r.body)
	}
	if r.status >= 400 {
		checkAPIError(t, r)
	}
	if n := len(*forbidden); n > 0 {
		t.Errorf("requests to forbidden hosts: %v", *forbidden)
	}
	l.checkStore()
	l.hub.ClearFaults()
	time.Sleep(max(row.rest, 30*time.Second) + time.Second) // the breaker probes every 30 s
	for _, ref := range []string{"app/manifests/cached", "new/manifests/cold"} {
		if r := l.get("/v2/library/" + ref); r.status != 200 || r.header.Get("X-Hubcache") == "stale" {
			t.Errorf("after the fault: %d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
		}
	}
	l.checkStore()
	if v := l.hub.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestTokenRevokedDuringAPullIsReplaced: when a token is revoked, one new token is asked
// for, the request is repeated, and the client notices nothing.
func TestTokenRevokedDuringAPullIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 1 << 20}})
		layers := l.addImage("library/app", "1", 5<<18, 17<<19)
		l.get("/v2/library/app/manifests/1")
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(layers[1]), Times: 1}, hubtest.CutAfter(1<<19))
		l.hub.ResetLedger()
		l.hub.RevokeTokens()
		l.fetch("library/app", layers[0])
		l.fetch("library/app", layers[1])
		if n := l.hub.Ledger().TokenRequests(username); n != 1 {
			t.Errorf("%d token requests:\n%s", n, l.hub.Ledger())
		}
		l.checkStore(layers...)
	})
}

// TestPullOutlivesItsTokens: a pull of 30 s goes on although tokens are valid for 5 s and
// signed URLs for 1 s.
func TestPullOutlivesItsTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 1 << 18, TokenLifetime: 5 * time.Second, URLLifetime: time.Second}})
		layers := l.addImage("library/app", "1", 5<<18, 17<<19, 5<<18)
		l.get("/v2/library/app/manifests/1")
		for _, d := range layers {
			l.fetch("library/app", d)
		}
		l.checkStore(layers...)
	})
}
