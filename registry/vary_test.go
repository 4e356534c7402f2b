package registry_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// TestRegistriesDiffer pulls an image from registries that behave in the ways that registries do:
// the public one comes whole and is cached, one that is private comes only where it is named, and
// the credential is sent to the registry and its token service alone.
func TestRegistriesDiffer(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]func() *varied{
		"no authentication":              func() *varied { return &varied{} },
		"anonymous tokens":               func() *varied { return &varied{token: "token"} },
		"opaque tokens":                  func() *varied { return &varied{token: "token", opaque: true} },
		"tokens without access claims":   func() *varied { return &varied{token: "token", noAccess: true} },
		"access_token, no expires_in":    func() *varied { return &varied{token: "token", opaque: true, accessToken: true, noExpiry: true} },
		"a token service on a sibling":   func() *varied { return &varied{token: "auth", refusal: 403} },
		"refused by its token service":   func() *varied { return &varied{token: "token", refusal: 401} },
		"forbidden by its token service": func() *varied { return &varied{token: "token", refusal: 403, opaque: true} },
		"Basic":                          func() *varied { return &varied{basic: true} },
		"Basic, redirects":               func() *varied { return &varied{basic: true, cdn: "cdn", redirect: 302} },
		"302":                            func() *varied { return &varied{token: "token", cdn: "cdn", redirect: 302} },
		"303":                            func() *varied { return &varied{cdn: "cdn", redirect: 303} },
		"307":                            func() *varied { return &varied{token: "token", cdn: "cdn", redirect: 307} },
		"308":                            func() *varied { return &varied{cdn: "cdn", redirect: 308} },
		"302, not marked":                func() *varied { return &varied{token: "token", cdn: "cdn", redirect: 302, unmarked: true} },
		"303, tokens":                    func() *varied { return &varied{token: "token", cdn: "cdn", redirect: 303} },
		"308, tokens":                    func() *varied { return &varied{token: "token", cdn: "cdn", redirect: 308, unmarked: true} },
		"relative redirects":             func() *varied { return &varied{token: "token", cdn: "", redirect: 302, relative: true} },
		"no referrers, in JSON":          func() *varied { return &varied{jsonNotFound: true} },
		"no HEAD":                        func() *varied { return &varied{token: "token", headless: 405} },
		"HEAD without a digest":          func() *varied { return &varied{token: "token", noDigest: true} },
	} {
		for _, loggedIn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %t", name, loggedIn), func(t *testing.T) {
				v := how() // each with its own content
				v.host = "registry.corp.test"
				for _, host := range []*string{&v.token, &v.cdn} {
					if *host != "" {
						*host += ".corp.test"
					}
				}
				if loggedIn {
					v.secret = "robot-secret"
				}
				synctest.Test(t, func(t *testing.T) { pullVaried(t, v) })
			})
		}
	}
}

