package hubtest

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const serviceName = "registry.docker.io"

// grant is what a token stands for.
type grant struct {
	account string
	pull    []string // repositories
	expires time.Time
}

// signer is the key that signs CDN URLs and JWTs.
type signer string

func (k signer) sign(s string) []byte {
	mac := hmac.New(sha256.New, []byte(k))
	mac.Write([]byte(s))
	return mac.Sum(nil)
}

// tokenService answers as auth.docker.io.
type tokenService struct {
	signer  signer
	content *content
	ledger  *ledger

	mu     sync.Mutex // guards tokens
	tokens map[string]grant
}

// grantOf returns what a request's bearer token stands for, expired or not.
func (s *tokenService) grantOf(r *http.Request) (grant, bool) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.tokens[token]
	return g, ok
}

func (s *tokenService) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

func (s *tokenService) identify(q *request) { q.target, q.account = parseTokenRequest(q.r) }

// scope is one repository that a token is requested for.
type scope struct {
	repository string
	actions    []string
}

func parseScopes(values []string) []scope {
	var scopes []scope
	for _, s := range strings.Fields(strings.Join(values, " ")) {
		kind, rest, _ := strings.Cut(s, ":")
		i := strings.LastIndex(rest, ":")
		if kind != "repository" || i < 0 {
			continue
		}
		scopes = append(scopes, scope{rest[:i], strings.Split(rest[i+1:], ",")})
	}
	return scopes
}

// parseTokenRequest parses GET with Basic credentials, and POST in the form of OAuth2. It calls
// ParseForm.
func parseTokenRequest(r *http.Request) (target, string) {
	if r.URL.Path != "/token" {
		return target{kind: "other"}, ""
	}
	r.ParseForm()
	t := target{kind: "token"}
	for i, s := range parseScopes(r.Form["scope"]) {
		if i > 0 {
			t.repository += ","
			t.reference += ","
		}
		t.repository += s.repository
		t.reference += strings.Join(s.actions, "+")
	}
	username, _ := tokenCredentials(r)
	return t, username
}

// tokenCredentials are empty for an anonymous request.
func tokenCredentials(r *http.Request) (username, password string) {
	if username, password, ok := r.BasicAuth(); ok {
		return username, password
	}
	if r.Method == http.MethodPost {
		return r.PostForm.Get("username"), r.PostForm.Get("password")
	}
	return "", ""
}

func (s *tokenService) respond(q *request) *response {
	if q.target.kind != "token" {
		return textResponse(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if q.r.Method == http.MethodPost && q.r.PostForm.Get("grant_type") != "password" {
		return jsonResponse(http.StatusBadRequest, map[string]string{"details": "unsupported grant_type"})
	}
	if q.r.Form.Get("service") != serviceName {
		return jsonResponse(http.StatusBadRequest, map[string]string{"details": "unknown service"})
	}
	username, password := tokenCredentials(q.r)
	if username != "" || password != "" {
		a, known := q.opts.account(username)
		if !known || a.PAT != password {
			return jsonResponse(http.StatusUnauthorized, map[string]string{"details": "incorrect username or password"})
		}
	}
	g := grant{account: username}
	for _, scope := range parseScopes(q.r.Form["scope"]) {
		if username != "" && slices.ContainsFunc(scope.actions, func(a string) bool { return a != "pull" }) {
			return jsonResponse(http.StatusUnauthorized, map[string]string{"details": "access token has insufficient scopes"})
		}
		if slices.Contains(scope.actions, "pull") && s.content.visible(q.opts, username, scope.repository) {
			g.pull = append(g.pull, scope.repository)
		}
	}
	return s.issue(q.opts, g)
}

// issue makes a token that stands for the grant, and remembers it.
func (s *tokenService) issue(o Options, g grant) *response {
	lifetime := 300 * time.Second
	if o.OmitExpiresIn {
		lifetime = 60 * time.Second
	}
	lifetime = cmp.Or(o.TokenLifetime, lifetime)
	now := o.now()
	g.expires = now.Add(lifetime)
	token := rand.Text()
	if !o.OpaqueTokens {
		token = s.jwt(o, g, now)
	}
	s.mu.Lock()
	s.tokens[token] = g
	s.mu.Unlock()
	s.ledger.secret(token)

	body := map[string]any{
		"token": token, "access_token": token, "issued_at": now.UTC().Format(time.RFC3339Nano),
	}
	if !o.OmitExpiresIn {
		body["expires_in"] = int(lifetime.Seconds())
	}
	return jsonResponse(http.StatusOK, body)
}

// jwt makes a signed token in the shape of Docker's.
func (s *tokenService) jwt(o Options, g grant, now time.Time) string {
	access := []any{}
	for _, name := range g.pull {
		access = append(access, map[string]any{"type": "repository", "name": name, "actions": []string{"pull"}})
	}
	claims := map[string]any{
		"iss": "auth.docker.io", "aud": serviceName, "sub": g.account, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": g.expires.Unix(), "access": access,
	}
	if len(access) == 0 && o.OmitAccess {
		delete(claims, "access")
	}
	encode := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := encode(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + encode(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(s.signer.sign(signed))
}
