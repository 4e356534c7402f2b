package registry_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// blobFault is a row of the fault matrix of blobs. Every fault is tried in each fetchMode,
// once and always.
type blobFault struct {
	name     string
	face     hubtest.Face
	faults   func(f fetchMode) []hubtest.Fault
	once     result        // what clients get when the fault happens once
	always   result        // what they get when it happens every time
	rest     time.Duration // time until upstream is asked again, if longer than a failure is remembered
	harmless bool          // not an error
	narrow   bool          // only tried always and with a single stream
}

// fixed is a fault that is the same in every fetchMode.
func fixed(fault hubtest.Fault) func(fetchMode) []hubtest.Fault {
	return func(fetchMode) []hubtest.Fault { return []hubtest.Fault{fault} }
}

// redirectTo is a redirect whose URL edit has changed.
func redirectTo(edit func(*url.URL)) func(fetchMode) []hubtest.Fault {
	return fixed(hubtest.EditRedirect(edit))
}

// requests is how often the faulty host is asked for a single stream when clients get this
// result: until a resume succeeds, or three times, or once if asking again can't help.
func (row *blobFault) requests(got result) int {
	again := 0 // with a new token, the first time
	if strings.Contains(row.name, "401") && row.face == hubtest.Registry && row.name != "401 at the registry" {
		again = 1
	}
	switch {
	case got == wholeOrRefused: // the second client asks again, since a manifest names the blob
		return 2
	case row.once == wholeOrRefused: // and so do all five
		return 5 + again
	case row.harmless, row.once != whole:
		return 1
	case got == refusedOrBroken && (strings.HasPrefix(row.name, "HTML") || row.name == "longer" || row.name == "shorter"):
		return 4 // two downloads, since their clients have got nothing, of two answers that agree on another length
	case got == whole, strings.HasPrefix(row.name, "silence at"): // 4 s: there is no time for a third
		return 2
	case strings.HasSuffix(row.name, "loop"), row.name == "redirect to itself":
		return 3 * 6
	}
	return 3 + again
}

// internalHosts are where a redirect must not lead while the upstream is public.
var internalHosts = []string{"127.0.0.1", "[::1]", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "0.0.0.0"}

