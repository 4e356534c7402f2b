package registry_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/registry"
)

// writeSecret writes a secret to a file and returns its path.
func writeSecret(t testing.TB, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newLabOf makes a lab whose cache has further registries beside Docker Hub. Those that a test
// names with private are served these repositories.
func newLabOf(t testing.TB, private []string, all ...*varied) *lab {
	n := wire{t, all}
	return newLab(t, labOptions{options: func(o *registry.Options) {
		for _, v := range all {
			o.Upstreams = append(o.Upstreams, n.upstreamOf(v, private...))
		}
	}})
}

// TestRequestsNameTheirRegistry: by the parameter ns, by the first part of the path, or not at all.
func TestRequestsNameTheirRegistry(t *testing.T) {
	t.Parallel()
	ghcr, port := &varied{host: "ghcr.test"}, &varied{host: "registry.test:5000"}
	l := newLabOf(t, nil, ghcr, port)
	hub := l.smallImage("library/redis", "7")
	deep, _ := ghcr.addImage("org/team/app", "1", []byte("deep"))
	single, _ := ghcr.addImage("pause", "1", []byte("single"))
	nested, _ := ghcr.addImage("ghcr.test/x", "1", []byte("nested"))
	other, _ := port.addImage("org/app", "1", []byte("other"))
	for _, c := range []struct {
		path string
		want digest.Digest
		ns   string
	}{
		{"/v2/redis/manifests/7", hub.Digest, ""},
		{"/v2/docker.io/redis/manifests/7", hub.Digest, ""},
		{"/v2/docker.io/library/redis/manifests/7", hub.Digest, ""},
		{"/v2/index.docker.io/library/redis/manifests/7", hub.Digest, ""},
		{"/v2/library/redis/manifests/7?ns=docker.io", hub.Digest, "docker.io"},
		{"/v2/ghcr.test/org/team/app/manifests/1", deep, ""},
		{"/v2/org/team/app/manifests/1?ns=ghcr.test", deep, "ghcr.test"},
		{"/v2/ghcr.test/pause/manifests/1", single, ""},
		{"/v2/pause/manifests/1?ns=ghcr.test", single, "ghcr.test"},
		{"/v2/ghcr.test/x/manifests/1?ns=ghcr.test", nested, "ghcr.test"}, // the whole path is the name
		{"/v2/ghcr.test/ghcr.test/x/manifests/1", nested, ""},
		{"/v2/org/app/manifests/1?ns=registry.test:5000", other, "registry.test:5000"},
		{"/v2/org/app/manifests/1?ns=registry.test%3A5000", other, "registry.test:5000"},
	} {
		for _, method := range []string{"HEAD", "GET", "GET"} {
			r := l.do(method, c.path)
			if r.status != http.StatusOK || r.header.Get("Docker-Content-Digest") != string(c.want) || r.header.Get("Oci-Namespace") != c.ns {
				t.Errorf("%s %s: %d %s %v; want %s", method, c.path, r.status, r.body, r.header, c.want)
			}
		}
	}
	if log := l.log.String(); !strings.Contains(log, "registry=ghcr.test repository=org/team/app") || !strings.Contains(log, "registry=docker.io repository=library/redis") {
		t.Error("the log doesn't name the registries")
	}
}

// TestUnknownRegistriesAreNotServed: a registry that isn't configured is 404 with one clear detail,
// and nobody is asked.
func TestUnknownRegistriesAreNotServed(t *testing.T) {
	t.Parallel()
	ghcr, port := &varied{host: "ghcr.test"}, &varied{host: "registry.test:5000"}
	l := newLabOf(t, nil, ghcr, port)
	ghcr.addImage("org/app", "1", []byte("x"))
	l.hub.ResetLedger()
	none := strings.Repeat("0", 64)
	for path, says := range map[string]string{
		"/v2/org/app/manifests/1?ns=quay.io":                  "this cache does not serve the registry quay.io",
		"/v2/org/app/manifests/1?ns=":                         "this cache does not serve the registry ",
		"/v2/org/app/manifests/1?ns=GHCR.test":                "does not serve the registry GHCR.test",
		"/v2/org/app/manifests/1?ns=ghcr.test/org":            "does not serve",
		"/v2/org/app/manifests/1?ns=quay.io&ns=ghcr.test":     "does not serve the registry quay.io",
		"/v2/quay.io/org/app/manifests/1":                     "does not serve the registry quay.io",
		"/v2/quay.io/org/app/tags/list":                       "does not serve the registry quay.io",
		"/v2/quay.io/org/app/blobs/sha256:" + none:            "does not serve the registry quay.io",
		"/v2/quay.io/org/app/referrers/sha256:" + none:        "does not serve the registry quay.io",
		"/v2/localhost/org/app/manifests/1":                   "does not serve the registry localhost",
		"/v2/GHCR.TEST/org/app/manifests/1":                   "does not serve the registry GHCR.TEST",
		"/v2/registry.test:5000/org/app/manifests/1":          "asked for by the parameter ns",
		"/v2/registry.other:5000/org/app/manifests/1":         "asked for by the parameter ns",
		"/v2/" + strings.Repeat("a.", 3000) + "b/x/tags/list": "does not serve the registry a.a.",
		"/v2/_catalog?ns=quay.io":                             "does not serve the registry quay.io",
	} {
		r := l.do("GET", path)
		if r.status != http.StatusNotFound || !strings.Contains(string(r.body), `"code":"NAME_UNKNOWN"`) || !strings.Contains(string(r.body), says) || len(r.body) > 500 {
			t.Errorf("%.80s: %d %.600s; want %q", path, r.status, r.body, says)
		}
	}
	if n := len(l.hub.Ledger()) + len(ghcr.seen()) + len(port.seen()); n > 0 {
		t.Errorf("%d requests to upstreams", n)
	}
	if f := l.reg.Stats().Recent; len(f) == 0 || f[0].Cause != "policy" || f[0].Reason != registry.ReasonSettings || f[0].Registry != "" {
		t.Errorf("the failures are %+v", f)
	}
}

// TestEachRegistryHasItsPolicy: lists, tag rules and private repositories of one are no other's.
func TestEachRegistryHasItsPolicy(t *testing.T) {
	t.Parallel()
	ghcr, quay := &varied{host: "ghcr.test"}, &varied{host: "quay.test"}
	l := newLabOf(t, nil, ghcr, quay)
	for _, v := range []*varied{ghcr, quay} {
		v.addImage("org/app", "1", []byte("a"))
		v.addImage("library/redis", "7", []byte("b"))
	}
	l.smallImage("org/app", "1")
	l.smallImage("library/redis", "7")
	l.upstreams[1].Policy = &registry.Policy{Allow: []string{"ghcr.test/org/*"}}
	l.upstreams[2].Policy = &registry.Policy{Deny: []string{"org/**"}}
	l.setPolicy(func(p *registry.Policy) { p.Deny = []string{"redis"} })
	for path, want := range map[string]int{
		"/v2/org/app/manifests/1": 200, "/v2/library/redis/manifests/7": 404,
		"/v2/ghcr.test/org/app/manifests/1": 200, "/v2/ghcr.test/library/redis/manifests/7": 404,
		"/v2/quay.test/org/app/manifests/1": 404, "/v2/quay.test/library/redis/manifests/7": 200,
	} {
		if r := l.do("GET", path); r.status != want {
			t.Errorf("%s: %d %s, want %d", path, r.status, r.body, want)
		}
	}
	// library/ is fresh for a minute on Docker Hub alone.
	quay.seen()
	if r := l.do("GET", "/v2/quay.test/library/redis/manifests/7"); r.status != 200 || len(quay.seen()) != 1 {
		t.Errorf("a tag of another registry: %d", r.status)
	}
}

// TestTagListsArePagedUnderTheirRegistry: the link to the next page leads to the same registry, by
// ns or by path, whatever the upstream calls the parameter.
func TestTagListsArePagedUnderTheirRegistry(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"last", "next_page"} {
		v := &varied{host: "ghcr.test", page: 2, pageKey: key}
		l := newLabOf(t, nil, v)
		for i := range 5 {
			v.addImage("org/app", fmt.Sprint("v", i), []byte("x"))
		}
		for _, path := range []string{"/v2/ghcr.test/org/app/tags/list?n=2", "/v2/org/app/tags/list?n=2&ns=ghcr.test"} {
			var got []string
			for next := path; next != "" && len(got) < 10; {
				r := l.do("GET", next)
				if r.status != 200 {
					t.Fatalf("%s: %d %s", next, r.status, r.body)
				}
				got = append(got, string(r.body))
				next, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
			}
			if len(got) != 3 || !strings.Contains(got[2], `"v4"`) {
				t.Errorf("%s: the pages are %q", path, got)
			}
		}
	}
}

