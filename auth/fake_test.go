package auth

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	registryURL = "https://registry-1.docker.io"
	realmURL    = "https://auth.docker.io/token"
	secretText  = "dckr_pat_s3cr3t-Zx81"
)

// fakeUpstream is a registry, its token service and every other host, in memory. It has no
// sockets, so that synctest's clock runs. It records each request before it answers.
type fakeUpstream struct {
	realm     string        // in the registry's challenge
	scheme    string        // of the challenge: "Bearer" or "Basic"
	latency   time.Duration // of every answer
	expiresIn string        // raw JSON; "": left out

	tokens   func(*http.Request) *http.Response // answers of the token service; nil: it issues a token
	registry func(*http.Request) *http.Response // answers of the registry; nil: checkAuthorization
	fail     error                              // of requests to the token service

	mu     sync.Mutex           // guards what follows
	ledger []string             // "GET host/path", "TOKEN basic scope", "TOKEN anonymous scope"
	auths  map[string]string    // the last Authorization that each host received
	serial int                  // of the last token
	valid  map[string]time.Time // until when each token is valid
}

func newFakeUpstream() *fakeUpstream {
	return &fakeUpstream{realm: realmURL, scheme: "Bearer", expiresIn: "300", latency: 50 * time.Millisecond,
		auths: map[string]string{}, valid: map[string]time.Time{}}
}

func (up *fakeUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	auth := req.Header.Get("Authorization")
	realm, _ := url.Parse(up.realm)
	isToken := req.URL.Host == realm.Host && req.URL.Path == realm.Path
	up.mu.Lock()
	up.auths[req.URL.Host] = auth
	if isToken {
		who := "anonymous"
		if strings.HasPrefix(auth, "Basic ") {
			who = "basic"
		}
		up.ledger = append(up.ledger, "TOKEN "+who+" "+req.URL.Query().Get("scope"))
	} else {
		up.ledger = append(up.ledger, req.Method+" "+req.URL.Host+req.URL.Path)
	}
	up.mu.Unlock()
	select {
	case <-time.After(up.latency):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	resp := up.answer(req, isToken)
	if resp == nil {
		return nil, up.fail
	}
	resp.Request = req
	return resp, nil
}

func (up *fakeUpstream) answer(req *http.Request, isToken bool) *http.Response {
	switch {
	case isToken && up.fail != nil:
		return nil
	case isToken && up.tokens != nil:
		return up.tokens(req)
	case isToken:
		return up.issue(req)
	case req.URL.Host != "registry-1.docker.io":
		return reply(200, "elsewhere")
	case up.registry != nil:
		return up.registry(req)
	}
	return up.checkAuthorization(req)
}

// checkAuthorization answers 200 to a valid token and to the right password, else 401.
func (up *fakeUpstream) checkAuthorization(req *http.Request) *http.Response {
	auth := req.Header.Get("Authorization")
	up.mu.Lock()
	until, ok := up.valid[strings.TrimPrefix(auth, "Bearer ")]
	up.mu.Unlock()
	if ok && time.Now().Before(until) || up.scheme == "Basic" && auth == basicOf(secretText) {
		resp := reply(200, "manifest")
		resp.Header.Set("Docker-Content-Digest", "sha256:00")
		return resp
	}
	return up.challenge()
}

func (up *fakeUpstream) challenge() *http.Response {
	resp := reply(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
	resp.Header.Set("WWW-Authenticate", fmt.Sprintf(`%s realm="%s",service="registry.docker.io",scope="repository:x:pull"`, up.scheme, up.realm))
	return resp
}

// issue answers with a new token, valid from now.
func (up *fakeUpstream) issue(req *http.Request) *http.Response {
	up.mu.Lock()
	up.serial++
	value := fmt.Sprintf("opaque-%d", up.serial)
	lifetime, err := time.ParseDuration(up.expiresIn + "s")
	if err != nil {
		lifetime = time.Minute
	}
	up.valid[value] = time.Now().Add(lifetime)
	up.mu.Unlock()
	return grantOf(value, up.expiresIn)
}

// revoke makes all tokens invalid.
func (up *fakeUpstream) revoke() {
	up.mu.Lock()
	defer up.mu.Unlock()
	clear(up.valid)
}

// takeRequests returns the recorded requests with this prefix, and forgets all others too.
func (up *fakeUpstream) takeRequests(prefix string) []string {
	up.mu.Lock()
	defer up.mu.Unlock()
	seen := slices.DeleteFunc(up.ledger, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	up.ledger = nil
	return seen
}

// grantOf returns the token service's answer with this token.
func grantOf(value, expiresIn string) *http.Response {
	if expiresIn != "" {
		expiresIn = `,"expires_in":` + expiresIn
	}
	return reply(200, fmt.Sprintf(`{"token":%q%s}`, value, expiresIn))
}

func reply(status int, body string) *http.Response {
	resp := &http.Response{StatusCode: status, Status: fmt.Sprintf("%d %s", status, http.StatusText(status)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	if strings.HasPrefix(body, "{") {
		resp.Header.Set("Content-Type", "application/json")
	}
	return resp
}

// always answers every request like this. header has names and values in turn.
func always(status int, body string, header ...string) func(*http.Request) *http.Response {
	return func(*http.Request) *http.Response {
		resp := reply(status, body)
		for i := 0; i < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp
	}
}

// jwt returns a token whose payload is claims, valid JSON or not.
func jwt(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature"))
}

// basicOf returns the Authorization of "someone" with this password.
func basicOf(secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte("someone:"+secret))
}

// secretFile returns a File for "someone" and the path to its secret.
func secretFile(t *testing.T, secret string) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pat")
	write(t, path, secret)
	return NewFile("someone", path), path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// transport returns a Transport that sends its requests to base, and what it logs.
func transport(base http.RoundTripper, f *File) (*Transport, *bytes.Buffer) {
	log := &bytes.Buffer{}
	u, _ := url.Parse(registryURL)
	return &Transport{Registry: u, Credential: f, Base: base,
		Log: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, log
}

// get asks for a path of the registry, or for a whole URL, and returns the status. The
// scope is the repository in the path.
func get(t *testing.T, tr http.RoundTripper, path string) (int, error) {
	t.Helper()
	if strings.HasPrefix(path, "/") {
		path = registryURL + path
	}
	ctx := t.Context()
	if _, rest, ok := strings.Cut(path, "/v2/"); ok {
		repository, _, _ := strings.Cut(rest, "/manifests/")
		repository, _, _ = strings.Cut(repository, "/blobs/")
		ctx = WithScope(ctx, repository)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		if resp != nil {
			t.Errorf("%s: both a response and the error %v", path, err)
		}
		return 0, err
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, nil
}

// want fails unless path is answered with status.
func want(t *testing.T, tr http.RoundTripper, path string, status int) {
	t.Helper()
	if got, err := get(t, tr, path); got != status || err != nil {
		t.Fatalf("%s: %d, %v; want %d", path, got, err, status)
	}
}

// wantRequests fails unless the recorded requests with this prefix are exactly these.
func (up *fakeUpstream) wantRequests(t *testing.T, prefix string, exactly ...string) {
	t.Helper()
	if got := up.takeRequests(prefix); !slices.Equal(got, exactly) {
		t.Fatalf("requests %s…: %q; want %q", prefix, got, exactly)
	}
}
