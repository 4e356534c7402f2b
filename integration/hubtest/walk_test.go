package hubtest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// client is a registry client as simple as can be.
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

// get asks for kind/reference of a repository with the token that login got.
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

// onBoth runs a test over sockets and, in a bubble, in memory.
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

func TestPullIsInTheLedger(t *testing.T) {
	onBoth(t, hubtest.Options{Accounts: []hubtest.Account{{Username: "alice", PAT: "secret"}}},
		func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
			img := hub.AddImage("library/redis", "7", hubtest.ImageSpec{
				Layers: hubtest.Layers(2, 100_000), Platforms: []string{"linux/amd64", "linux/arm/v7"}, Attestations: true,
			})
			c := newClient(t, hub.RegistryURL(), rt)
			c.username, c.password = "alice", "secret"
			c.login("library/redis")

			head := c.get("HEAD", "library/redis", "manifests/7")
			if head.StatusCode != 200 || head.Header.Get("Docker-Content-Digest") != img.Digest.String() ||
				head.ContentLength != img.Descriptor.Size || head.Header.Get("Content-Type") != ocispec.MediaTypeImageIndex ||
				head.Header.Get("ETag") != `"`+img.Digest.String()+`"` || head.Header.Get("RateLimit-Remaining") != "200;w=21600" {
				t.Errorf("HEAD: %d %v", head.StatusCode, head.Header)
			}
			get := c.get("GET", "library/redis", "manifests/"+img.Digest.String())
			if string(get.body) != string(img.Bytes) || get.Header.Get("RateLimit-Remaining") != "199;w=21600" {
				t.Errorf("GET: %d %v", get.StatusCode, get.Header)
			}
			layer := img.Manifests[0].Layers[0]
			whole := c.get("GET", "library/redis", "blobs/"+layer.Digest.String())
			if digest.FromBytes(whole.body) != layer.Digest {
				t.Errorf("blob: %d, %d bytes", whole.StatusCode, len(whole.body))
			}
			part := c.get("GET", "library/redis", "blobs/"+layer.Digest.String(), "Range: bytes=1000-1999")
			if part.StatusCode != 206 || string(part.body) != string(whole.body[1000:2000]) ||
				part.Header.Get("Content-Range") != "bytes 1000-1999/100000" {
				t.Errorf("range: %d %v", part.StatusCode, part.Header)
			}

			d := hubtest.Short(layer.Digest.String())
			want := []string{
				"GET registry library/redis manifests/none range=- account=- → 401",
				"GET token library/redis token/pull range=- account=alice → 200",
				"HEAD registry library/redis manifests/7 range=- account=alice → 200",
				"GET registry library/redis manifests/" + hubtest.Short(img.Digest.String()) + " range=- account=alice → 200",
				"GET registry library/redis blobs/" + d + " range=- account=alice → 307",
				"GET cdn library/redis blobs/" + d + " range=- account=alice → 200",
				"GET registry library/redis blobs/" + d + " range=bytes=1000-1999 account=alice → 307",
				"GET cdn library/redis blobs/" + d + " range=bytes=1000-1999 account=alice → 206",
			}
			l := hub.Ledger()
			if got := l.Lines(); !slices.Equal(got, want) {
				t.Errorf("ledger:\n%s\nwant:\n%s", l, strings.Join(want, "\n"))
			}
			if l.ManifestGETs() != 1 || l.ManifestHEADs() != 1 || l.BlobGETs() != 2 || l.BlobBytes() != 101_000 || l.TokenRequests("alice") != 1 {
				t.Errorf("counts: %d %d %d %d", l.ManifestGETs(), l.ManifestHEADs(), l.BlobGETs(), l.BlobBytes())
			}
			if v := hub.Violations(); len(v) > 0 {
				t.Error(v)
			}
		})
}