// blobFaults are all rows.
func blobFaults() []blobFault {
	at := func(fault func(int64) hubtest.Fault, more ...hubtest.Fault) func(fetchMode) []hubtest.Fault {
		return func(f fetchMode) []hubtest.Fault { return append(more, fault(f.offset)) }
	}
	rows := []blobFault{
		// In the body.
		{name: "cut", face: hubtest.CDN, faults: at(hubtest.CutAfter), once: whole, always: whole},
		{name: "cut at the first byte", face: hubtest.CDN, faults: fixed(hubtest.CutAfter(0)), once: whole, always: refusedOrBroken},
		{name: "reset in the body", face: hubtest.CDN, faults: at(hubtest.ResetAfter), once: whole, always: whole},
		{name: "stall in the body", face: hubtest.CDN, faults: at(hubtest.StallAfter), once: whole, always: whole},
		{name: "stall at the first byte", face: hubtest.CDN, faults: fixed(hubtest.StallAfter(0)), once: whole, always: refusedOrBroken},
		{name: "cut, and a resume gets 200", face: hubtest.CDN, faults: at(hubtest.CutAfter, hubtest.IgnoreRange()), once: whole, always: refusedOrBroken},
		{name: "cut without length", face: hubtest.CDN, faults: at(hubtest.CutAfter, hubtest.Chunked()), once: whole, always: whole},
		{name: "shorter without length", face: hubtest.CDN, faults: func(f fetchMode) []hubtest.Fault {
			return []hubtest.Fault{hubtest.Chunked(), hubtest.Shorter(1000)}
		}, once: whole, always: refusedOrBroken},

		// In the headers.
		{name: "shorter", face: hubtest.CDN, faults: fixed(hubtest.Shorter(1000)), once: whole, always: refusedOrBroken},
		{name: "longer", face: hubtest.CDN, faults: fixed(hubtest.Longer(1000)), once: whole, always: refusedOrBroken},
		{name: "no Content-Length", face: hubtest.CDN, faults: fixed(hubtest.Chunked()), once: whole, always: whole, harmless: true},
		{name: "200 to every range", face: hubtest.CDN, faults: fixed(hubtest.IgnoreRange()), once: whole, always: whole, harmless: true},
		{name: "HTML", face: hubtest.CDN, faults: fixed(hubtest.HTML()), once: whole, always: refusedOrBroken},
		{name: "HTML from the registry", face: hubtest.Registry, faults: fixed(hubtest.HTML()), once: whole, always: refusedOrBroken},
		{name: "redirect loop", face: hubtest.Registry, faults: fixed(hubtest.RedirectLoop()), once: whole, always: refusedOrBroken},
		{name: "redirect to http", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Scheme = "http" }), once: whole, always: refusedOrBroken},
		{name: "redirect to a file", face: hubtest.Registry, faults: fixed(hubtest.RedirectTo("file:///etc/passwd")), once: whole, always: refusedOrBroken},
		{name: "redirect to itself", face: hubtest.Registry, faults: fixed(hubtest.RedirectTo("")), once: whole, always: refusedOrBroken},
		{name: "redirect with credentials", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.User = url.UserPassword("a", "b") }), once: whole, always: refusedOrBroken},

		// Before the headers.
		{name: "expired URL", face: hubtest.Registry, faults: fixed(hubtest.ExpiredURL()), once: whole, always: refusedOrBroken},
		{name: "host without an address", face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Host = "gone.hub.test" }), once: whole, always: refusedOrBroken},
	}
	for _, host := range internalHosts {
		rows = append(rows, blobFault{narrow: true, name: "redirect to " + host, face: hubtest.Registry, faults: redirectTo(func(u *url.URL) { u.Host = host }), once: whole, always: refusedOrBroken})
	}
	for _, face := range []hubtest.Face{hubtest.Registry, hubtest.CDN} {
		for _, f := range []struct {
			name  string
			fault hubtest.Fault
		}{
			{"connection closed", hubtest.Drop()}, {"connection reset", hubtest.Reset()}, {"silence", hubtest.Hang()},
			{"500", hubtest.Status(500, "oops")}, {"503", hubtest.Status(503, "<html>")},
			{"half a status line", hubtest.Raw(0, "HTTP/1.1 20")}, {"half a header", hubtest.Raw(0, "HTTP/1.1 200 OK\r\nContent-Le")},
		} {
			row := blobFault{name: f.name + " at the " + string(face), face: face, faults: fixed(f.fault), once: whole, always: refusedOrBroken}
			rows = append(rows, row)
		}
		for _, f := range []struct {
			name  string
			fault hubtest.Fault
			rest  time.Duration
		}{
			{"429", hubtest.TooManyRequests(), time.Minute},
			{"429 with Retry-After", hubtest.TooManyRequests("Retry-After: 200"), 200 * time.Second},
			{"HAP429", hubtest.HAP429(), time.Minute},
		} {
			rows = append(rows, blobFault{name: f.name + " at the " + string(face), face: face, faults: fixed(f.fault), once: refusedOrBroken, always: refusedOrBroken, rest: f.rest})
		}
	}
	return append(rows,
		blobFault{name: "403 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(403, "<Error/>")), once: whole, always: refusedOrBroken},
		blobFault{name: "404 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(404, "<Error/>")), once: whole, always: refusedOrBroken},
		blobFault{name: "401 at the CDN", face: hubtest.CDN, faults: fixed(hubtest.Status(401, "<Error/>")), once: whole, always: refusedOrBroken},
		blobFault{name: "401 at the registry", face: hubtest.Registry, faults: fixed(hubtest.Status(401, "")), once: whole, always: refusedOrBroken},
		blobFault{name: "403 at the registry", face: hubtest.Registry, faults: fixed(hubtest.Status(403, "<html>")), once: whole, always: refusedOrBroken},
		blobFault{name: "404 at the registry", face: hubtest.Registry, faults: fixed(hubtest.Status(404, "{}")), once: whole, always: refusedOrBroken},
		blobFault{name: "401 to an invalid token", face: hubtest.Registry, faults: fixed(bearerRefusal("invalid_token")), once: whole, always: refusedOrBroken},
		blobFault{name: "the registry's own 401", face: hubtest.Registry, faults: fixed(bearerRefusal("insufficient_scope")), once: wholeOrRefused, always: refusedOrBroken},
		blobFault{name: "the registry's own 403", face: hubtest.Registry, faults: fixed(apiRefusal(403, "DENIED")), once: wholeOrRefused, always: refusedOrBroken},
		blobFault{name: "the registry's own 404", face: hubtest.Registry, faults: fixed(apiRefusal(404, "BLOB_UNKNOWN")), once: wholeOrRefused, always: refusedOrBroken},
	)
}

// TestBlobFaultsNeverBecomeWrongBytes: whatever fault upstream has, each client gets the
// right bytes, an error in time, or a broken connection. The store stays consistent, and
// the blob is cached once the fault is over.
func TestBlobFaultsNeverBecomeWrongBytes(t *testing.T) {
	t.Parallel()
	for _, row := range blobFaults() {
		for _, how := range fetchModes {
			for _, often := range []string{"once", "always"} {
				if row.narrow && (how.skip > 0 || how.ahead || often == "once") ||
					row.face == hubtest.Registry && how.skip > 0 { // the registry is asked once for all ranges
					continue
				}
				t.Run(row.name+"/"+how.name+"/"+often, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { testBlobFault(t, row, how, often == "once") })
				})
			}
		}
	}
}

