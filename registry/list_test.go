package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// TestListsArePassedThroughAndCached: tag lists and referrers come from upstream, are kept
// for the TTL, and are served stale while upstream fails. Unknown referrers are an empty
// index.
func TestListsArePassedThroughAndCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		for _, tag := range []string{"1", "2", "3"} {
			l.smallImage("library/redis", tag)
		}
		r := l.get("/v2/library/redis/tags/list?n=2")
		if r.status != 200 || !strings.Contains(string(r.body), `"1"`) || !strings.HasPrefix(r.header.Get("Link"), "</v2/library/redis/tags/list?") {
			t.Errorf("%d %v %s", r.status, r.header, r.body)
		}
		if r := l.get("/v2/library/redis/tags/list?n=2&last=2"); !strings.Contains(string(r.body), `"3"`) || strings.Contains(string(r.body), `"1"`) {
			t.Errorf("%s", r.body)
		}
		n := len(l.hub.Ledger())
		l.get("/v2/library/redis/tags/list?n=2")
		if len(l.hub.Ledger()) != n {
			t.Error("asked again inside the TTL")
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		if r := l.get("/v2/library/redis/tags/list?n=2"); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("a cached list while upstream fails: %d %v", r.status, r.header)
		}
		if r := l.get("/v2/library/redis/tags/list"); r.status != 502 {
			t.Errorf("a list that is not cached: %d", r.status)
		}
		d := string(digest.FromString("x"))
		if r := l.get("/v2/library/redis/referrers/" + d); r.status != 502 {
			t.Errorf("referrers of what is not cached: %d %s", r.status, r.body)
		}
		l.hub.ClearFaults()
		l.hub.Set(func(o *hubtest.Options) { o.NoReferrers = true })
		if r := l.get("/v2/library/redis/referrers/" + d); r.status != 200 || !strings.Contains(string(r.body), `"manifests":[]`) {
			t.Errorf("referrers that upstream does not know: %d %s", r.status, r.body)
		}
		if r := l.get("/v2/library/redis/referrers/sha256:bad"); r.status != http.StatusBadRequest {
			t.Errorf("a bad digest: %d", r.status)
		}
		l.get("/v2/library/redis/manifests/1")
		if r := l.get("/v2/_catalog"); !strings.Contains(string(r.body), `["library/redis"]`) {
			t.Errorf("catalogue: %s", r.body)
		}
	})
}

// TestCachedListsAreBoundedInBytes: lists of any length do not fill the memory.
func TestCachedListsAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		body := []byte(`{"name":"library/x","tags":["` + strings.Repeat("a", 3*mib) + `"]}`)
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range 30 {
			l.get(fmt.Sprintf("/v2/library/x/tags/list?n=1000&last=%d", n))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 64*mib {
			t.Errorf("30 lists of 3 MiB took %d MiB of memory", grew/mib)
		}
	})
}

// TestReferrersWhileUpstreamFails: dockerd 29 asks for the referrers of an attestation manifest,
// and fails the pull after an error. For a manifest that is cached here it gets the last list,
// or the empty index, marked stale and counted; for anything else an error. The empty index
// isn't kept: it isn't the upstream's word.
func TestReferrersWhileUpstreamFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault hubtest.Fault
		match hubtest.Match
		want  int
	}{
		"500":      {hubtest.Status(500, ""), hubtest.Match{Face: hubtest.Registry, Kind: "referrers"}, 502},
		"429":      {hubtest.TooManyRequests("Retry-After: 20"), hubtest.Match{Face: hubtest.Registry, Kind: "referrers"}, 429},
		"no words": {hubtest.Hang(), hubtest.Match{}, 504},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{})
				img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1000), Attestations: true})
				l.pull(img)
				attestation, platform := img.Manifests[1].Digest, img.Manifests[0].Digest
				if r := l.get("/v2/library/app/manifests/" + string(attestation)); r.status != 200 {
					t.Fatal(r.status)
				}
				l.get("/v2/library/app/manifests/" + string(l.refer("library/app", platform, "x/y")))
				path := func(d digest.Digest) string { return "/v2/library/app/referrers/" + string(d) }
				if r := l.get(path(platform)); r.status != 200 || !strings.Contains(string(r.body), "x/y") {
					t.Fatalf("%d %s", r.status, r.body)
				}
				for n := range 300 { // these push nothing out that belongs to a cached manifest
					l.get(path(digest.FromString(fmt.Sprint(n))))
					l.get(path(platform) + fmt.Sprintf("?artifactType=a/%d", n))
				}
				time.Sleep(8 * 24 * time.Hour) // longer than a list may be stale
				l.hub.Inject(c.match, c.fault)
				for d, want := range map[digest.Digest]string{platform: "x/y", attestation: `"manifests":[]`} {
					for _, query := range []string{"", "?artifactType=x/y", "?ns=docker.io"} {
						r := l.get(path(d) + query)
						if r.status != 200 || r.header.Get("X-Hubcache") != "stale" || !strings.Contains(string(r.body), want) || r.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" {
							t.Errorf("%s%s: %d %v %s", d, query, r.status, r.header, r.body)
						}
					}
				}
				if n := l.reg.Stats().StaleReferrers; n != 6 {
					t.Errorf("%d were counted", n)
				}
				if r := l.get(path(digest.FromString("not cached"))); r.status != c.want {
					t.Errorf("what is not cached: %d instead of %d: %s", r.status, c.want, r.body)
				}
				if r := l.get("/v2/library/other/referrers/" + string(platform)); r.status == 200 {
					t.Errorf("another repository: %d %s", r.status, r.body)
				}
				l.hub.ClearFaults()
				time.Sleep(time.Minute)
				l.hub.AddManifest("library/app", "", "application/vnd.oci.image.manifest.v1+json",
					[]byte(`{"schemaVersion":2,"artifactType":"new/y","subject":{"digest":"`+string(attestation)+`","size":1}}`))
				if r := l.get(path(attestation)); r.status != 200 || r.header.Get("X-Hubcache") == "stale" || !strings.Contains(string(r.body), "new/y") {
					t.Errorf("after the fault: %d %v %s", r.status, r.header, r.body)
				}
			})
		})
	}
}

