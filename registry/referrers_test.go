package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// attested puts an image with an attestation into the Hub, with something that refers to the
// attestation manifest, and pulls it as Docker 29 does. It returns the path of the referrers of
// the attestation manifest.
func (l *lab) attested(repository string) (img *hubtest.Image, path string) {
	l.t.Helper()
	img = l.hub.AddImage(repository, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1000), Attestations: true})
	d := img.Manifests[1].Digest
	signature := l.refer(repository, d, "signature/1")
	l.pull(img)
	l.get("/v2/" + repository + "/manifests/" + string(signature))
	if r := l.get("/v2/" + repository + "/manifests/" + string(d)); r.status != 200 {
		l.t.Fatal(r.status)
	}
	path = "/v2/" + repository + "/referrers/" + string(d)
	if r := l.get(path); r.status != 200 || !strings.Contains(string(r.body), "signature/1") {
		l.t.Fatalf("%d %s", r.status, r.body)
	}
	return img, path
}

// refer puts a manifest that refers to another one into the Hub.
func (l *lab) refer(repository string, to digest.Digest, artifactType string) digest.Digest {
	body := fmt.Appendf(nil, `{"schemaVersion":2,"artifactType":%q,"subject":{"digest":%q,"size":1}}`, artifactType, to)
	l.hub.AddManifest(repository, "", "application/vnd.oci.image.manifest.v1+json", body)
	return digest.FromBytes(body)
}

// TestStaleReferrersNameWhatCanBeHad: dockerd 29 pulls what a list names, and fails the pull of the
// image if that can't be had. So what isn't cached whole is left out while upstream is down.
func TestStaleReferrersNameWhatCanBeHad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, path := l.attested("library/app")
		subject := img.Manifests[1].Digest
		l.refer("library/app", subject, "never/pulled")
		half := fmt.Appendf(nil, `{"schemaVersion":2,"artifactType":"half/pulled","layers":[{"digest":%q,"size":5}],"subject":{"digest":%q,"size":1}}`, digest.FromString("layer"), subject)
		l.hub.AddManifest("library/app", "", "application/vnd.oci.image.manifest.v1+json", half)
		l.get("/v2/library/app/manifests/" + string(digest.FromBytes(half)))
		time.Sleep(10 * time.Minute)
		if r := l.get(path); !strings.Contains(string(r.body), "never/pulled") || !strings.Contains(string(r.body), "half/pulled") {
			t.Fatalf("%d %s", r.status, r.body)
		}
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		time.Sleep(10 * time.Minute)
		for range 2 {
			r := l.get(path)
			var index struct {
				SchemaVersion int
				Manifests     []struct{ ArtifactType string }
			}
			if err := json.Unmarshal(r.body, &index); err != nil || r.status != 200 || r.header.Get("X-Hubcache") != "stale" || index.SchemaVersion != 2 || len(index.Manifests) != 1 || index.Manifests[0].ArtifactType != "signature/1" {
				t.Errorf("%d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
			}
			l.stop()
			l.start()
		}
	})
}

// TestReferrersOutliveARestart: the referrers of a manifest that was pulled are served stale after
// a restart while upstream can't be reached, with the index and without it, and in no other
// repository.
func TestReferrersOutliveARestart(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		for _, anonymous := range []bool{false, true} {
			t.Run(fmt.Sprintf("index lost=%v/anonymous=%v", lost, anonymous), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t, labOptions{anonymous: anonymous})
					img, path := l.attested("library/app")
					time.Sleep(2 * time.Second) // its record is written
					l.stop()
					if lost {
						l.removeIndex()
					}
					l.start()
					l.hub.Inject(hubtest.Match{}, hubtest.Reset())
					for range 3 {
						r := l.get(path)
						if r.status != 200 || r.header.Get("X-Hubcache") != "stale" || !strings.Contains(string(r.body), "signature/1") {
							t.Errorf("%d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
						}
						if got := r.header.Get("Content-Type"); got != "application/vnd.oci.image.index.v1+json" {
							t.Errorf("the type is %q", got)
						}
						time.Sleep(24 * time.Hour)
					}
					other := strings.Replace(path, "library/app", "library/other", 1)
					if r := l.get(other); r.status == 200 {
						t.Errorf("another repository: %d %s", r.status, r.body)
					}
					// What upstream says next replaces it.
					l.hub.ClearFaults()
					time.Sleep(time.Minute)
					second := l.refer("library/app", img.Manifests[1].Digest, "signature/2")
					l.get("/v2/library/app/manifests/" + string(second))
					l.get(path)
					l.stop()
					l.start()
					l.hub.Inject(hubtest.Match{}, hubtest.Reset())
					if r := l.get(path); r.status != 200 || !strings.Contains(string(r.body), "signature/2") {
						t.Errorf("after a new list: %d %s", r.status, r.body)
					}
					l.checkStore()
				})
			})
		}
	}
}

