package hubtest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// client is a simple registry client.
type client struct {
	t        *testing.T
	http     *http.Client
	base     string
	username string
	password string
	tokens   map[string]string // repository → token
}

func newClient(t *testing.T, base string, rt http.RoundTripper) *client {
	return &client{t: t, base: base, tokens: map[string]string{}, http: &http.Client{
		Transport: rt,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			req.Header.Del("Authorization") // net/http keeps it for another port of the same address
			if len(via) == 5 {
				return errors.New("too many redirects")
			}
			return nil
		},
	}}
}

type answer struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

func (c *client) do(method, address string, header ...string) answer {
	c.t.Helper()
	a, err := c.try(method, address, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) try(method, address string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, address, nil)
	if err != nil {
		return answer{}, err
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}, nil
}

var challenge = regexp.MustCompile(`^Bearer realm="([^"]+)",service="([^"]+)",scope="([^"]+)"`)

// login answers the challenge for a repository.
func (c *client) login(repository string) {
	c.t.Helper()
	a := c.do("GET", c.base+"/v2/"+repository+"/manifests/none")
	m := challenge.FindStringSubmatch(a.Header.Get("WWW-Authenticate"))
	if a.StatusCode != 401 || m == nil {
		c.t.Fatalf("no challenge: %d %q", a.StatusCode, a.Header)
	}
	req, _ := http.NewRequest("GET", m[1]+"?"+url.Values{"service": {m[2]}, "scope": {m[3]}}.Encode(), nil)
	if c.username != "" {
		req.SetBasicAuth(c.username, c.password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var token struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil {
		c.t.Fatal(err)
	}
	c.tokens[repository] = token.Token
}

// get requests kind/reference of a repository with the token that login got.
func (c *client) get(method, repository, what string, header ...string) answer {
	c.t.Helper()
	a, err := c.tryGet(method, repository, what, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) tryGet(method, repository, what string, header ...string) (answer, error) {
	if token := c.tokens[repository]; token != "" {
		header = append(header, "Authorization: Bearer "+token)
	}
	return c.try(method, c.base+"/v2/"+repository+"/"+what, header...)
}

// onBoth runs a test over sockets, and in memory inside a synctest bubble.
func onBoth(t *testing.T, o hubtest.Options, test func(*testing.T, *hubtest.Hub, http.RoundTripper)) {
	t.Run("sockets", func(t *testing.T) {
		hub := hubtest.New(o)
		if err := hub.Start(); err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		rt := hubtest.LoopbackOnly(&http.Transport{DisableKeepAlives: true, DisableCompression: true})
		test(t, hub, rt)
	})
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := hubtest.New(o)
			defer hub.Close()
			test(t, hub, hub.Transport())
		})
	})
}

const faultyRepo = "library/faulty"

// faulty adds one blob of 100,000 bytes to the Hub, and returns a client with a token for it.
func faulty(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) (c *client, path string, want []byte) {
	img := hub.AddImage(faultyRepo, "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 100_000)})
	layer := img.Manifests[0].Layers[0].Digest
	want, err := io.ReadAll(hub.Blob(layer))
	if err != nil {
		t.Fatal(err)
	}
	c = newClient(t, hub.RegistryURL(), rt)
	c.login(faultyRepo)
	return c, "blobs/" + layer.String(), want
}