// TestCatalogueIsReadOnceForManyRequests: requests that follow each other within seconds share
// one reading of the index, and no answer has more names than a page.
func TestCatalogueIsReadOnceForManyRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		d := l.smallImage("library/app", "1").Digest
		l.get("/v2/library/app/manifests/1")
		for n := range 2500 {
			l.store.SetTag(fmt.Sprintf("docker.io/some/r%04d", n), "1", storage.Tag{Digest: d, Checked: time.Now()})
		}
		seen, next := 0, "/v2/_catalog"
		for pages := 0; next != "" && pages < 10; pages++ {
			r := l.get(next)
			n := strings.Count(string(r.body), "some/r")
			if r.status != 200 || n > 1000 {
				t.Fatalf("%d, %d names", r.status, n)
			}
			seen += n
			next, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
		}
		if seen != 2500 {
			t.Errorf("%d names", seen)
		}
		// What is new shows that the index is not read again at once, and after seconds it is.
		l.store.SetTag("docker.io/some/new", "1", storage.Tag{Digest: d, Checked: time.Now()})
		if r := l.get("/v2/_catalog?last=some%2Fa&n=1"); strings.Contains(string(r.body), "some/new") {
			t.Error("the index was read again")
		}
		time.Sleep(10 * time.Second)
		if r := l.get("/v2/_catalog?last=some%2Fa&n=1"); !strings.Contains(string(r.body), "some/new") {
			t.Errorf("%s", r.body)
		}
	})
}

// tagList is a tag list of at least so many bytes.
func tagList(bytes int) string {
	var b strings.Builder
	b.WriteString(`{"name":"library/redis","tags":["0"`)
	for n := 1; b.Len() < bytes; n++ {
		fmt.Fprintf(&b, `,"a-rather-long-tag-%d"`, n)
	}
	b.WriteString("]}")
	return b.String()
}

// TestSlowTagListsComeThrough: Docker Hub takes over half a minute for the tags of some repositories.
// A list that is kept is answered at once meanwhile, and is renewed. Pulls don't wait, and an
// upstream that never answers is given up.
func TestSlowTagListsComeThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.smallImage("library/redis", "1")
		img := l.smallImage("library/other", "1")
		lists := hubtest.Match{Face: hubtest.Registry, Kind: "tags"}
		const path = "/v2/library/redis/tags/list"
		for _, takes := range []time.Duration{8 * time.Second, 40 * time.Second} {
			rule := l.hub.Inject(lists, hubtest.Delay(takes))
			time.Sleep(time.Hour * 24 * 8) // longer than a list may be stale
			if r := l.get(path); r.status != 200 || !strings.Contains(string(r.body), `"1"`) {
				t.Errorf("a list that takes %s: %d %s", takes, r.status, r.body)
			}
			time.Sleep(2 * time.Minute) // longer than its TTL
			start := time.Now()
			if r := l.get(path); r.status != 200 || r.header.Get("X-Hubcache") != "stale" || time.Since(start) > 2*time.Second {
				t.Errorf("a list that is kept: %d %s after %s", r.status, r.header.Get("X-Hubcache"), time.Since(start))
			}
			if r := l.get(manifestPath(img)); r.status != 200 {
				t.Errorf("a pull beside it: %d", r.status)
			}
			time.Sleep(takes + time.Second)
			if r := l.get(path); r.status != 200 || r.header.Get("X-Hubcache") != "hit" {
				t.Errorf("after it was renewed: %d %s", r.status, r.header.Get("X-Hubcache"))
			}
			rule.Remove()
		}
		l.hub.Inject(lists, hubtest.Hang())
		if r := l.get("/v2/library/other/tags/list"); r.status < 500 {
			t.Errorf("an upstream that never answers: %d", r.status)
		}
		if r := l.get(manifestPath(l.smallImage("library/third", "1"))); r.status != 200 {
			t.Errorf("a pull after that: %d", r.status)
		}
	})
}