// TestHubsLimitsAreHubsAlone: what Docker Hub's headers mean is not assumed of another registry, and
// its limit stops no other one.
func TestHubsLimitsAreHubsAlone(t *testing.T) {
	t.Parallel()
	ghcr, quay := &varied{host: "ghcr.test", limited: true}, &varied{host: "quay.test"}
	l := newLabOf(t, nil, ghcr, quay)
	img := l.smallImage("library/redis", "7")
	quay.addImage("org/app", "1", []byte("x"))
	if r := l.do("GET", "/v2/ghcr.test/org/app/manifests/1"); r.status != http.StatusTooManyRequests {
		t.Errorf("of a registry that limits requests: %d %s", r.status, r.body)
	}
	if r := l.do("GET", "/v2/quay.test/org/app/manifests/1"); r.status != 200 {
		t.Errorf("of another one: %d", r.status)
	}
	if r := l.do("GET", manifestPath(img)); r.status != 200 {
		t.Errorf("of Docker Hub: %d", r.status)
	}
	for _, u := range l.reg.Stats().Upstreams {
		if want := map[string]string{"ghcr.test": "cooling"}[u.Registry]; want != "" && u.State != want || want == "" && u.State != "ok" {
			t.Errorf("%s is %s", u.Registry, u.State)
		}
		if u.RateLimit != nil && u.Registry != "docker.io" {
			t.Errorf("%s has the quota %+v", u.Registry, u.RateLimit)
		}
	}
	if log := l.log.String(); strings.Contains(log, "the pull quota is used up") {
		t.Error("the log speaks of a pull quota")
	}
}

// TestCatalogueIsOfOneRegistry: without ns of Docker Hub.
func TestCatalogueIsOfOneRegistry(t *testing.T) {
	t.Parallel()
	ghcr := &varied{host: "ghcr.test"}
	l := newLabOf(t, nil, ghcr)
	ghcr.addImage("org/app", "1", []byte("x"))
	img := l.smallImage("library/redis", "7")
	l.do("GET", manifestPath(img))
	l.do("GET", "/v2/ghcr.test/org/app/manifests/1")
	for path, want := range map[string]string{"/v2/_catalog": `{"repositories":["library/redis"]}`, "/v2/_catalog?ns=ghcr.test": `{"repositories":["org/app"]}`} {
		if r := l.do("GET", path); r.status != 200 || !bytes.Equal(r.body, []byte(want)) {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
}
