package registry_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/upstream"
)

// configure replaces the registries of a lab, as a reload of the settings does.
func (l *lab) configure(upstreams ...registry.Upstream) {
	l.t.Helper()
	l.upstreams = upstreams
	if err := l.reg.Configure(upstreams, l.policy(nil)); err != nil {
		l.t.Fatal(err)
	}
}

// TestRegistriesComeAndGo: a registry is served from the reload that brings it to the one that takes
// it away. A pull that is under way then ends well, and what is cached is there when it comes back.
func TestRegistriesComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &varied{host: "a.test", hold: make(chan struct{})}
		l := newLabOf(t, nil, v)
		hub, a := l.upstreams[0], l.upstreams[1]
		layer := noise()[:300_000]
		_, d := v.addImage("org/app", "1", layer)
		manifest, blob := "/v2/a.test/org/app/manifests/1", "/v2/a.test/org/app/blobs/"+string(d)
		l.configure(hub)
		if r := l.do("GET", manifest); r.status != 404 || len(v.seen()) > 0 {
			t.Errorf("a registry that has gone: %d", r.status)
		}
		l.configure(hub, a)
		if r := l.do("GET", manifest); r.status != 200 {
			t.Errorf("a registry that has come: %d %s", r.status, r.body)
		}
		pull := make(chan reply)
		go func() { pull <- l.do("GET", blob) }()
		time.Sleep(time.Second)
		l.configure(hub)
		close(v.hold)
		if r := <-pull; r.status != 200 || !equal(r.body, layer) {
			t.Errorf("a pull that was under way: %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		l.waitIdle()
		if s := l.reg.Stats(); len(s.Upstreams) != 1 || s.Blob.Fetched != int64(len(layer)) {
			t.Errorf("the figures of what has gone are lost: %+v", s)
		}
		l.configure(hub, a)
		synctest.Wait() // it asks how the registry wants to be authenticated to
		v.seen()
		r := l.do("GET", blob)
		if asked := v.seen(); r.status != 200 || len(asked) > 0 {
			t.Errorf("what was cached is fetched again: %d, %v", r.status, asked)
		}
	})
}

// TestReloadKeepsWhatARegistryKnows: one whose connection is the same goes on with its memory, its
// pauses and its counters. A new connection of the same name has the counters alone.
func TestReloadKeepsWhatARegistryKnows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, limited := &varied{host: "a.test"}, &varied{host: "b.test", limited: true}
		l := newLabOf(t, nil, v, limited)
		v.addImage("org/app", "1", []byte("x"))
		ttl := time.Hour
		for i := range l.upstreams {
			l.upstreams[i].Policy = &registry.Policy{TagTTL: &ttl}
		}
		l.configure(l.upstreams...)
		ask := func() (status, asked int) {
			v.seen()
			r := l.do("GET", "/v2/a.test/org/app/manifests/1")
			return r.status, len(v.seen())
		}
		ask()
		l.do("GET", "/v2/b.test/org/app/manifests/1")
		l.configure(l.upstreams...)
		if status, asked := ask(); status != 200 || asked > 0 {
			t.Errorf("%d, and %d requests for what is fresh", status, asked)
		}
		states := func() (all []string) {
			for _, u := range l.reg.Stats().Upstreams {
				all = append(all, u.Registry+" "+u.State)
			}
			return all
		}
		if got := states(); !slices.Contains(got, "b.test cooling") {
			t.Errorf("the pause is forgotten: %v", got)
		}
		before := l.reg.Stats().Upstreams
		moved := *l.upstreams[2].Options
		next := slices.Clone(l.upstreams)
		next[2].Options = &moved
		l.configure(next...)
		if got := states(); !slices.Contains(got, "b.test ok") || !slices.Contains(got, "a.test ok") {
			t.Errorf("after b.test has moved: %v", got)
		}
		if after := l.reg.Stats().Upstreams; after[2].Requests < before[2].Requests || after[1].Requests != before[1].Requests {
			t.Errorf("requests before and after: %d, %d", before[2].Requests, after[2].Requests)
		}
	})
}

