package registry_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/upstream"
)

// varied is a registry that isn't Docker Hub. Its fields say how it differs; the zero value is a
// registry without authentication that sends its blobs itself. Set them before the first request.
type varied struct {
	host  string // "ghcr.test", perhaps with a port
	token string // host of its token service; "": none
	basic bool   // it wants Basic
	cdn   string // where it redirects blobs to; "": nowhere

	opaque, noAccess bool          // tokens that are no JWTs, or that say nothing of rights
	accessToken      bool          // the answer of the token service has access_token, and not token
	noExpiry         bool          // nor expires_in
	refusal          int           // of the token service for what may not be read; 0: a token without rights
	redirect         int           // status of redirects
	relative         bool          // redirects name no host, and lead to the registry itself
	headless         int           // status of HEAD for manifests; 0: as for GET
	jsonNotFound     bool          // paths that it doesn't know, such as referrers, get a JSON error
	noDigest         bool          // answers have no Docker-Content-Digest
	unmarked         bool          // answers have no Docker-Distribution-Api-Version
	page             int           // how many tags a page has; 0: all
	pageKey          string        // parameter that leads to the next page
	limited          bool          // 429 to all
	hold             chan struct{} // blobs are sent once it is closed; nil: at once

	secret string // of the user "robot"

	mu        sync.Mutex // guards what follows
	manifests map[string][]byte
	tags      map[string][]string // by repository
	blobs     map[digest.Digest][]byte
	of        map[string]bool // repository@digest
	private   map[string]bool
	requests  []seen
}

// seen is a request that reached one of the hosts of a varied.
type seen struct{ host, method, path, query, authorization string }

// addImage adds an image with one layer of these bytes, and returns the digests of the manifest and
// the layer.
func (v *varied) addImage(repository, tag string, layer []byte) (m, l digest.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.manifests == nil {
		v.manifests, v.tags, v.blobs, v.of, v.private = map[string][]byte{}, map[string][]string{}, map[digest.Digest][]byte{}, map[string]bool{}, map[string]bool{}
	}
	config := []byte(`{"architecture":"amd64","os":"linux"}`)
	describe := func(mediaType string, b []byte) v1.Descriptor {
		d := digest.FromBytes(b)
		v.blobs[d], v.of[repository+"@"+string(d)] = b, true
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	doc := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: describe(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{describe(v1.MediaTypeImageLayer, layer)}}
	b, _ := json.Marshal(doc)
	m = digest.FromBytes(b)
	v.manifests[repository+":"+tag], v.manifests[repository+":"+string(m)] = b, b
	v.tags[repository] = append(v.tags[repository], tag)
	return m, doc.Layers[0].Digest
}

// seenSince returns the requests so far, and forgets them.
func (v *varied) seen() []seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.requests
	v.requests = nil
	return all
}

func (v *varied) hosts() []string {
	return slices.DeleteFunc([]string{v.host, v.token, v.cdn}, func(h string) bool { return h == "" })
}

// ServeHTTP answers for all of its hosts.
func (v *varied) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	v.mu.Lock()
	v.requests = append(v.requests, seen{req.Host, req.Method, req.URL.Path, req.URL.RawQuery, req.Header.Get("Authorization")})
	v.mu.Unlock()
	switch {
	case v.limited:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("ratelimit-limit", "100;w=21600")
		w.Header().Set("ratelimit-remaining", "0;w=21600")
		w.WriteHeader(http.StatusTooManyRequests)
	case req.Host == v.token && strings.HasSuffix(req.URL.Path, "/token"):
		v.giveToken(w, req)
	case req.Host == v.cdn || strings.HasPrefix(req.URL.Path, "/cdn/"):
		v.sendBlob(w, req, digest.Digest(req.URL.Query().Get("digest")))
	case req.Host == v.host:
		v.answer(w, req)
	default:
		http.Error(w, "wrong host", http.StatusBadGateway)
	}
}

