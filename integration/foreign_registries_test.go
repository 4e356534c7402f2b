//go:build integration

package integration

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// The account of hubcache at the registries of this test, and its password as htpasswd has it.
const (
	foreignUser     = "robot"
	foreignSecret   = "real-Secret-77"
	foreignHtpasswd = "robot:$2b$05$abcdefghijklmnopqrstuu099CXKxl.Jl9dBXLuZrHBN.ts.p/FtK\n"
)

// foreignRegistry is a registry that we did not write, on loopback.
type foreignRegistry struct {
	addr      string
	authorize func(req *http.Request, scope string)
	stop      func()
}

// startForeign starts a program that serves a registry at addr.
func startForeign(t *testing.T, addr string, env []string, program string, args ...string) *foreignRegistry {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	r := &foreignRegistry{addr: addr, authorize: func(*http.Request, string) {}, stop: func() { cmd.Process.Kill(); <-ended }}
	t.Cleanup(r.stop)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s", program, err, log.String())
		}
	}
}

// send sends a request with what the registry wants for it.
func (r *foreignRegistry) send(t *testing.T, method, to, repository, contentType string, body []byte) *http.Response {
	t.Helper()
	if strings.HasPrefix(to, "/") {
		to = "http://" + r.addr + to
	}
	req, err := http.NewRequest(method, to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	r.authorize(req, "repository:"+repository+":pull,push")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, to, resp.Status, b)
	}
	return resp
}

// push pushes an image with one layer, and returns the digests of its manifest and its layer.
func (r *foreignRegistry) push(t *testing.T, repository, tag string, layer []byte) (manifest, blob digest.Digest) {
	t.Helper()
	describe := func(mediaType string, b []byte) map[string]any {
		resp := r.send(t, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", repository, "", nil)
		to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		query := to.Query()
		query.Set("digest", string(digest.FromBytes(b)))
		to.RawQuery = query.Encode()
		r.send(t, http.MethodPut, to.String(), repository, "application/octet-stream", b)
		return map[string]any{"mediaType": mediaType, "digest": digest.FromBytes(b), "size": len(b)}
	}
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	body, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType,
		"config": describe("application/vnd.oci.image.config.v1+json", []byte(`{"architecture":"amd64","os":"linux"}`)),
		"layers": []any{describe("application/vnd.oci.image.layer.v1.tar", layer)}})
	r.send(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, repository, mediaType, body)
	return digest.FromBytes(body), digest.FromBytes(layer)
}

// tokenService is a token service whose tokens distribution's registry takes. Everybody may pull
// public/…, and the user all else.
type tokenService struct {
	key  *rsa.PrivateKey
	cert []byte
	url  string
}

