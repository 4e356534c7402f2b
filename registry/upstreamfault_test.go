package registry_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestFailingUpstreamLeavesCachedTagsServed: however upstream fails, a cached tag is served
// stale within 2 s, and an uncached tag is refused within 5 s with the status that says
// why.
func TestFailingUpstreamLeavesCachedTagsServed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault  hubtest.Fault
		face   hubtest.Face
		status int
	}{
		"429":           {hubtest.TooManyRequests("Retry-After: 30"), hubtest.Registry, 429},
		"429 bare":      {hubtest.TooManyRequests(), hubtest.Registry, 429},
		"abuse limit":   {hubtest.HAP429(), hubtest.Registry, 429},
		"500":           {hubtest.Status(500, "oops"), hubtest.Registry, 502},
		"503":           {hubtest.Status(503, "oops"), hubtest.Registry, 502},
		"reset":         {hubtest.Reset(), hubtest.Registry, 502},
		"drop":          {hubtest.Drop(), hubtest.Registry, 502},
		"hang":          {hubtest.Hang(), hubtest.Registry, 504},
		"token 500":     {hubtest.Status(500, "oops"), hubtest.Token, 502},
		"token hangs":   {hubtest.Hang(), hubtest.Token, 504},
		"token 429":     {hubtest.Status(429, "slow down"), hubtest.Token, 429},
		"PAT refused":   {hubtest.Status(401, `{"details":"incorrect username or password"}`), hubtest.Token, 503},
		"HTML from CDN": {hubtest.HTML(), hubtest.Registry, 502},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TokenLifetime: time.Minute}})
				img, other := l.smallImage("library/redis", "7"), l.smallImage("library/other", "1")
				l.pull(img)
				l.pull(other) // so that the repository is known to be public
				l.hub.Tag("library/other", "2", other.Digest)
				time.Sleep(10 * time.Minute)
				l.hub.Inject(hubtest.Match{Face: c.face}, c.fault)
				defer l.hub.ClearFaults()
				for _, method := range []string{"GET", "HEAD", "GET"} {
					start := time.Now()
					r := l.do(method, manifestPath(img))
					if r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
						t.Errorf("%s of a cached tag: %d %s %s", method, r.status, r.header.Get("X-Hubcache"), r.body)
					}
					if took := time.Since(start); took > 2*time.Second {
						t.Errorf("it took %s", took)
					}
				}
				start := time.Now()
				r := l.get("/v2/library/other/manifests/2")
				if r.status != c.status || !strings.Contains(string(r.body), `"errors"`) {
					t.Errorf("an uncached tag: %d %s", r.status, r.body)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("it took %s", took)
				}
				if r.status == 429 && r.header.Get("Retry-After") == "" {
					t.Error("429 without Retry-After")
				}
				if s := r.header.Get("WWW-Authenticate"); s != "" || r.status == 401 {
					t.Error("the client was challenged")
				}
				// A cached manifest is served by digest without upstream.
				if r := l.get("/v2/library/redis/manifests/" + string(img.Digest)); r.status != 200 {
					t.Errorf("by digest: %d", r.status)
				}
				l.hub.ClearFaults()
				time.Sleep(time.Hour)
				if r := l.get("/v2/library/other/manifests/2"); r.status != 200 {
					t.Errorf("after the fault: %d %s", r.status, r.body)
				}
			})
		})
	}
}

// deadUpstream is an upstream that accepts connections and never answers, or whose name has
// no address.
type deadUpstream struct{ resolves bool }

func (s deadUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if !s.resolves {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: req.URL.Host, IsNotFound: true}}
	}
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// TestUnreachableUpstreamDoesNotDelayCachedPulls: no host of upstream answers, or has an
// address. The first pull of a cached tag takes 2 s at most and later ones do not wait,
// except for a few that probe whether upstream is back. An image whose layers are not all
// cached is refused.
func TestUnreachableUpstreamDoesNotDelayCachedPulls(t *testing.T) {
	t.Parallel()
	for _, s := range []deadUpstream{{true}, {false}} {
		t.Run(fmt.Sprintf("resolves=%v", s.resolves), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testUnreachableUpstream(t, s) })
		})
	}
}

func testUnreachableUpstream(t *testing.T, s deadUpstream) {
	l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
	layers := l.addImage("library/app", "1", 5<<18)
	half := l.addImage("library/half", "1", 1000, 1001)
	m := l.get("/v2/library/app/manifests/1")
	layers = append(layers, image.Children(m.body)[0].Digest) // the config
	for _, d := range layers {
		l.fetch("library/app", d)
	}
	l.get("/v2/library/half/manifests/1")
	l.fetch("library/half", half[0])
	l.checkStore()
	l.stop()
	l.transport = s
	l.start()
	pull := func() time.Duration {
		start := time.Now()
		if r := l.get("/v2/library/app/manifests/1"); r.status != 200 || r.header.Get("X-Hubcache") != "stale" {
			t.Errorf("%d %v", r.status, r.header)
		}
		for _, d := range layers {
			l.fetch("library/app", d)
		}
		return time.Since(start)
	}
	if took := pull(); took > 2*time.Second {
		t.Errorf("the first pull took %s", took)
	}
	time.Sleep(5 * time.Second) // the first check has timed out
	probes := 0
	for range 200 {
		switch took := pull(); {
		case took > 2*time.Second:
			t.Errorf("a pull took %s", took)
		case took > 0: // it probed whether upstream is back
			probes++
		}
		time.Sleep(time.Second)
	}
	if probes > 10 { // after 2, 4, 8, 16 and then every 30 s
		t.Errorf("%d of 200 later pulls waited", probes)
	}
	start := time.Now()
	if r := l.get("/v2/library/half/manifests/1"); r.status != 503 {
		t.Errorf("an image of which a layer is not cached: %d", r.status)
	}
	if r := l.get("/v2/library/unknown/manifests/1"); r.status != 502 && r.status != 504 && r.status != 429 {
		t.Errorf("an unknown image: %d %s", r.status, r.body)
	}
	if r := l.get("/v2/library/half/blobs/" + string(half[1])); r.status != 429 {
		t.Errorf("a layer that is not cached: %d %s", r.status, r.body)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("three failures took %s", took)
	}
	l.checkStore()
	if strings.Contains(l.log.String(), pat) {
		t.Error("the token is in the log")
	}
}