func (v *varied) sendBlob(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	if v.hold != nil {
		<-v.hold
	}
	v.mu.Lock()
	b, ok := v.blobs[d]
	v.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	from, status := 0, http.StatusOK
	if r := req.Header.Get("Range"); r != "" {
		to := len(b) - 1
		fmt.Sscanf(r, "bytes=%d-%d", &from, &to)
		to = min(to, len(b)-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(b)))
		b, status = b[from:to+1], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		w.Write(b)
	}
}

// canRead reports whether somebody may read a repository; user is "robot" or "".
func (v *varied) canRead(user, repository string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.private[repository] || user == "robot"
}

// user returns who a Basic request is from. ok is false for a wrong password.
func (v *varied) user(req *http.Request) (user string, ok bool) {
	user, password, given := req.BasicAuth()
	return user, !given || user == "robot" && password == v.secret
}

func (v *varied) giveToken(w http.ResponseWriter, req *http.Request) {
	user, ok := v.user(req)
	scope := req.URL.Query().Get("scope")
	repository := strings.TrimSuffix(strings.TrimPrefix(scope, "repository:"), ":pull")
	w.Header().Set("Content-Type", "application/json")
	granted := scope != "" && v.canRead(user, repository)
	if !ok || scope != "" && !granted && v.refusal != 0 {
		status := v.refusal
		if !ok {
			status = http.StatusUnauthorized
		}
		w.WriteHeader(status)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
		return
	}
	claims := map[string]any{"sub": user, "scope": scope}
	if !v.noAccess {
		access := []any{}
		if granted {
			access = append(access, map[string]any{"type": "repository", "name": repository, "actions": []string{"pull"}})
		}
		claims["access"] = access
	}
	b, _ := json.Marshal(claims)
	token := "e30." + base64.RawURLEncoding.EncodeToString(b) + ".x"
	if v.opaque {
		token = base64.RawURLEncoding.EncodeToString(b)
	}
	doc := map[string]any{"token": token}
	if v.accessToken {
		doc = map[string]any{"access_token": token}
	}
	if !v.noExpiry {
		doc["expires_in"] = 300
	}
	json.NewEncoder(w).Encode(doc)
}

// bearer returns who a token was given to, and for which scope.
func bearer(req *http.Request) (user, scope string) {
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	if parts := strings.Split(token, "."); len(parts) == 3 {
		token = parts[1]
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	var claims struct{ Sub, Scope string }
	if err != nil || json.Unmarshal(b, &claims) != nil {
		return "", ""
	}
	return claims.Sub, claims.Scope
}

// admits answers a request that lacks a right, and reports whether it has it.
func (v *varied) admits(w http.ResponseWriter, req *http.Request, repository string) bool {
	refuse := func(status int, challenge, code string) bool {
		if challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q}]}`, code)
		return false
	}
	switch {
	case v.token != "":
		scheme, _, _ := strings.Cut(req.Header.Get("Authorization"), " ")
		user, scope := bearer(req)
		challenge := fmt.Sprintf(`Bearer realm="https://%s/token",service="%s"`, v.token, v.host)
		if scheme != "Bearer" || repository != "" && (scope != "repository:"+repository+":pull" || !v.canRead(user, repository)) {
			return refuse(http.StatusUnauthorized, challenge, "UNAUTHORIZED")
		}
	case v.basic:
		user, ok := v.user(req)
		if !ok || repository != "" && !v.canRead(user, repository) || repository == "" && user == "" {
			return refuse(http.StatusUnauthorized, `Basic realm="`+v.host+`"`, "UNAUTHORIZED")
		}
	case repository != "" && !v.canRead("", repository):
		return refuse(http.StatusForbidden, "", "DENIED")
	}
	return true
}

func (v *varied) answer(w http.ResponseWriter, req *http.Request) {
	if !v.unmarked {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	}
	rest := strings.TrimPrefix(req.URL.Path, "/v2/")
	if rest == "" {
		if v.admits(w, req, "") {
			fmt.Fprint(w, "{}")
		}
		return
	}
	parts := strings.Split(rest, "/")
	repository, route, ref := strings.Join(parts[:max(len(parts)-2, 0)], "/"), parts[max(len(parts)-2, 0)], parts[len(parts)-1]
	if !v.admits(w, req, repository) {
		return
	}
	switch route {
	case "manifests":
		v.manifest(w, req, repository, ref)
	case "blobs":
		v.blob(w, req, repository, digest.Digest(ref))
	case "tags":
		v.tagList(w, req, repository)
	default: // no referrers
		if !v.jsonNotFound {
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"METHOD_UNKNOWN","message":"We don't understand your method + url"}]}`)
	}
}

