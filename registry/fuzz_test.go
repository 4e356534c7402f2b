package registry

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/gorilla/mux"

	"github.com/hubcache/hubcache/name"
)

const (
	hex64  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	hex128 = hex64 + hex64
)

// FuzzParse holds the parser against distribution's own router.
//
// Where they differ on purpose: a name of one component gets its library/; a name is no
// longer than a file system takes and has no registry in front (host:port, capitals); a
// digest is sha256 or sha512 in lower case; a slash too many is no path of the API.
func FuzzParse(f *testing.F) {
	for _, path := range []string{
		"/v2/", "/v2", "/v2/_catalog", "/", "", "/v1/", "/v2//", "/v2/redis/manifests/7", "/v2/library/redis/manifests/sha256:" + hex64,
		"/v2/a/b/c/blobs/sha256:" + hex64, "/v2/a/blobs/sha512:" + hex128, "/v2/a/blobs/sha256:" + strings.ToUpper(hex64),
		"/v2/a/referrers/sha256:" + hex64, "/v2/a/tags/list", "/v2/a/tags/list/", "/v2/tags/list/tags/list", "/v2/manifests/manifests/manifests",
		"/v2/a/manifests/b/manifests/c", "/v2/../../etc/passwd/manifests/x", "/v2/a/../b/manifests/x", "/v2/a/manifests/..", "/v2/a/blobs/../../x",
		"/v2/a%2f..%2fb/manifests/x", "/v2/a\x00b/manifests/x", "/v2/A/manifests/x", "/v2/host.io:443/a/manifests/x", "/v2/a__b/manifests/x",
		"/v2/a___b/manifests/x", "/v2/a..b/manifests/x", "/v2/a--b/manifests/x", "/v2/a-/manifests/x", "/v2/-a/manifests/x", "/v2/a/manifests/.x",
		"/v2/a/manifests/" + strings.Repeat("x", 129), "/v2/" + strings.Repeat("x", 300) + "/manifests/1", "/v2/a/manifests/md5:" + hex64,
	} {
		f.Add(path)
	}
	routes := v2.Router()
	f.Fuzz(func(t *testing.T, path string) {
		q, err := parseForHub(path)
		var m mux.RouteMatch
		matched := routes.Match(&http.Request{Method: "GET", URL: &url.URL{Path: path}}, &m)
		route := ""
		if matched && m.Route != nil {
			route = m.Route.GetName()
		}
		if err != nil {
			if matched && !differsOnPurpose(path, m.Vars) && !strings.HasPrefix(route, "blob-upload") {
				t.Errorf("%q: %v, and the router has %s %v", path, err, route, m.Vars)
			}
			return
		}
		for _, part := range append(strings.Split(q.name, "/"), q.ref) {
			if part == ".." || part == "." || strings.ContainsAny(part, "\x00\\%") {
				t.Errorf("%q: %+v", path, q)
			}
		}
		want := map[kind]string{ping: v2.RouteNameBase, manifest: v2.RouteNameManifest, blob: v2.RouteNameBlob, tags: v2.RouteNameTags, catalog: v2.RouteNameCatalog}[q.kind]
		if q.kind != referrers && (!matched || route != want) {
			t.Errorf("%q is %+v, and the router has %q", path, q, route)
		}
		if name, ok := m.Vars["name"]; ok && name != q.name && "library/"+name != q.name {
			t.Errorf("%q: name %q, the router's %q", path, q.name, name)
		}
		if ref := m.Vars["reference"] + m.Vars["digest"]; ref != "" && ref != q.ref {
			t.Errorf("%q: reference %q, the router's %q", path, q.ref, ref)
		}
		again, err := parseForHub(canonical(q))
		if err != nil || again != q {
			t.Errorf("%q → %+v → %q → %+v, %v", path, q, canonical(q), again, err)
		}
	})
}

// parseForHub parses a request that is for a mirror of Docker Hub's names, of any depth.
func parseForHub(path string) (request, error) {
	q, err := parse(path)
	if err == nil && q.name != "" || q.kind == tags {
		q.name = name.WithLibrary(q.name)
		if !name.ValidRepository(q.name) {
			err = invalid(errcode.ErrorCodeNameInvalid, q.name)
		}
	}
	return q, err
}

func differsOnPurpose(path string, vars map[string]string) bool {
	ref := vars["reference"] + vars["digest"]
	repository := vars["name"]
	return strings.HasSuffix(path, "/") || strings.Contains(ref, ":") && !name.ValidDigest(ref) ||
		repository != "" && !name.ValidRepository("library/"+repository)
}

// canonical is the path of a request.
func canonical(q request) string {
	switch q.kind {
	case ping:
		return "/v2/"
	case catalog:
		return "/v2/_catalog"
	case tags:
		return "/v2/" + q.name + "/tags/list"
	}
	return "/v2/" + q.name + "/" + map[kind]string{manifest: "manifests", blob: "blobs", referrers: "referrers"}[q.kind] + "/" + q.ref
}

// FuzzGlob: a pattern that is a name matches that name alone, and * crosses no slash.
func FuzzGlob(f *testing.F) {
	f.Add("library/redis", "library/redis")
	f.Add("library/*", "library/a/b")
	f.Add("org/**", "org/a/b")
	f.Fuzz(func(t *testing.T, pattern, repository string) {
		if !name.ValidRepository(repository) {
			return
		}
		if !strings.ContainsAny(pattern, `*?[\`) && glob(pattern, repository) != (pattern == repository) {
			t.Errorf("%q and %q: %v", pattern, repository, glob(pattern, repository))
		}
		if !strings.Contains(pattern, "**") && pattern != "*" && glob(pattern, repository) && strings.Count(pattern, "/") < strings.Count(repository, "/") {
			t.Errorf("%q crosses a slash of %q", pattern, repository)
		}
	})
}