func pullVaried(t *testing.T, v *varied) {
	l := newLabOf(t, []string{"org/named"}, v)
	layer := slices.Concat(noise()[:100_000], []byte("public"))
	_, public := v.addImage("org/app", "1", layer)
	m, named := v.addImage("org/named", "1", slices.Concat(noise()[:1000], []byte("named")))
	_, hidden := v.addImage("org/hidden", "1", []byte("hidden"))
	v.private["org/named"], v.private["org/hidden"] = true, true
	path := func(repository, rest string) string { return "/v2/registry.corp.test/" + repository + "/" + rest }
	for range 2 {
		for _, method := range []string{"HEAD", "GET"} {
			if r := l.do(method, path("org/app", "manifests/1")); r.status != 200 || r.header.Get("Docker-Content-Digest") == "" {
				t.Fatalf("%s of a public manifest: %d %s", method, r.status, r.body)
			}
		}
		if r := l.do("GET", path("org/app", "blobs/"+string(public))); r.status != 200 || !equal(r.body, layer) {
			t.Fatalf("a public layer: %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		l.waitIdle()
	}
	if n := requestsFor(v, public); n > 2 || n == 0 { // and one at the CDN
		t.Errorf("%d requests for a layer that was pulled twice", n)
	}
	if r := l.do("GET", path("org/app", "referrers/"+string(m))); r.status != 200 || r.header.Get("X-Hubcache") == "stale" || !strings.Contains(string(r.body), `"manifests":[]`) {
		t.Errorf("referrers, which the registry doesn't know: %d %s", r.status, r.body)
	}
	if r := l.do("GET", path("org/app", "manifests/none")); r.status != 404 {
		t.Errorf("a tag that isn't there: %d %s", r.status, r.body)
	}
	for _, rest := range []string{"manifests/1", "blobs/" + string(hidden), "tags/list"} {
		if r := l.do("GET", path("org/hidden", rest)); r.status != 404 || r.header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s of a private repository: %d %s", rest, r.status, r.body)
		}
	}
	if v.secret != "" && (v.basic || v.token != "") {
		for _, rest := range []string{"manifests/1", "blobs/" + string(named), "manifests/" + string(m)} {
			if r := l.do("GET", path("org/named", rest)); r.status != 200 {
				t.Errorf("%s of a private repository that is named: %d %s", rest, r.status, r.body)
			}
		}
		if r := l.do("GET", path("org/app", "blobs/"+string(named))); r.status != 404 {
			t.Errorf("a private layer under another repository: %d", r.status)
		}
		v.addImage("org/owner", "1", slices.Concat(noise()[:1000], []byte("named")))
		l.do("GET", path("org/owner", "manifests/1"))
		if r := l.do("GET", path("org/owner", "blobs/"+string(named))); r.status != 200 {
			t.Errorf("a private layer that a public repository has too: %d %s", r.status, r.body)
		}
	}
	if strings.Contains(l.log.String(), "secret") {
		t.Error("the secret is in the log")
	}
}

// requestsFor returns how many requests were for a digest, and forgets all.
func requestsFor(v *varied, d digest.Digest) (n int) {
	for _, r := range v.seen() {
		if strings.Contains(r.path+r.query, d.Encoded()) {
			n++
		}
	}
	return n
}

// TestSharedLayersAreFetchedOnce: a stampede on a layer that two registries have is one download,
// and it is served under each.
func TestSharedLayersAreFetchedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &varied{host: "a.test"}, &varied{host: "b.test", secret: "s", token: "token.b.test"}
		l := newLabOf(t, []string{"org/private"}, a, b)
		layer := noise()[:200_000]
		_, d := a.addImage("org/app", "1", layer)
		b.addImage("org/other", "1", layer)
		a.addImage("org/none", "1", []byte("none"))
		paths := []string{"/v2/a.test/org/app/", "/v2/b.test/org/other/"}
		done := make(chan reply, 40)
		for i := range cap(done) {
			go func() {
				l.do("GET", paths[i%2]+"manifests/1")
				done <- l.do("GET", paths[i%2]+"blobs/"+string(d))
			}()
		}
		for range cap(done) {
			if r := <-done; r.status != 200 || !equal(r.body, layer) {
				t.Errorf("%d, %d bytes", r.status, len(r.body))
			}
		}
		l.waitIdle()
		bodies := 0
		for _, r := range slices.Concat(a.seen(), b.seen()) {
			if r.method == "GET" && strings.Contains(r.path, string(d)) {
				bodies++
			}
		}
		if bodies != 1 {
			t.Errorf("%d downloads of one layer", bodies)
		}
		for _, path := range []string{"/v2/a.test/org/none/", "/v2/b.test/org/none/", "/v2/library/none/"} {
			if r := l.do("GET", path+"blobs/"+string(d)); r.status != 404 {
				t.Errorf("under %s, which hasn't got it: %d", path, r.status)
			}
		}
	})
}

