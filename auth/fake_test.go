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

// world is a registry, its token service and everything else, in memory: no sockets,
// so that synctest's clock runs. Each request is noted before it is answered.
type world struct {
	realm     string        // in the registry's challenge
	scheme    string        // of the challenge: "Bearer" or "Basic"
	latency   time.Duration // of every answer
	expiresIn string        // raw JSON; "": left out

	tokens   func(*http.Request) *http.Response // nil: issues a token
	registry func(*http.Request) *http.Response // nil: 200 to a token (or password) in force, else 401
	fail     error                              // of the token service

	mu     sync.Mutex
	ledger []string          // "GET host/path", "TOKEN basic scope", "TOKEN anonymous scope"
	auths  map[string]string // host → last Authorization seen
	serial int
	valid  map[string]time.Time // tokens in force, until
}

func newWorld() *world {
	return &world{realm: realmURL, scheme: "Bearer", expiresIn: "300", latency: 50 * time.Millisecond,
		auths: map[string]string{}, valid: map[string]time.Time{}}
}

func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	auth := req.Header.Get("Authorization")
	realm, _ := url.Parse(w.realm)
	isToken := req.URL.Host == realm.Host && req.URL.Path == realm.Path
	w.mu.Lock()
	w.auths[req.URL.Host] = auth
	if isToken {
		who := "anonymous"
		if strings.HasPrefix(auth, "Basic ") {
			who = "basic"
		}
		w.ledger = append(w.ledger, "TOKEN "+who+" "+req.URL.Query().Get("scope"))
	} else {
		w.ledger = append(w.ledger, req.Method+" "+req.URL.Host+req.URL.Path)
	}
	w.mu.Unlock()
	select {
	case <-time.After(w.latency):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	resp := w.answer(req, isToken)
	if resp == nil {
		return nil, w.fail
	}
	resp.Request = req
	return resp, nil
}

func (w *world) answer(req *http.Request, isToken bool) *http.Response {
	switch {
	case isToken && w.fail != nil:
		return nil
	case isToken && w.tokens != nil:
		return w.tokens(req)
	case isToken:
		return w.issue(req)
	case req.URL.Host != "registry-1.docker.io":
		return reply(200, "elsewhere")
	case w.registry != nil:
		return w.registry(req)
	}
	return w.guard(req)
}

// guard is a registry that lets tokens in force and the right password in.
func (w *world) guard(req *http.Request) *http.Response {
	auth := req.Header.Get("Authorization")
	w.mu.Lock()
	until, ok := w.valid[strings.TrimPrefix(auth, "Bearer ")]
	w.mu.Unlock()
	if ok && time.Now().Before(until) || w.scheme == "Basic" && auth == basicOf(secretText) {
		return reply(200, "manifest")
	}
	return w.challenge()
}

func (w *world) challenge() *http.Response {
	resp := reply(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
	resp.Header.Set("WWW-Authenticate", fmt.Sprintf(`%s realm="%s",service="registry.docker.io",scope="repository:x:pull"`, w.scheme, w.realm))
	return resp
}

// issue puts a new token in force.
func (w *world) issue(req *http.Request) *http.Response {
	w.mu.Lock()
	w.serial++
	value := fmt.Sprintf("opaque-%d", w.serial)
	lifetime, err := time.ParseDuration(w.expiresIn + "s")
	if err != nil {
		lifetime = time.Minute
	}
	w.valid[value] = time.Now().Add(lifetime)
	w.mu.Unlock()
	return grantOf(value, w.expiresIn)
}

// revoke puts all tokens out of force.
func (w *world) revoke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.valid)
}

// saw returns the ledger's entries with this prefix and forgets all of them.
func (w *world) saw(prefix string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := slices.DeleteFunc(w.ledger, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	w.ledger = nil
	return seen
}

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

func always(status int, body string, header ...string) func(*http.Request) *http.Response {
	return func(*http.Request) *http.Response {
		resp := reply(status, body)
		for i := 0; i < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp
	}
}

// jwt is a token whose payload is claims, as it comes.
func jwt(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature"))
}

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

// transport is a Transport in w, and what it logs.
func transport(w http.RoundTripper, f *File) (*Transport, *bytes.Buffer) {
	log := &bytes.Buffer{}
	u, _ := url.Parse(registryURL)
	return &Transport{Registry: u, Credential: f, Base: w,
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

// requests fails unless what w saw under prefix is exactly this.
func (w *world) requests(t *testing.T, prefix string, exactly ...string) {
	t.Helper()
	if got := w.saw(prefix); !slices.Equal(got, exactly) {
		t.Fatalf("requests %s…: %q; want %q", prefix, got, exactly)
	}
}
