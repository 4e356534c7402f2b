package registry_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// manifestPath is the path of a manifest by tag.
func manifestPath(img *hubtest.Image) string {
	return "/v2/" + img.Repository + "/manifests/" + img.Tag
}

func small(l *lab, repository, tag string) *hubtest.Image {
	return l.hub.AddImage(repository, tag, hubtest.ImageSpec{Layers: hubtest.Layers(2, 64<<10)})
}

func TestHundredPullsInsideTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "library/redis", "7")
		l.pull(img)
		l.hub.ResetLedger()
		for range 100 {
			l.pull(img)
			if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "hit" {
				t.Fatal(r.status, r.header)
			}
		}
		if ledger := l.hub.Ledger(); len(ledger) > 0 {
			t.Errorf("upstream saw\n%s", ledger)
		}
	})
}

func TestOtherRepositoriesAreAskedEveryTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "coop/app", "1")
		l.pull(img)
		l.hub.ResetLedger()
		for range 3 {
			l.pull(img)
		}
		if ledger := l.hub.Ledger(); ledger.ManifestHEADs() != 3 || ledger.ManifestGETs()+ledger.BlobGETs() != 0 {
			t.Errorf("upstream saw\n%s", ledger)
		}
	})
}

func TestManyMissesAskForOneToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(200, 4096)})
		done := make(chan reply)
		for _, b := range img.Manifests[0].Layers {
			go func() { done <- l.get("/v2/library/big/blobs/" + string(b.Digest)) }()
		}
		for range img.Manifests[0].Layers {
			if r := <-done; r.status != 200 || r.err != nil {
				t.Fatal(r.status, r.err)
			}
		}
		if ledger := l.hub.Ledger(); ledger.TokenRequests(username) != 1 || ledger.TokenRequests("") > 1 {
			t.Errorf("%d token requests with the PAT, %d without", ledger.TokenRequests(username), ledger.TokenRequests(""))
		}
	})
}

func TestTagMovesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		old := small(l, "library/redis", "7")
		l.pull(old)
		moved := l.hub.AddImage("library/redis", "7", hubtest.ImageSpec{Layers: hubtest.Layers(1, 99<<10)})
		if r := l.get(manifestPath(old)); !bytes.Equal(r.body, old.Bytes) {
			t.Error("inside the TTL another manifest")
		}
		time.Sleep(61 * time.Second)
		l.pull(moved)
		if r := l.get(manifestPath(old)); !bytes.Equal(r.body, moved.Bytes) {
			t.Error("after the TTL still the old manifest")
		}
		l.hub.Untag("library/redis", "7")
		time.Sleep(61 * time.Second)
		for range 3 {
			if r := l.get(manifestPath(old)); r.status != 404 || !strings.Contains(string(r.body), "MANIFEST_UNKNOWN") {
				t.Errorf("a deleted tag: %d %s", r.status, r.body)
			}
		}
		if r := l.get("/v2/library/redis/manifests/" + string(moved.Digest)); r.status != 200 {
			t.Errorf("its manifest by digest: %d", r.status)
		}
		if r := l.do("HEAD", manifestPath(old)); r.status != 404 {
			t.Errorf("HEAD of a deleted tag: %d", r.status)
		}
		// A push is seen as soon as the memory of the 404 has gone.
		l.hub.Tag("library/redis", "7", moved.Digest)
		time.Sleep(11 * time.Second)
		l.pull(moved)
	})
}

func TestDeletedTagIsKeptIfAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.KeepGone = true }})
		img := small(l, "library/redis", "7")
		l.pull(img)
		l.hub.Untag("library/redis", "7")
		time.Sleep(61 * time.Second)
		if r := l.get(manifestPath(img)); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Error(r.status, r.header)
		}
	})
}