// TestPrivateLayersStayInTheirRegistry: what came through a private repository of one registry is
// served under another only when that one's upstream has it too, however it is named there.
func TestPrivateLayersStayInTheirRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &varied{host: "a.test", secret: "s", token: "token.a.test"}, &varied{host: "b.test"}
		l := newLabOf(t, []string{"org/private"}, a, b)
		layer := []byte("a layer that nobody else may have")
		_, d := a.addImage("org/private", "1", layer)
		a.private["org/private"] = true
		if r := l.do("GET", "/v2/a.test/org/private/manifests/1"); r.status != 200 {
			t.Fatal(r.status)
		}
		if r := l.do("GET", "/v2/a.test/org/private/blobs/"+string(d)); r.status != 200 {
			t.Fatal(r.status)
		}
		b.addImage("org/thief", "1", layer) // its manifest names the layer
		b.mu.Lock()
		delete(b.of, "org/thief@"+string(d)) // but the registry hasn't got it
		b.mu.Unlock()
		if r := l.do("GET", "/v2/b.test/org/thief/manifests/1"); r.status != 200 {
			t.Fatal(r.status)
		}
		if r := l.do("GET", "/v2/b.test/org/thief/blobs/"+string(d)); r.status != 404 {
			t.Errorf("a private layer of another registry: %d", r.status)
		}
		b.addImage("org/owner", "1", layer)
		if r := l.do("GET", "/v2/b.test/org/owner/manifests/1"); r.status != 200 {
			t.Fatal(r.status)
		}
		b.seen()
		if r := l.do("GET", "/v2/b.test/org/owner/blobs/"+string(d)); r.status != 200 {
			t.Errorf("the same layer of a registry that has it: %d", r.status)
		}
		if all := b.seen(); len(all) != 1 || all[0].method != "HEAD" {
			t.Errorf("it was asked %+v", all)
		}
	})
}

// TestSecretsStayWithTheirRegistry: what one registry gets is never sent to another one, to what that
// redirects to, or to its token service; and a token service or a CDN on a foreign domain gets no
// credential.
func TestSecretsStayWithTheirRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := []*varied{
			{host: "a.corp.test", token: "auth.corp.test", cdn: "cdn.corp.test", redirect: 307, secret: "secret-a"},
			{host: "b.other.test", basic: true, cdn: "cdn.b.other.test", redirect: 302, secret: "secret-b"},
			{host: "c.third.example", token: "auth.foreign.example", cdn: "cdn.foreign.example", redirect: 303, secret: "secret-c"},
		}
		l := newLabOf(t, []string{"org/private"}, all...)
		for _, v := range all {
			v.addImage("org/app", "1", []byte("public "+v.host))
			_, d := v.addImage("org/private", "1", []byte("private "+v.host))
			v.private["org/private"] = true
			for _, path := range []string{"org/app/manifests/1", "org/app/tags/list", "org/private/manifests/1", "org/private/blobs/" + string(d), "org/none/manifests/1"} {
				l.do("GET", "/v2/"+v.host+"/"+path)
				l.do("GET", "/v2/"+path+"?ns="+v.host)
			}
		}
		basic := func(secret string) string {
			req, _ := http.NewRequest("GET", "http://x", nil)
			req.SetBasicAuth("robot", secret)
			return req.Header.Get("Authorization")
		}
		sent := map[string]bool{}
		for _, v := range all {
			for _, r := range v.seen() {
				for _, other := range all {
					mayHave := v == other && (r.host == v.host && v.basic || r.host == v.token && v != all[2])
					if r.authorization == basic(other.secret) {
						sent[other.secret] = true
						if !mayHave {
							t.Errorf("%s got %s: %s %s", r.host, other.secret, r.method, r.path)
						}
					}
				}
				if r.host == v.cdn && r.authorization != "" {
					t.Errorf("the CDN %s got %s", r.host, r.authorization)
				}
			}
		}
		if !sent["secret-a"] || !sent["secret-b"] || sent["secret-c"] {
			t.Errorf("sent were %v", sent)
		}
	})
}

// TestVisibilityWithoutATokenService: an anonymous request for a manifest tells who may read.
func TestVisibilityWithoutATokenService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &varied{host: "a.test", basic: true, secret: "s"}
		l := newLabOf(t, nil, v)
		v.addImage("org/app", "1", []byte("x"))
		v.addImage("org/private", "1", []byte("y"))
		v.private["org/private"] = true
		for path, want := range map[string]int{"org/app": 200, "org/private": 404} {
			if path == "org/private" {
				l.do("GET", "/v2/a.test/org/app/manifests/1") // so that there is one to compare with
			}
			if r := l.do("GET", "/v2/a.test/"+path+"/manifests/1"); r.status != want {
				t.Errorf("%s: %d %s", path, r.status, r.body)
			}
		}
		anonymous := 0
		for _, r := range v.seen() {
			if strings.HasSuffix(r.path, "/manifests/latest") {
				anonymous++
				if r.authorization != "" {
					t.Errorf("asked with a credential: %+v", r)
				}
			}
		}
		if anonymous == 0 {
			t.Error("nobody asked without the credential")
		}
	})
}