// TestLongListsAreStreamed: a list that is larger than should be in memory comes through whole, to
// several clients, and one that breaks off is no whole answer.
func TestLongListsAreStreamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.smallImage("library/redis", "1")
		want := randomList(10 << 20)
		lists := hubtest.Match{Face: hubtest.Registry, Kind: "tags"}
		rule := l.hub.Inject(lists, hubtest.Status(200, want, "Content-Type", "application/json"))
		const path = "/v2/library/redis/tags/list"
		for range 3 {
			if r := l.get(path); r.status != 200 || !is(r.body, want) || r.err != nil {
				t.Fatalf("%d, %d bytes of %d, %v", r.status, len(r.body), len(want), r.err)
			}
		}
		if n := l.listRequests(); n != 3 {
			t.Errorf("%d requests upstream for three lists:\n%s", n, l.hub.Ledger())
		}
		if r := l.do("HEAD", path); r.status != 200 || len(r.body) > 0 {
			t.Errorf("HEAD: %d", r.status)
		}
		rule.Remove()
		for name, fault := range map[string]hubtest.Fault{"cut": hubtest.CutAfter(6 << 20), "stalled": hubtest.StallAfter(6 << 20)} {
			rule := l.hub.Inject(lists, hubtest.Status(200, want, "Content-Type", "application/json"), fault)
			if r := l.get(path); r.err == nil {
				t.Errorf("%s: %d, %d bytes of %d without an error", name, r.status, len(r.body), len(want))
			}
			rule.Remove()
		}
		l.hub.Inject(lists, hubtest.Status(200, "<html>"+want, "Content-Type", "text/html"))
		if r := l.get(path); r.status != 502 {
			t.Errorf("a long page that is no list: %d", r.status)
		}
		l.waitIdle()
	})
}

// randomList is a tag list of at least so many bytes, which hardly gets smaller when compressed.
func randomList(bytes int) string {
	var b strings.Builder
	b.WriteString(`{"name":"library/redis","tags":["0"`)
	for r := rand.New(rand.NewPCG(1, 2)); b.Len() < bytes; {
		fmt.Fprintf(&b, `,"%016x%016x"`, r.Uint64(), r.Uint64())
	}
	b.WriteString("]}")
	return b.String()
}

// listRequests counts the lists that upstream was asked for with a token.
func (l *lab) listRequests() int {
	return l.hub.Ledger().Count(func(e hubtest.Entry) bool {
		return e.Face == hubtest.Registry && (e.Kind == "tags" || e.Kind == "referrers") && e.Status != http.StatusUnauthorized
	})
}

// longAnswer answers requests for such a list of the Hub.
func longAnswer(list string) hubtest.Fault {
	return hubtest.Status(200, list, "Content-Type: application/json")
}

// TestLargeListsLiveForSeconds: a list isn't asked for again at once, however large it is, and
// large ones push out no small one. After seconds they are asked for again.
func TestLargeListsLiveForSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		small := l.smallImage("library/small", "1")
		l.get("/v2/library/small/tags/list")
		wants := map[string]string{}
		for _, size := range []int{300 << 10, 3 << 20, 6 << 20} {
			name := fmt.Sprint("library/list", size)
			l.smallImage(name, "1")
			l.get("/v2/" + name + "/manifests/1") // its visibility is known
			wants[name] = tagList(size)
			l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "tags", Repository: name}, longAnswer(wants[name]))
		}
		for name, want := range wants {
			for range 2 {
				l.hub.ResetLedger()
				for range 10 {
					if r := l.get("/v2/" + name + "/tags/list"); r.status != 200 || !is(r.body, want) || r.err != nil {
						t.Fatalf("%s: %d, %d bytes, %v", name, r.status, len(r.body), r.err)
					}
				}
				if n := l.listRequests(); n != 1 {
					t.Errorf("%s: %d requests upstream", name, n)
				}
				time.Sleep(6 * time.Second)
			}
		}
		l.get("/v2/library/small/tags/list")
		for n := range 30 {
			l.get(fmt.Sprintf("/v2/library/list%d/tags/list?n=%d", 300<<10, n))
		}
		l.hub.ResetLedger()
		if r := l.get("/v2/" + small.Repository + "/tags/list"); r.status != 200 || l.listRequests() > 0 {
			t.Errorf("the small list: %d, %d requests", r.status, l.listRequests())
		}
	})
}