func startTokenService(t *testing.T) *tokenService {
	t.Helper()
	s := &tokenService{}
	var err error
	if s.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	if s.cert, err = x509.CreateCertificate(rand.Reader, template, template, &s.key.PublicKey, s.key); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, secret, given := req.BasicAuth()
		if given && (user != foreignUser || secret != foreignSecret) {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"access_token": s.token(given, req.URL.Query().Get("scope"))})
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// token is a token for a scope, with the rights that somebody has.
func (s *tokenService) token(user bool, scope string) string {
	access := []any{}
	if parts := strings.Split(scope, ":"); len(parts) == 3 && (user || strings.HasPrefix(parts[1], "public/")) {
		access = append(access, map[string]any{"type": "repository", "name": parts[1], "actions": strings.Split(parts[2], ",")})
	}
	now := time.Now()
	part := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
	text := part(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		part(map[string]any{"iss": "tokens", "sub": "", "aud": "cache-test", "exp": now.Add(time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(), "jti": rand.Text(), "access": access})
	sum := sha256.Sum256([]byte(text))
	signature, _ := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TestRegistriesThatWeDidNotWrite pulls through hubcache from distribution's registry, with Basic and
// with tokens, and from go-containerregistry's, each cold, warm, and when they are gone.
func TestRegistriesThatWeDidNotWrite(t *testing.T) {
	program, _ := builtClient(t, "registry")
	crane, _ := builtClient(t, "crane")
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	distribution := func(name string, env ...string) *foreignRegistry {
		addr := freeAddr(t, "127.0.0.1")
		config := write(name+".yml", fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", filepath.Join(dir, name), addr))
		return startForeign(t, addr, env, program, "serve", config)
	}
	basic := distribution("basic", "REGISTRY_AUTH=htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM=test", "REGISTRY_AUTH_HTPASSWD_PATH="+write("htpasswd", []byte(foreignHtpasswd)))
	basic.authorize = func(req *http.Request, _ string) { req.SetBasicAuth(foreignUser, foreignSecret) }
	tokens := startTokenService(t)
	bundle := write("tokens.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tokens.cert}))
	byToken := distribution("token", "REGISTRY_AUTH=token", "REGISTRY_AUTH_TOKEN_REALM="+tokens.url+"/token", "REGISTRY_AUTH_TOKEN_SERVICE=cache-test",
		"REGISTRY_AUTH_TOKEN_ISSUER=tokens", "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE="+bundle)
	byToken.authorize = func(req *http.Request, scope string) {
		req.Header.Set("Authorization", "Bearer "+tokens.token(true, scope))
	}
	addr := freeAddr(t, "127.0.0.1")
	open := startForeign(t, addr, nil, crane, "registry", "serve", "--address", addr)

	secret := write("secret", []byte(foreignSecret+"\n"))
	login := fmt.Sprintf("username: %s, password_file: %s", foreignUser, secret)
	settings := fmt.Sprintf("{registries: {%q: {url: 'http://%[1]s', %s, private: [org/*]}, registry.test: {url: 'http://%s', %[2]s, private: [org/named]}, localhost: {url: 'http://%[4]s'}}}",
		basic.addr, login, byToken.addr, open.addr)
	cache := startServer(t, serverOptions{Upstream: "http://127.0.0.1:1", Anonymous: true, Env: []string{"HUBCACHE_SETTINGS=" + settings}})
	layer := bytes.Repeat([]byte("a layer that three registries have\n"), 40_000)
	for _, c := range []struct {
		name, repository string
		from             *foreignRegistry
		path, query      string
	}{
		{"Basic", "org/app", basic, "/v2/org/app/", "?ns=" + url.QueryEscape(basic.addr)},
		{"tokens", "public/app", byToken, "/v2/registry.test/public/app/", ""},
		{"tokens, private", "org/named", byToken, "/v2/org/named/", "?ns=registry.test"},
		{"go-containerregistry", "org/app", open, "/v2/localhost/org/app/", ""},
	} {
		manifest, blob := c.from.push(t, c.repository, "1", layer)
		get := func(rest string) (int, http.Header, []byte) {
			t.Helper()
			resp, err := http.Get(cache.URL + c.path + rest + c.query)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Errorf("%s, %s: %v", c.name, rest, err)
			}
			return resp.StatusCode, resp.Header, b
		}
		for range 2 {
			if status, h, b := get("manifests/1"); status != 200 || digest.FromBytes(b) != manifest || h.Get("Docker-Content-Digest") != string(manifest) {
				t.Errorf("%s, manifest: %d %s", c.name, status, b)
			}
			if status, _, b := get("blobs/" + string(blob)); status != 200 || !bytes.Equal(b, layer) {
				t.Errorf("%s, layer: %d, %d bytes", c.name, status, len(b))
			}
		}
		if status, _, b := get("tags/list"); status != 200 || !strings.Contains(string(b), `"1"`) {
			t.Errorf("%s, tags: %d %s", c.name, status, b)
		}
		if status, h, b := get("referrers/" + string(manifest)); status != 200 || h.Get("X-Hubcache") == "stale" || !strings.Contains(string(b), `"manifests"`) {
			t.Errorf("%s, referrers: %d %s", c.name, status, b)
		}
		if status, _, b := get("manifests/none"); status != 404 {
			t.Errorf("%s, a tag that isn't there: %d %s", c.name, status, b)
		}
	}
	byToken.push(t, "org/hidden", "1", []byte("hidden"))
	resp, err := http.Get(cache.URL + "/v2/registry.test/org/hidden/manifests/1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a private repository that isn't named: %d", resp.StatusCode)
	}
	for _, r := range []*foreignRegistry{basic, byToken, open} {
		r.stop()
	}
	for _, path := range []string{"/v2/org/app/manifests/1?ns=" + url.QueryEscape(basic.addr), "/v2/registry.test/public/app/manifests/1", "/v2/localhost/org/app/manifests/1"} {
		resp, err := http.Get(cache.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("X-Hubcache") != "stale" {
			t.Errorf("%s of a registry that is gone: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	if log := cache.Log(); strings.Contains(log, foreignSecret) {
		t.Error("the log has the secret")
	}
}