// TestNewCredentialsCountFromTheReload: a registry that gets another account is asked as that, and
// what the old account could read isn't served any more.
func TestNewCredentialsCountFromTheReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &varied{host: "a.test", token: "auth.a.test", secret: "first"}
		l := newLabOf(t, []string{"org/private"}, v)
		v.addImage("org/private", "1", []byte("x"))
		v.private["org/private"] = true
		path := "/v2/a.test/org/private/manifests/1"
		if r := l.do("GET", path); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		without := *l.upstreams[1].Options
		without.Credential = nil
		l.configure(l.upstreams[0], registry.Upstream{Options: &without})
		if r := l.do("GET", path); r.status == 200 {
			t.Errorf("without a credential: %d", r.status)
		}
		file := writeSecret(t, "wrong")
		with := without
		with.Credential = auth.NewFile("robot", file)
		l.configure(l.upstreams[0], registry.Upstream{Options: &with, Policy: &registry.Policy{Private: []string{"org/private"}}})
		if r := l.do("GET", path); r.status == 200 && r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("with a wrong secret: %d %v", r.status, r.header)
		}
		if err := os.WriteFile(file, []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute) // the file is watched; a refused secret isn't tried for a minute
		if r := l.do("GET", path); r.status != 200 || r.header.Get("X-Hubcache") == "stale" {
			t.Errorf("with the right secret: %d %v", r.status, r.header)
		}
	})
}

// TestWhatHasGoneDoesNothing: tags of a registry that has gone are not checked in the background any
// more. That nothing is left running, the bubble of the test checks.
func TestWhatHasGoneDoesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &varied{host: "a.test"}
		l := newLabOf(t, nil, v)
		ttl := 10 * time.Minute
		l.upstreams[1].Policy = &registry.Policy{TagTTL: &ttl, Tags: []registry.TagRule{{Match: "org/*:*", TTL: &ttl, Refresh: true}}}
		l.configure(l.upstreams...)
		v.addImage("org/app", "1", []byte("x"))
		l.do("GET", "/v2/a.test/org/app/manifests/1")
		v.seen()
		time.Sleep(time.Hour)
		if len(v.seen()) == 0 {
			t.Error("the tag isn't checked while its registry is there")
		}
		l.configure(l.upstreams[0])
		time.Sleep(time.Hour)
		if all := v.seen(); len(all) > 0 {
			t.Errorf("asked after the registry has gone: %+v", all)
		}
	})
}

