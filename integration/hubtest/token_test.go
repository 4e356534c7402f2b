package hubtest_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// access returns the access claim of a token, and whether it has one.
func access(t *testing.T, token string) (string, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is not a JWT", token)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	raw, ok := claims["access"]
	return string(raw), ok
}

func TestPrivateRepositoriesAreHidden(t *testing.T) {
	onBoth(t, hubtest.Options{Accounts: []hubtest.Account{
		{Username: "alice", PAT: "a", Private: []string{"alice/*"}}, {Username: "bob", PAT: "b"},
	}}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		hub.SetPrivate("alice/secret", true)
		img := hub.AddImage("alice/secret", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100)})
		hub.AddImage("library/x", "1", hubtest.ImageSpec{})
		for _, row := range []struct {
			user, pat, repository, access string
			status                        int
		}{
			{"", "", "library/x", `[{"actions":["pull"],"name":"library/x","type":"repository"}]`, 200},
			{"", "", "alice/secret", `[]`, 401},
			{"", "", "no/such", `[]`, 401},
			{"bob", "b", "alice/secret", `[]`, 401},
			{"alice", "a", "alice/secret", `[{"actions":["pull"],"name":"alice/secret","type":"repository"}]`, 200},
		} {
			c := newClient(t, hub.RegistryURL(), rt)
			c.username, c.password = row.user, row.pat
			c.login(row.repository)
			if got, _ := access(t, c.tokens[row.repository]); got != row.access {
				t.Errorf("%s on %s: access %s", row.user, row.repository, got)
			}
			a := c.get("GET", row.repository, "manifests/1")
			scoped := strings.Contains(a.Header.Get("WWW-Authenticate"), `error="insufficient_scope"`)
			if a.StatusCode != row.status || scoped != (row.status == 401) {
				t.Errorf("%s on %s: %d %s", row.user, row.repository, a.StatusCode, a.body)
			}
		}

		// A blob is served only under repositories that have it.
		c := newClient(t, hub.RegistryURL(), rt)
		c.login("library/x")
		blob := img.Manifests[0].Layers[0].Digest
		if a := c.get("GET", "library/x", "blobs/"+blob.String()); a.StatusCode != 404 {
			t.Errorf("foreign blob: %d", a.StatusCode)
		}
		hub.LinkBlob("library/x", blob)
		if a := c.get("GET", "library/x", "blobs/"+blob.String()); a.StatusCode != 200 {
			t.Errorf("linked blob: %d", a.StatusCode)
		}
		// A token for one repository is not valid for another.
		hub.AddImage("library/y", "1", hubtest.ImageSpec{})
		c.tokens["library/y"] = c.tokens["library/x"]
		if a := c.get("GET", "library/y", "manifests/1"); a.StatusCode != 401 {
			t.Errorf("foreign token: %d", a.StatusCode)
		}
		hub.Set(func(o *hubtest.Options) { o.OmitAccess = true })
		c.login("alice/secret")
		if got, ok := access(t, c.tokens["alice/secret"]); ok {
			t.Errorf("access is %s and should be omitted", got)
		}
	})
}

// tokenStatus requests a token and returns status and body.
func tokenStatus(t *testing.T, hub *hubtest.Hub, user, pat, scope string) (int, string) {
	c := newClient(t, "", hub.Transport())
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pat))
	query := url.Values{"service": {"registry.docker.io"}, "scope": {scope}}
	a := c.do("GET", hub.Network.URL(hubtest.Token)+"/token?"+query.Encode(), "Authorization: "+auth)
	return a.StatusCode, string(a.body)
}

func TestTokensAreCheckedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{Accounts: []hubtest.Account{{Username: "alice", PAT: "a"}}})
		defer hub.Close()
		hub.AddImage("library/x", "1", hubtest.ImageSpec{})

		status, body := tokenStatus(t, hub, "alice", "wrong", "repository:library/x:pull")
		if status != 401 || body != `{"details":"incorrect username or password"}` {
			t.Errorf("wrong PAT: %d %s", status, body)
		}
		if status, body = tokenStatus(t, hub, "alice", "a", "repository:library/x:pull,push"); status != 401 {
			t.Errorf("push with a read-only PAT: %d %s", status, body)
		}
		if n := hub.Ledger().TokenRequests("alice"); n != 2 {
			t.Errorf("%d token requests of alice", n)
		}

		c := newClient(t, hub.RegistryURL(), hub.Transport())
		c.login("library/x")
		for _, row := range []struct {
			after  time.Duration
			status int
		}{{0, 200}, {300 * time.Second, 200}, {time.Second, 401}} {
			time.Sleep(row.after)
			if a := c.get("GET", "library/x", "manifests/1"); a.StatusCode != row.status {
				t.Errorf("%v later: %d", row.after, a.StatusCode)
			}
		}
		hub.Set(func(o *hubtest.Options) { o.OmitExpiresIn, o.OpaqueTokens = true, true })
		if _, body = tokenStatus(t, hub, "alice", "a", ""); strings.Contains(body, "expires_in") {
			t.Error(body)
		}
		c.login("library/x")
		if strings.Contains(c.tokens["library/x"], ".") {
			t.Error("an opaque token with dots")
		}
		hub.RevokeTokens()
		if a := c.get("GET", "library/x", "manifests/1"); a.StatusCode != 401 {
			t.Errorf("revoked token: %d", a.StatusCode)
		}
	})
}