// TestNoToALongListIsRemembered: a list that has been large and is gone is asked for once in
// seconds, as any other.
func TestNoToALongListIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		l.smallImage("library/redis", "1")
		lists := hubtest.Match{Face: hubtest.Registry, Kind: "tags"}
		rule := l.hub.Inject(lists, longAnswer(randomList(5<<20)))
		const path = "/v2/library/redis/tags/list"
		if r := l.get(path); r.status != 200 || l.listRequests() != 1 {
			t.Fatalf("%d, %d requests", r.status, l.listRequests())
		}
		time.Sleep(10 * time.Second)
		rule.Remove()
		l.hub.Inject(lists, apiRefusal(404, "NAME_UNKNOWN"))
		l.hub.ResetLedger()
		for range 20 {
			if r := l.get(path); r.status != 404 {
				t.Errorf("%d", r.status)
			}
		}
		if n := l.listRequests(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// TestStuckReadersOfLongListsHoldNothingBack: clients that don't read a long list keep no other
// list waiting, and are cut in time. Those who leave end the request to upstream.
func TestStuckReadersOfLongListsHoldNothingBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
		l.smallImage("library/redis", "1")
		l.smallImage("library/other", "1")
		want := randomList(10 << 20)
		lists := hubtest.Match{Face: hubtest.Registry, Kind: "tags", Repository: "library/redis"}
		l.hub.Inject(lists, longAnswer(want))
		const path = "/v2/library/redis/tags/list"
		var stuck []*http.Response
		for range 20 {
			resp, err := l.ask(t.Context(), "GET", path)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == 200 {
				stuck = append(stuck, resp)
			} else {
				resp.Body.Close()
			}
		}
		if len(stuck) == 0 {
			t.Error("no client is served")
		}
		for n := range 20 {
			if r := l.get(fmt.Sprint("/v2/library/other/tags/list?n=", n+1)); r.status != 200 {
				t.Errorf("another list beside them: %d %s", r.status, r.body)
			}
		}
		time.Sleep(30 * time.Second)
		if r := l.get(path); r.status != 200 || !is(r.body, want) || r.err != nil {
			t.Errorf("after half a minute: %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		for _, resp := range stuck {
			resp.Body.Close()
		}
		l.hub.Inject(lists, longAnswer(want), hubtest.StallAfter(6<<20))
		for range 20 {
			ctx, leave := context.WithCancel(t.Context())
			resp, err := l.ask(ctx, "GET", path)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			leave()
			resp.Body.Close()
			synctest.Wait()
		}
	})
}

// TestManyClientsOfALongListGetIt: one upstream request is shared by none of them, but each
// client gets the whole list, or is told to come again.
func TestManyClientsOfALongListGetIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.smallImage("library/redis", "1")
		want := randomList(5 << 20)
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "tags"}, longAnswer(want), hubtest.Delay(time.Second))
		var clients sync.WaitGroup
		for range 6 {
			clients.Go(func() {
				r := l.get("/v2/library/redis/tags/list")
				if r.status != 429 && (r.status != 200 || !is(r.body, want) || r.err != nil) {
					t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
				}
			})
		}
		clients.Wait()
		time.Sleep(5 * time.Second)
		if r := l.get("/v2/library/redis/tags/list"); r.status != 200 || !is(r.body, want) {
			t.Errorf("after that: %d", r.status)
		}
	})
}

// TestListThatComesSlowlyComesThrough: the body of a list may take as long as it likes, as long as
// bytes come.
func TestListThatComesSlowlyComesThrough(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1 << 20, 5 << 20} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, labOptions{anonymous: true})
			l.smallImage("library/redis", "1")
			want := randomList(size)
			l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "tags"}, longAnswer(want))
			l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				resp, err := next.RoundTrip(req)
				if err == nil && strings.HasSuffix(req.URL.Path, "/tags/list") {
					resp.Body = tricklingBody{resp.Body}
				}
				return resp, err
			})
			start := time.Now()
			r := l.get("/v2/library/redis/tags/list")
			if r.status != 200 || !is(r.body, want) || r.err != nil {
				t.Errorf("%d, %d bytes of %d, %v", r.status, len(r.body), size, r.err)
			}
			if took := time.Since(start); took < 2*time.Minute {
				t.Errorf("it took only %s", took)
			}
		})
	}
}

// tricklingBody has 32 KiB in 9 s.
type tricklingBody struct{ io.ReadCloser }

func (b tricklingBody) Read(p []byte) (int, error) {
	time.Sleep(9 * time.Second)
	return b.ReadCloser.Read(p[:min(len(p), 32<<10)])
}