// Whatever keeps upstream from answering, a cached tag is served, and an uncached one
// fails in time with an honest code.
func TestUpstreamFailing(t *testing.T) {
	for name, c := range map[string]struct {
		fault  hubtest.Fault
		face   hubtest.Face
		status int
	}{
		"429":           {hubtest.TooManyRequests("Retry-After: 30"), hubtest.Registry, 429},
		"429 bare":      {hubtest.TooManyRequests(), hubtest.Registry, 429},
		"abuse limit":   {hubtest.HAP429(), hubtest.Registry, 429},
		"500":           {hubtest.Status(500, "oops"), hubtest.Registry, 502},
		"503":           {hubtest.Status(503, "oops"), hubtest.Registry, 502},
		"reset":         {hubtest.Reset(), hubtest.Registry, 502},
		"drop":          {hubtest.Drop(), hubtest.Registry, 502},
		"hang":          {hubtest.Hang(), hubtest.Registry, 504},
		"token 500":     {hubtest.Status(500, "oops"), hubtest.Token, 502},
		"token hangs":   {hubtest.Hang(), hubtest.Token, 504},
		"token 429":     {hubtest.Status(429, "slow down"), hubtest.Token, 429},
		"PAT refused":   {hubtest.Status(401, `{"details":"incorrect username or password"}`), hubtest.Token, 503},
		"HTML from CDN": {hubtest.HTML(), hubtest.Registry, 502},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TokenLifetime: time.Minute}})
				img, other := small(l, "library/redis", "7"), small(l, "library/other", "1")
				l.pull(img)
				l.pull(other) // so that the verdict is known
				l.hub.Tag("library/other", "2", other.Digest)
				time.Sleep(10 * time.Minute)
				l.hub.Inject(hubtest.Match{Face: c.face}, c.fault)
				defer l.hub.ClearFaults()
				for _, method := range []string{"GET", "HEAD", "GET"} {
					start := time.Now()
					r := l.do(method, manifestPath(img))
					if r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
						t.Errorf("%s of a cached tag: %d %s %s", method, r.status, r.header.Get("X-Hubcache"), r.body)
					}
					if took := time.Since(start); took > 2*time.Second {
						t.Errorf("it took %s", took)
					}
				}
				start := time.Now()
				r := l.get("/v2/library/other/manifests/2")
				if r.status != c.status || !strings.Contains(string(r.body), `"errors"`) {
					t.Errorf("an uncached tag: %d %s", r.status, r.body)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("it took %s", took)
				}
				if r.status == 429 && r.header.Get("Retry-After") == "" {
					t.Error("429 without Retry-After")
				}
				if s := r.header.Get("WWW-Authenticate"); s != "" || r.status == 401 {
					t.Error("the client was challenged")
				}
				// By digest nothing upstream is needed, whatever its state.
				if r := l.get("/v2/library/redis/manifests/" + string(img.Digest)); r.status != 200 {
					t.Errorf("by digest: %d", r.status)
				}
				l.hub.ClearFaults()
				time.Sleep(time.Hour)
				if r := l.get("/v2/library/other/manifests/2"); r.status != 200 {
					t.Errorf("after the fault: %d %s", r.status, r.body)
				}
			})
		})
	}
}

// A 429 is remembered here: nobody is asked again before its time.
func TestCoolDownIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := small(l, "coop/app", "1")
		l.pull(img)
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}, hubtest.TooManyRequests("Retry-After: 300"))
		for range 20 {
			if r := l.get(manifestPath(img)); r.status != 200 {
				t.Fatal(r.status)
			}
			time.Sleep(time.Second)
		}
		if n := rule.Hits(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		// The pull limit stops manifests, not blobs.
		other := l.hub.AddImage("coop/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		l.blob("coop/app", string(other.Manifests[0].Layers[0].Digest))
		// It belongs to the credential: a new one is tried at once.
		rule.Remove()
		l.newPAT("another")
		if r := l.get("/v2/coop/app/manifests/2"); r.status != 200 {
			t.Errorf("with a new credential: %d %s", r.status, r.body)
		}
	})
}

// newPAT changes the access token at the Hub and in its file.
func (l *lab) newPAT(secret string) {
	l.hub.Set(func(o *hubtest.Options) { o.Accounts[0].PAT = secret })
	if err := os.WriteFile(filepath.Join(l.dir, "pat"), []byte(secret), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.cred.Reload()
}

// A Hub that is merely slow: what is cached after 1.5 s, and the check goes on.
func TestSlowHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		old := small(l, "coop/app", "1")
		l.pull(old)
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}, hubtest.Delay(2*time.Second))
		moved := l.hub.AddImage("coop/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		start := time.Now()
		r := l.get(manifestPath(old))
		if took := time.Since(start); r.header.Get("X-Hubcache") != "stale" || took != 1500*time.Millisecond {
			t.Errorf("%s after %s", r.header.Get("X-Hubcache"), took)
		}
		start = time.Now()
		r = l.get(manifestPath(old))
		if took := time.Since(start); r.header.Get("X-Hubcache") != "stale" || took != 0 {
			t.Errorf("the second: %s after %s", r.header.Get("X-Hubcache"), took)
		}
		time.Sleep(10 * time.Second)
		l.hub.ClearFaults()
		if tag, err := l.store.Tag("docker.io/coop/app", "1"); err != nil || tag.Digest != moved.Digest {
			t.Errorf("the check did not move the tag: %+v, %v", tag, err)
		}
	})
}

func TestStaleHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.MaxStale = time.Hour }})
		img := small(l, "library/redis", "7")
		l.pull(img)
		l.hub.Inject(hubtest.Match{}, hubtest.Status(500, ""))
		time.Sleep(50 * time.Minute)
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Error(r.status)
		}
		time.Sleep(20 * time.Minute)
		if r := l.get(manifestPath(img)); r.status != 502 {
			t.Error(r.status)
		}
	})
}

// Podman commits itself to a mirror with the manifest, so it isn't handed one whose layers
// can't come.
func TestHalfAnImageIsNotPromisedWhileUpstreamIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img, whole := small(l, "library/half", "1"), small(l, "library/whole", "1")
		l.pull(whole)
		if r := l.get(manifestPath(img)); r.status != 200 {
			t.Fatal(r.status)
		}
		time.Sleep(2 * time.Minute)
		l.hub.Inject(hubtest.Match{}, hubtest.Hang())
		defer l.hub.ClearFaults()
		l.get(manifestPath(whole)) // finds out
		time.Sleep(5 * time.Second)
		for _, ref := range []string{img.Tag, string(img.Digest)} {
			if r := l.get("/v2/library/half/manifests/" + ref); r.status != 503 {
				t.Errorf("%s: %d %s", ref, r.status, r.body)
			}
			if r := l.get("/v2/library/whole/manifests/" + whole.Tag); r.status != 200 {
				t.Errorf("a whole image: %d", r.status)
			}
		}
	})
}

func TestTagRules(t *testing.T) {
	day, no := 24*time.Hour, time.Duration(0)
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) {
			p.Tags = []registry.TagRule{{Match: "library/*:*-alpine", TTL: &day}, {Match: "redis:*", TTL: &no}}
		}})
		for tag, heads := range map[string]int{"7-alpine": 0, "7": 1} {
			img := small(l, "library/redis", tag)
			l.get(manifestPath(img))
			l.hub.ResetLedger()
			time.Sleep(time.Hour)
			l.get(manifestPath(img))
			if n := l.hub.Ledger().ManifestHEADs(); n != heads {
				t.Errorf("%s: %d HEADs", tag, n)
			}
		}
	})
}

// Only a tag that is in use is refreshed ahead of its TTL, and nobody waits for it.
func TestRefreshAhead(t *testing.T) {
	ttl := 10 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) {
			p.Tags = []registry.TagRule{{Match: "library/*:*", TTL: &ttl, Refresh: true}}
		}})
		img := small(l, "library/redis", "7")
		l.get(manifestPath(img))
		l.hub.ResetLedger()
		for range 30 {
			time.Sleep(time.Minute)
			if r := l.get(manifestPath(img)); r.header.Get("X-Hubcache") != "hit" {
				t.Errorf("a client waited: %s", r.header.Get("X-Hubcache"))
			}
			synctest.Wait()
		}
		if n := l.hub.Ledger().ManifestHEADs(); n < 3 || n > 4 {
			t.Errorf("%d checks in 30 minutes", n)
		}
		if n := l.hub.Ledger().ManifestGETs(); n != 0 {
			t.Errorf("%d GETs", n)
		}
	})
}

func TestManifestBytesAreUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{Gzip: true}})
		odd := []byte("{ \"schemaVersion\": 2,\n\t\"odd\" :\"white space\"}\n\n")
		l.hub.AddManifest("library/odd", "1", "application/vnd.example.unknown+json", odd)
		index := l.hub.AddImage("library/index", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true})
		list := l.hub.AddImage("library/list", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100), Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}})
		check := func(path, mediaType string, want []byte) {
			t.Helper()
			for _, method := range []string{"HEAD", "GET", "GET", "HEAD"} {
				r := l.do(method, path, "Accept-Encoding", "gzip")
				h := r.header
				if r.status != 200 || h.Get("Content-Type") != mediaType || h.Get("Content-Length") != fmt.Sprint(len(want)) ||
					h.Get("Docker-Content-Digest") == "" || h.Get("Etag") != `"`+h.Get("Docker-Content-Digest")+`"` || h.Get("Content-Encoding") != "" {
					t.Errorf("%s %s: %d %v", method, path, r.status, h)
				}
				if method == "GET" && !bytes.Equal(r.body, want) {
					t.Errorf("%s: other bytes", path)
				}
			}
		}
		check("/v2/library/odd/manifests/1", "application/vnd.example.unknown+json", odd)
		for _, img := range []*hubtest.Image{index, list} {
			check(manifestPath(img), img.MediaType, img.Bytes)
			for _, m := range img.Manifests {
				check("/v2/"+img.Repository+"/manifests/"+string(m.Digest), m.MediaType, m.Bytes)
			}
		}
		for _, e := range l.hub.Ledger() {
			if strings.Contains(e.Header.Get("Accept-Encoding"), "gzip") {
				t.Errorf("upstream was asked for gzip: %s", e)
			}
		}
	})
}