// testBlobFault tests one row in one fetchMode.
func testBlobFault(t *testing.T, row blobFault, how fetchMode, once bool) {
	l := newLab(t, labOptions{
		hub:    hubtest.Options{TLS: true, Bandwidth: 20 << 20},
		policy: func(p *registry.Policy) { p.ReadAhead = how.ahead },
	})
	forbidden := l.watchForbiddenHosts()
	layers := l.addImage("library/app", "1", how.size, how.size)
	target := layers[1]
	if r := l.get("/v2/library/app/manifests/1"); r.status != 200 {
		t.Fatalf("manifest: %d", r.status)
	}
	match := hubtest.Match{Face: row.face, Kind: "blobs", Reference: string(target), Skip: how.skip}
	want := row.always
	if once {
		match.Times, want = 1, row.once
	}
	rule := l.hub.Inject(match, row.faults(how)...)
	if how.ahead {
		c := &client{name: "ahead"}
		c.get(l, "library/app", layers[0])
		if row.rest == 0 { // otherwise a request of read-ahead may have met the rate limit before
			c.check(t, l, layers[0], whole)
		}
	}
	start := time.Now()
	cs := l.mixedClients("library/app", target)
	if rule.Hits() == 0 {
		t.Error("the fault never happened")
	}
	for _, c := range cs {
		c.check(t, l, target, want)
	}
	// A body that breaks is resumed or given up within 45 s; check says how long headers may
	// take. An upstream that stalls again and again, but sends something each time, is slow
	// and not broken.
	slow := row.name == "stall in the body" && !once
	if took := time.Since(start); took > 45*time.Second && !slow {
		t.Errorf("it took %s", took)
	}
	if n := len(*forbidden); n > 0 {
		t.Errorf("requests to forbidden hosts: %v", *forbidden)
	}
	l.checkStore(target)
	if how.name == "single stream" {
		asked := l.hub.Ledger().Count(func(e hubtest.Entry) bool { return e.Face == row.face && e.Kind == "blobs" })
		if want := row.requests(want); asked != want {
			t.Errorf("%d requests to the %s instead of %d:\n%s", asked, row.face, want, l.hub.Ledger())
		}
	}
	rule.Remove()
	time.Sleep(max(row.rest, 20*time.Second) + time.Second) // a body that breaks each time is remembered for 20 s at most
	l.fetch("library/app", target)
	l.checkStore(target)
	l.hub.ResetLedger()
	l.fetch("library/app", target)
	if got := l.hub.Ledger(); len(got) > 0 {
		t.Errorf("not cached after the fault was over:\n%s", got)
	}
	if v := l.hub.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// watchForbiddenHosts puts servers where no redirect may lead, and returns the requests that
// they saw.
func (l *lab) watchForbiddenHosts() *[]string {
	var mu sync.Mutex
	var called []string
	for _, host := range append(internalHosts, "cdn.evil.test", "cdn.hub.test:80") {
		l.hub.AddHost(strings.Trim(host, "[]"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			called = append(called, r.Method+" "+r.Host)
		}))
	}
	return &called
}