// TestFaultyRegistriesChangeNothing: with a mistake in one the old ones stay.
func TestFaultyRegistriesChangeNothing(t *testing.T) {
	t.Parallel()
	v := &varied{host: "a.test"}
	l := newLabOf(t, nil, v)
	v.addImage("org/app", "1", []byte("x"))
	bad := func(o upstream.Options, p *registry.Policy) []registry.Upstream {
		return []registry.Upstream{l.upstreams[0], {Options: &o, Policy: p}}
	}
	host := func(host string) *url.URL { return &url.URL{Scheme: "https", Host: host} }
	for says, all := range map[string][]registry.Upstream{
		"no upstream":            nil,
		"two upstreams":          append(slices.Clone(l.upstreams), l.upstreams[1]),
		"http or https":          bad(upstream.Options{Name: "x.test", URL: &url.URL{}}, nil),
		"not contain cred":       bad(upstream.Options{Name: "x.test", URL: &url.URL{Scheme: "https", Host: "x", User: url.User("me")}}, nil),
		"can't be":               bad(upstream.Options{Name: "x.test/a", URL: host("x.test")}, nil),
		"is not a pattern":       bad(upstream.Options{Name: "x.test", URL: host("x.test")}, &registry.Policy{Deny: []string{"["}}),
		"tags.rules: \"[\" is n": bad(upstream.Options{Name: "x.test", URL: host("x.test")}, &registry.Policy{Tags: []registry.TagRule{{Match: "["}}}),
	} {
		if err := l.reg.Configure(all, l.policy(nil)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		if r := l.do("GET", "/v2/a.test/org/app/manifests/1"); r.status != 200 {
			t.Errorf("after %q: %d", says, r.status)
		}
	}
}

// FuzzRegistries: no path, ns or reference makes the request of one registry reach another one, or
// one that isn't configured reach any.
func FuzzRegistries(f *testing.F) {
	digest := "sha256:" + strings.Repeat("0", 64)
	for _, s := range [][2]string{
		{"/v2/library/redis/manifests/7", ""}, {"/v2/redis/manifests/7", ""}, {"/v2/a.test/org/app/manifests/1", ""}, {"/v2/a.test/org/app/blobs/" + digest, ""},
		{"/v2/a.test/tags/list", ""}, {"/v2/a.test/b.test:5000/x/tags/list", ""}, {"/v2/b.test:5000/x/manifests/1", ""}, {"/v2/b.test:5000/x/manifests/1", "ns=a.test"},
		{"/v2/x/y/manifests/1", "ns=b.test:5000"}, {"/v2/x/y/manifests/1", "ns=b.test%3a5000&ns=a.test"}, {"/v2/x/y/manifests/1", "ns=a.test;ns=docker.io"},
		{"/v2/x/y/manifests/1", "ns=docker.io"}, {"/v2/x/y/manifests/1", "ns="}, {"/v2/x/y/manifests/1", "ns=a.test/x"}, {"/v2/a.test/x/manifests/1", "ns=docker.io"},
		{"/v2/docker.io/x/y/manifests/1", "ns=a.test"}, {"/v2/docker.io/docker.io/a.test/manifests/1", ""}, {"/v2//a.test/x/manifests/1", ""}, {"/v2/./a.test/x/manifests/1", ""},
		{"/v2/a.test/../b/manifests/1", ""}, {"/v2/a.test/x/manifests/a.test", "ns=quay.io"}, {"/v2/a.test/x/manifests/../../../b.test:5000", ""}, {"/v2/A.TEST/x/manifests/1", ""},
		{"/v2/a.test./x/manifests/1", ""}, {"/v2/a.test%2fx/y/manifests/1", ""}, {"/v2/localhost/x/manifests/1", ""}, {"/v2/x/referrers/" + digest, "artifactType=ns&NS=a.test"},
		{"/v2/a.test/x/tags/list", "n=1&last=b.test:5000"}, {"/v2/_catalog", "ns=a.test"}, {"/v2/", "ns=a.test"}, {"/v2/a.test\x00/x/manifests/1", "%zz&ns=a.test"},
	} {
		f.Add(s[0], s[1])
	}
	all := []*varied{{host: "registry-1.docker.io"}, {host: "a.test"}, {host: "b.test:5000"}}
	n := wire{f, all}
	l := newLab(f, labOptions{anonymous: true, logger: slog.New(slog.DiscardHandler), options: func(o *registry.Options) {
		o.Upstreams = nil
		for _, v := range all {
			v.addImage("none", "1", nil)
			o.Upstreams = append(o.Upstreams, n.upstreamOf(v))
		}
		o.Upstreams[0].Options.Name = "docker.io"
	}})
	byName := map[string]*varied{"docker.io": all[0], "index.docker.io": all[0], "registry-1.docker.io": all[0], "a.test": all[1], "b.test:5000": all[2]}
	f.Fuzz(func(t *testing.T, path, query string) {
		req := &http.Request{Method: "GET", URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}, RemoteAddr: "10.0.0.1:1"}
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(w, req.WithContext(t.Context()))
		want, repository := all[0], strings.TrimPrefix(path, "/v2/")
		first, rest, more := strings.Cut(repository, "/")
		if values, _ := url.ParseQuery(query); values.Has("ns") {
			want = byName[values.Get("ns")]
		} else if named := strings.ContainsAny(first, ".:") || first == "localhost"; named && more && strings.Contains(rest, "/") && !slices.Contains([]string{"manifests", "blobs", "referrers"}, strings.Split(rest, "/")[0]) && rest != "tags/list" {
			want = byName[first]
			if strings.Contains(first, ":") {
				want = nil
			}
		}
		for _, v := range all {
			for _, r := range v.seen() {
				if v != want {
					t.Errorf("%q?%q reached %s: %s", path, query, v.host, r.path)
				}
				if strings.Contains(r.path, "..") || strings.Contains(r.query, "ns=") {
					t.Errorf("%q?%q became %q?%q", path, query, r.path, r.query)
				}
			}
		}
	})
}