// TestEmptyIndexOfOursIsNotKept: the empty index that stands in while upstream can't be asked
// doesn't replace what upstream had said, and isn't on disk.
func TestEmptyIndexOfOursIsNotKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, path := l.attested("library/app")
		platform := "/v2/library/app/referrers/" + string(img.Manifests[0].Digest)
		time.Sleep(10 * time.Minute)
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "referrers"}, hubtest.Status(500, ""))
		for range 3 {
			l.get(path)
			if r := l.get(platform); r.status != 200 || r.header.Get("X-Hubcache") != "stale" || !strings.Contains(string(r.body), `"manifests":[]`) {
				t.Errorf("%d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
			}
			l.stop()
			l.start()
		}
		if r := l.get(path); !strings.Contains(string(r.body), "signature/1") {
			t.Errorf("%d %s", r.status, r.body)
		}
		rule.Remove()
		time.Sleep(time.Minute)
		if r := l.get(platform); r.status != 200 || r.header.Get("X-Hubcache") != "miss" {
			t.Errorf("after it: %d %s", r.status, r.header.Get("X-Hubcache"))
		}
	})
}

// TestReferrersOfAnyLengthAreKept: a list that is longer than what is kept in memory comes from
// the disk, whole.
func TestReferrersOfAnyLengthAreKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, path := l.attested("library/app")
		want := `{"schemaVersion":2,"manifests":[{"digest":"` + string(img.Digest) + `","annotations":{"a":"` + strings.Repeat("long ", 60_000) + `"}}]}`
		l.get("/v2/library/app/manifests/" + string(img.Manifests[0].Digest))
		time.Sleep(10 * time.Minute)
		rule := l.hub.Inject(hubtest.Match{Kind: "referrers"}, hubtest.Status(200, want, "Content-Type: application/vnd.oci.image.index.v1+json", "Link: <"+path+"?last=1>; rel=\"next\""))
		if r := l.get(path); r.status != 200 || !is(r.body, want) || r.header.Get("Link") == "" {
			t.Fatalf("%d %v, %d bytes", r.status, r.header, len(r.body))
		}
		rule.Remove()
		l.stop()
		l.start()
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := l.do(method, path)
			if r.status != 200 || r.header.Get("X-Hubcache") != "stale" || r.header.Get("Content-Length") != fmt.Sprint(len(want)) || method == http.MethodGet && !is(r.body, want) {
				t.Errorf("%s: %d %v, %d bytes", method, r.status, r.header, len(r.body))
			}
			if link := r.header.Get("Link"); link != "" {
				t.Errorf("a link that can't be followed: %s", link)
			}
		}
	})
}

// TestReferrersLeaveWithTheirManifest: what refers to a manifest that has left is not served any
// more, nor after the manifest has come back.
func TestReferrersLeaveWithTheirManifest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, path := l.attested("library/app")
		d := img.Manifests[1].Digest
		l.store.Remove(d)
		if _, err := l.store.Referrers("docker.io/library/app", d); err == nil {
			t.Error("the list is still there")
		}
		time.Sleep(10 * time.Minute)
		if r := l.get("/v2/library/app/manifests/" + string(d)); r.status != 200 {
			t.Fatal(r.status)
		}
		l.stop()
		l.start()
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		if r := l.get(path); r.status != 200 || r.header.Get("X-Hubcache") != "stale" || strings.Contains(string(r.body), "signature") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}

// referrersFault is a row of the fault matrix of referrers.
type referrersFault struct {
	name  string
	match hubtest.Match
	fault hubtest.Fault
	cold  int           // status of the referrers of what isn't cached
	fresh bool          // upstream's answer counts where no list is kept: it isn't stale
	rest  time.Duration // time until upstream is asked again
}