func (v *varied) manifest(w http.ResponseWriter, req *http.Request, repository, ref string) {
	v.mu.Lock()
	b, ok := v.manifests[repository+":"+ref]
	v.mu.Unlock()
	switch {
	case req.Method == http.MethodHead && v.headless != 0:
		w.WriteHeader(v.headless)
	case !ok:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)
	default:
		if !v.noDigest {
			w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(b)))
		}
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		if req.Method != http.MethodHead {
			w.Write(b)
		}
	}
}

func (v *varied) blob(w http.ResponseWriter, req *http.Request, repository string, d digest.Digest) {
	v.mu.Lock()
	ok := v.of[repository+"@"+string(d)]
	v.mu.Unlock()
	switch {
	case !ok:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`)
	case v.redirect != 0:
		to := "/cdn/blob?digest=" + url.QueryEscape(string(d))
		if !v.relative {
			to = "https://" + v.cdn + to
		}
		w.Header().Set("Location", to)
		w.WriteHeader(v.redirect)
	default:
		v.sendBlob(w, req, d)
	}
}

func (v *varied) tagList(w http.ResponseWriter, req *http.Request, repository string) {
	v.mu.Lock()
	all := slices.Clone(v.tags[repository])
	v.mu.Unlock()
	slices.Sort(all)
	key := v.pageKey
	if key == "" {
		key = "last"
	}
	if last := req.URL.Query().Get(key); last != "" {
		all = all[slices.Index(all, last)+1:]
	}
	if v.page > 0 && len(all) > v.page {
		all = all[:v.page]
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d&%s=%s>; rel="next"`, req.URL.Path, v.page, key, all[v.page-1]))
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"name": repository, "tags": all})
}

// wire carries requests to several registries, by their hosts. What is sent to another host fails
// the test.
type wire struct {
	t   testing.TB
	all []*varied
}

func (n wire) RoundTrip(req *http.Request) (*http.Response, error) {
	for _, v := range n.all {
		if !slices.Contains(v.hosts(), req.URL.Host) {
			continue
		}
		w := httptest.NewRecorder()
		r := req.Clone(req.Context())
		r.Host = req.URL.Host
		v.ServeHTTP(w, r)
		resp := w.Result()
		resp.Request = req
		if req.Method == http.MethodHead {
			resp.Body = http.NoBody
		}
		if n := resp.Header.Get("Content-Length"); n != "" {
			resp.ContentLength, _ = strconv.ParseInt(n, 10, 64)
		}
		return resp, req.Context().Err()
	}
	n.t.Errorf("a request to %s", req.URL.Host)
	return nil, fmt.Errorf("no such host: %s", req.URL.Host)
}

// upstreamOf is a varied as an upstream. Its user logs in if it has a secret.
func (n wire) upstreamOf(v *varied, private ...string) registry.Upstream {
	n.t.Helper()
	o := &upstream.Options{Name: v.host, URL: &url.URL{Scheme: "https", Host: v.host}, Transport: n}
	if v.secret != "" {
		o.Credential = auth.NewFile("robot", writeSecret(n.t, v.secret))
	}
	return registry.Upstream{Options: o, Policy: &registry.Policy{Private: private, NegativeTTL: 0}}
}
