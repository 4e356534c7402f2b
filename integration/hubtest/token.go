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
	"time"
)

const service = "registry.docker.io"

// grant is what a token stands for.
type grant struct {
	account string
	pull    []string // repositories
	expires time.Time
}

// bearer returns the grant behind a request's token, expired or not.
func (h *Hub) bearer(r *http.Request) (grant, bool) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.tokens[token]
	return g, ok
}

// RevokeTokens makes every token given out so far unknown to the registry.
func (h *Hub) RevokeTokens() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.tokens)
}

// scope is one thing that a token is asked for.
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

// parseTokenRequest understands GET with Basic and the OAuth2 form. It reads the form.
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

func tokenCredentials(r *http.Request) (username, password string) {
	if username, password, ok := r.BasicAuth(); ok {
		return username, password
	}
	if r.Method == http.MethodPost {
		return r.PostForm.Get("username"), r.PostForm.Get("password")
	}
	return "", ""
}

// token answers for auth.docker.io.
func (x *exchange) token() *reply {
	if x.target.kind != "token" {
		return textReply(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if x.r.Method == http.MethodPost && x.r.PostForm.Get("grant_type") != "password" {
		return jsonReply(http.StatusBadRequest, map[string]string{"details": "unsupported grant_type"})
	}
	if x.r.Form.Get("service") != service {
		return jsonReply(http.StatusBadRequest, map[string]string{"details": "unknown service"})
	}
	username, password := tokenCredentials(x.r)
	if username != "" || password != "" {
		a, known := x.opts.account(username)
		if !known || a.PAT != password {
			return jsonReply(http.StatusUnauthorized, map[string]string{"details": "incorrect username or password"})
		}
	}
	g := grant{account: username}
	for _, s := range parseScopes(x.r.Form["scope"]) {
		if username != "" && slices.ContainsFunc(s.actions, func(a string) bool { return a != "pull" }) {
			return jsonReply(http.StatusUnauthorized, map[string]string{"details": "access token has insufficient scopes"})
		}
		if slices.Contains(s.actions, "pull") && x.hub.visible(x.opts, username, s.repository) {
			g.pull = append(g.pull, s.repository)
		}
	}
	return x.issue(g)
}

func (x *exchange) issue(g grant) *reply {
	lifetime := 300 * time.Second
	if x.opts.OmitExpiresIn {
		lifetime = 60 * time.Second
	}
	lifetime = cmp.Or(x.opts.TokenLifetime, lifetime)
	now := x.opts.now()
	g.expires = now.Add(lifetime)
	token := rand.Text()
	if !x.opts.OpaqueTokens {
		token = x.jwt(g, now)
	}
	x.hub.mu.Lock()
	x.hub.tokens[token] = g
	x.hub.secrets = append(x.hub.secrets, token)
	x.hub.mu.Unlock()

	body := map[string]any{
		"token": token, "access_token": token, "issued_at": now.UTC().Format(time.RFC3339Nano),
	}
	if !x.opts.OmitExpiresIn {
		body["expires_in"] = int(lifetime.Seconds())
	}
	return jsonReply(http.StatusOK, body)
}

// jwt makes a signed token in the shape of Docker's.
func (x *exchange) jwt(g grant, now time.Time) string {
	access := []any{}
	for _, name := range g.pull {
		access = append(access, map[string]any{"type": "repository", "name": name, "actions": []string{"pull"}})
	}
	claims := map[string]any{
		"iss": "auth.docker.io", "aud": service, "sub": g.account, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": g.expires.Unix(), "access": access,
	}
	if len(access) == 0 && x.opts.OmitAccess {
		delete(claims, "access")
	}
	encode := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := encode(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + encode(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(x.hub.sign(signed))
}

func (h *Hub) sign(s string) []byte {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(s))
	return mac.Sum(nil)
}