func referrersFaults() (rows []referrersFault) {
	for _, kind := range []string{"referrers", ""} { // referrers alone, or the whole registry
		at := hubtest.Match{Face: hubtest.Registry, Kind: kind}
		for _, row := range []referrersFault{
			{name: "connection closed", fault: hubtest.Drop(), cold: 502},
			{name: "connection reset", fault: hubtest.Reset(), cold: 502},
			{name: "silence", fault: hubtest.Hang(), cold: 504},
			{name: "500", fault: hubtest.Status(500, ""), cold: 502},
			{name: "503", fault: hubtest.Status(503, ""), cold: 502},
			{name: "401 for ever", fault: hubtest.Status(401, ""), cold: 502},
			{name: "403", fault: hubtest.Status(403, ""), cold: 502},
			{name: "a firewall's 403", fault: hubtest.Status(403, "<html>blocked</html>", "Content-Type: text/html"), cold: 502},
			{name: "a gateway's 404", fault: hubtest.Status(404, `{"message":"Not Found"}`, "Content-Type: application/json"), cold: 502},
			{name: "401 to an invalid token", fault: bearerRefusal("invalid_token"), cold: 502},
			{name: "429", fault: hubtest.TooManyRequests(), cold: 429, rest: time.Minute},
			{name: "429 with Retry-After", fault: hubtest.TooManyRequests("Retry-After: 300"), cold: 429, rest: 300 * time.Second},
			{name: "HAP429", fault: hubtest.HAP429(), cold: 429, rest: time.Minute},
			{name: "HTML", fault: hubtest.HTML(), cold: 502},
			{name: "redirect loop", fault: hubtest.RedirectLoop(), cold: 502},
			{name: "cut", fault: hubtest.CutAfter(20), cold: 502},
			{name: "reset in the body", fault: hubtest.ResetAfter(20), cold: 502},
			{name: "stall in the body", fault: hubtest.StallAfter(20), cold: 504},
			{name: "shorter", fault: hubtest.Shorter(10), cold: 502},
		} {
			row.match = at
			row.name = strings.TrimSpace(kind + " " + row.name)
			rows = append(rows, row)
		}
	}
	at := hubtest.Match{Face: hubtest.Registry, Kind: "referrers"}
	tokens := hubtest.Match{Face: hubtest.Token}
	return append(rows, []referrersFault{
		{name: "the registry knows no referrers", match: at, fault: hubtest.Status(404, "404 page not found\n"), cold: 200, fresh: true},
		{name: "no token service", match: tokens, fault: hubtest.Reset(), cold: 429},
		{name: "silent token service", match: tokens, fault: hubtest.Hang(), cold: 429},
		{name: "token service 401", match: tokens, fault: hubtest.Status(401, `{"details":"incorrect username or password"}`), cold: 429, rest: time.Minute},
		{name: "token service 401 to everybody", match: tokens, fault: hubtest.Status(401, `{"details":"unauthorized"}`, "Content-Type: application/json"), cold: 429, rest: time.Minute},
		{name: "token service 403", match: tokens, fault: apiRefusal(403, "DENIED"), cold: 429, rest: time.Minute},
		{name: "token service 404", match: tokens, fault: apiRefusal(404, "NAME_UNKNOWN"), cold: 429},
		{name: "token service sends tokens of no use", match: tokens, fault: hubtest.Status(200, `{"token":"opaque"}`, "Content-Type: application/json"), cold: 429},
		{name: "token service 429", match: tokens, fault: hubtest.TooManyRequests(), cold: 429, rest: time.Minute},
		{name: "token service 500", match: tokens, fault: hubtest.Status(500, ""), cold: 429},
		{name: "token service HTML", match: tokens, fault: hubtest.HTML(), cold: 429},
	}...)
}

// TestReferrersFaultsAreAnsweredInTime: whatever fault registry or token service has, the
// referrers of a cached manifest are answered within 5 s with 200, and marked stale: with the last
// list, also after a restart, or with the empty index. Those of anything else are an error. After
// the fault they come from upstream again, so nothing wrong was kept.
func TestReferrersFaultsAreAnsweredInTime(t *testing.T) {
	t.Parallel()
	for _, row := range referrersFaults() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testReferrersFault(t, row) })
		})
	}
}

// testReferrersFault tests one row.
func testReferrersFault(t *testing.T, row referrersFault) {
	l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
	img, kept := l.attested("library/app")
	l.smallImage("library/new", "1")
	none := "/v2/library/app/referrers/" + string(img.Digest) // never asked for
	time.Sleep(10 * time.Minute)                              // all tokens have expired
	l.hub.Inject(row.match, row.fault)
	check := func(when string) {
		t.Helper()
		for path, want := range map[string]string{kept: "signature/1", none: `"manifests":[]`} {
			start := time.Now()
			r := l.get(path)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%s it took %s", when, took)
			}
			if r.status != 200 {
				t.Errorf("%s: %d %s", when, r.status, r.body)
			} else if stale := r.header.Get("X-Hubcache") == "stale"; stale == (row.fresh && path == none) || !strings.Contains(string(r.body), want) {
				t.Errorf("%s: %s %s", when, r.header.Get("X-Hubcache"), r.body)
			}
		}
	}
	check("at first")
	check("again")
	l.stop()
	l.start()
	check("after a restart")
	r := l.get("/v2/library/new/referrers/" + string(digest.FromString("not cached")))
	if r.status != row.cold && (row.match.Face != hubtest.Registry || row.match.Kind == "referrers" || r.status < 429) {
		t.Errorf("what isn't cached: %d instead of %d: %s", r.status, row.cold, r.body)
	}
	if r.status >= 400 {
		checkAPIError(t, r)
	}
	l.hub.ClearFaults()
	time.Sleep(max(row.rest, 30*time.Second) + time.Minute)
	for path, want := range map[string]string{kept: "signature/1", none: `"manifests":[]`} {
		if r := l.get(path); r.status != 200 || r.header.Get("X-Hubcache") == "stale" || !strings.Contains(string(r.body), want) {
			t.Errorf("after the fault: %d %s %s", r.status, r.header.Get("X-Hubcache"), r.body)
		}
	}
	l.checkStore()
}