// TestRateLimitIsRespectedUntilItsEnd: after a 429 upstream is not asked for manifests
// until Retry-After has passed, but blobs are still fetched, and a new credential is tried
// at once.
func TestRateLimitIsRespectedUntilItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("coop/app", "1")
		l.pull(img)
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "manifests"}, hubtest.TooManyRequests("Retry-After: 300"))
		for range 20 {
			if r := l.get(manifestPath(img)); r.status != 200 {
				t.Fatal(r.status)
			}
			time.Sleep(time.Second)
		}
		if n := rule.Hits(); n != 1 {
			t.Errorf("upstream was asked %d times", n)
		}
		// The limit is one of manifests, not of blobs.
		other := l.hub.AddImage("coop/app", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
		l.blob("coop/app", string(other.Manifests[0].Layers[0].Digest))
		// The limit is the credential's.
		rule.Remove()
		l.newPAT("another")
		if r := l.get("/v2/coop/app/manifests/2"); r.status != 200 {
			t.Errorf("with a new credential: %d %s", r.status, r.body)
		}
	})
}

// TestUnparsableLocationIsNotInAnswerOrLog: an error about a redirect to a URL that cannot
// be parsed does not show the URL, whose signature is a secret.
func TestUnparsableLocationIsNotInAnswerOrLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && resp.StatusCode == 307 {
				resp.Header.Set("Location", "https://cdn.test/%zz?X-Amz-Signature=SECRETSIGNATURE")
			}
			return resp, err
		})
		img := l.smallImage("library/redis", "7")
		r := l.get(blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
		if strings.Contains(string(r.body), "SECRETSIGNATURE") {
			t.Errorf("client: %d %s", r.status, r.body)
		}
		if strings.Contains(l.log.String(), "SECRETSIGNATURE") {
			t.Errorf("log: %s", l.log)
		}
	})
}

// TestManyMissesAskForOneToken: many requests at once share one token request.
func TestManyMissesAskForOneToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(200, 4096)})
		done := make(chan reply)
		for _, b := range img.Manifests[0].Layers {
			go func() { done <- l.get("/v2/library/big/blobs/" + string(b.Digest)) }()
		}
		for range img.Manifests[0].Layers {
			if r := <-done; r.status != 200 || r.err != nil {
				t.Fatal(r.status, r.err)
			}
		}
		if ledger := l.hub.Ledger(); ledger.TokenRequests(username) != 1 || ledger.TokenRequests("") > 1 {
			t.Errorf("%d token requests with the PAT, %d without", ledger.TokenRequests(username), ledger.TokenRequests(""))
		}
	})
}

// countConnections starts a server on loopback and counts the connections made to it.
func countConnections(h http.Handler) (*httptest.Server, *atomic.Int32) {
	n := new(atomic.Int32)
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.Add(1)
		}
	}
	srv.Start()
	return srv, n
}

// TestConnectionsAreReused: blobs that are fetched one after the other need one connection
// to the registry, whose redirects have bodies, and one to the CDN. A new one to Docker Hub
// costs two round trips.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	const blobs = 10
	var ds []digest.Digest
	bodies := map[string][]byte{}
	var layers []string
	for i := range blobs {
		b := fmt.Appendf(nil, "layer %d", i)
		d := digest.FromBytes(b)
		ds, bodies[string(d)] = append(ds, d), b
		layers = append(layers, fmt.Sprintf(`{"digest":%q,"size":%d}`, d, len(b)))
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[%s]}`, strings.Join(layers, ","))
	cdn, atCDN := countConnections(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(bodies[strings.TrimPrefix(r.URL.Path, "/")])
	}))
	t.Cleanup(cdn.Close)
	hub, atHub := countConnections(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
			http.Redirect(w, r, cdn.URL+"/"+d, http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		if r.Method == http.MethodGet {
			w.Write(manifest)
		}
	}))
	t.Cleanup(hub.Close)

	l := newLab(t, labOptions{upstream: hub.URL, anonymous: true})
	front := httptest.NewServer(l.reg)
	defer front.Close()
	get := func(path string) []byte {
		t.Helper()
		resp, err := http.Get(front.URL + "/v2/library/app" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := readAll(resp.Body, -1)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		return b
	}
	get("/manifests/1")
	for _, d := range ds {
		if b := get("/blobs/" + string(d)); string(b) != string(bodies[string(d)]) {
			t.Errorf("%s: %q", d, b)
		}
	}
	if n := atHub.Load(); n != 1 {
		t.Errorf("%d connections to the registry", n)
	}
	if n := atCDN.Load(); n != 1 {
		t.Errorf("%d connections to the CDN", n)
	}
}
