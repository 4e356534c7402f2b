package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

const (
	signedV1   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	unsignedV1 = "application/vnd.docker.distribution.manifest.v1+json"
	ociImage   = "application/vnd.oci.image.manifest.v1+json"
)

// upstreamManifest is a manifest as an upstream has it.
type upstreamManifest struct {
	mediaType string
	body      []byte
	digest    digest.Digest // as the upstream names it
}

// schema1 is a manifest of schema 1. Upstream names the digest of what is signed, without
// the signatures, so the bytes have another one.
func schema1(signed bool) upstreamManifest {
	payload := []byte(`{
   "schemaVersion": 1,
   "name": "library/old",
   "tag": "1",
   "architecture": "amd64",
   "fsLayers": [{"blobSum": "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"}],
   "history": [{"v1Compatibility": "{}"}]
}`)
	m := upstreamManifest{unsignedV1, payload, digest.FromBytes(payload)}
	if signed {
		length := bytes.LastIndexByte(payload, '\n')
		tail := base64.RawURLEncoding.EncodeToString(payload[length:])
		protected := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"formatLength":%d,"formatTail":%q}`, length, tail)))
		m.mediaType = signedV1
		m.body = append(payload[:length:length], fmt.Sprintf(`,
   "signatures": [{"header": {"alg": "ES256"}, "signature": "AAAA", "protected": %q}]
}`, protected)...)
	}
	return m
}

// imageManifest is a manifest of an image without layers, padded to a size if that is more.
func imageManifest(mediaType string, schemaVersion, size int) upstreamManifest {
	m := map[string]any{"schemaVersion": schemaVersion, "layers": []any{}, "annotations": map[string]string{"pad": ""}}
	if strings.HasPrefix(mediaType, "application/vnd.") {
		m["mediaType"] = mediaType
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	if pad := size - len(b); pad > 0 {
		b = bytes.Replace(b, []byte(`"pad":"`), append([]byte(`"pad":"`), bytes.Repeat([]byte("x"), pad)...), 1)
	}
	return upstreamManifest{mediaType, b, digest.FromBytes(b)}
}

// manifestKinds are kinds of manifests, and what is called one.
var manifestKinds = map[string]upstreamManifest{
	"OCI image":              imageManifest(ociImage, 2, 0),
	"OCI index":              {"application/vnd.oci.image.index.v1+json", []byte(`{"schemaVersion":2,"manifests":[]}`), digest.FromString(`{"schemaVersion":2,"manifests":[]}`)},
	"Docker image":           imageManifest("application/vnd.docker.distribution.manifest.v2+json", 2, 0),
	"Docker list":            imageManifest("application/vnd.docker.distribution.manifest.list.v2+json", 2, 0),
	"with parameters":        imageManifest(ociImage+"; charset=utf-8", 2, 0),
	"called JSON":            imageManifest("application/json", 2, 0),
	"called nothing":         imageManifest("", 2, 0),
	"of a type of its own":   imageManifest("application/vnd.example.thing.v9+json", 2, 0),
	"as large as can be":     imageManifest(ociImage, 2, 4<<20),
	"too large":              imageManifest(ociImage, 2, 4<<20+1),
	"schema 1, signed":       schema1(true),
	"schema 1, unsigned":     schema1(false),
	"schema 1, called JSON":  {"application/json", schema1(true).body, schema1(true).digest},
	"schema 1, called image": {ociImage, schema1(false).body, schema1(false).digest},
	"a page":                 {"text/html", []byte("<html>sign in</html>"), digest.FromString("<html>sign in</html>")},
	"a page, called image":   {ociImage, []byte("<html>sign in</html>"), digest.FromString("<html>sign in</html>")},
}

// inEveryState are the kinds that differ in how they are answered while upstream is in trouble.
var inEveryState = map[string]bool{"OCI image": true, "called JSON": true, "too large": true, "schema 1, signed": true}

// serveManifest lets the upstream answer for library/old:1, by tag and digest, with m.
func serveManifest(m upstreamManifest, change func(*http.Request, *http.Response)) interceptor {
	return func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		ref, ok := strings.CutPrefix(req.URL.Path, "/v2/library/old/manifests/")
		resp, err := next.RoundTrip(req)
		if !ok || err != nil || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode >= 500 || resp.StatusCode == 429 || ref != "1" && ref != string(m.digest) {
			return resp, err
		}
		resp.Body.Close()
		resp = &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: req, Header: http.Header{
			"Content-Type": {m.mediaType}, "Docker-Content-Digest": {string(m.digest)}, "Docker-Distribution-Api-Version": {"registry/2.0"},
		}, ContentLength: int64(len(m.body)), Body: http.NoBody}
		if m.mediaType == "" {
			resp.Header.Del("Content-Type")
		}
		if change != nil {
			change(req, resp)
		}
		if req.Method == http.MethodGet {
			resp.Body = struct {
				*bytes.Reader
				nopCloser
			}{Reader: bytes.NewReader(m.body)}
		}
		return resp, nil
	}
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// agree compares what HEAD and GET have been answered.
func agree(t *testing.T, what string, head, get reply) {
	t.Helper()
	if head.err != nil || get.err != nil || head.status != get.status {
		t.Errorf("%s: HEAD is %d %v, GET is %d %v %.200q", what, head.status, head.err, get.status, get.err, get.body)
		return
	}
	names := []string{"Docker-Content-Digest", "Content-Type", "Etag", "Www-Authenticate", "Accept-Ranges"}
	if get.status == http.StatusOK {
		names = append(names, "Content-Length")
	}
	for _, name := range names {
		if h, g := head.header.Get(name), get.header.Get(name); h != g {
			t.Errorf("%s: %s of HEAD is %q, of GET %q", what, name, h, g)
		}
	}
	if h, g := head.header.Get("Retry-After"), get.header.Get("Retry-After"); (h == "") != (g == "") {
		t.Errorf("%s: Retry-After of HEAD is %q, of GET %q", what, h, g)
	}
	if len(head.body) != 0 {
		t.Errorf("%s: a body after HEAD", what)
	}
}

// upstreamStates are what an upstream can do, beside answering well.
var upstreamStates = map[string]struct {
	fault  hubtest.Fault
	change func(*http.Request, *http.Response)
}{
	"well":              {},
	"500":               {fault: hubtest.Status(500, "oops")},
	"unreachable":       {fault: hubtest.Reset()},
	"silent":            {fault: hubtest.Hang()},
	"429":               {fault: hubtest.TooManyRequests("Retry-After: 30")},
	"abuse limit":       {fault: hubtest.HAP429()},
	"HEAD lacks digest": {change: onHead(func(r *http.Response) { r.Header.Del("Docker-Content-Digest") })},
	"HEAD lacks length": {change: onHead(func(r *http.Response) { r.ContentLength = -1 })},
	"HEAD lacks type":   {change: onHead(func(r *http.Response) { r.Header.Del("Content-Type") })},
	"HEAD is 204":       {change: onHead(func(r *http.Response) { r.StatusCode = 204 })},
	"HEAD is 405": {change: onHead(func(r *http.Response) {
		r.StatusCode, r.ContentLength, r.Header = 405, 0, http.Header{"Content-Type": {"text/plain"}}
	})},
	"HEAD is 404 of nobody": {change: onHead(func(r *http.Response) {
		r.StatusCode, r.ContentLength, r.Header = 404, 0, http.Header{"Content-Type": {"text/plain"}}
	})},
}

func onHead(change func(*http.Response)) func(*http.Request, *http.Response) {
	return func(req *http.Request, resp *http.Response) {
		if req.Method == http.MethodHead {
			change(resp)
		}
	}
}

// TestHeadAndGetOfManifestsAgree: for every kind of manifest and every state of the upstream, a
// HEAD and a GET are answered alike, whichever comes first and whatever came before.
func TestHeadAndGetOfManifestsAgree(t *testing.T) {
	t.Parallel()
	for kind, m := range manifestKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for state, up := range upstreamStates {
				if state != "well" && !inEveryState[kind] ||
					kind == "too large" && up.fault != nil && state != "500" { // no body comes, so a small one is as good
					continue
				}
				for _, ref := range []string{"1", string(m.digest)} {
					for _, cached := range []bool{false, true} {
						what := fmt.Sprintf("%s, upstream %s, %.10s, cached %v", kind, state, ref, cached)
						var alone [2]reply
						for i, methods := range [][]string{{"HEAD", "GET", "HEAD"}, {"GET", "HEAD", "GET"}} {
							synctest.Test(t, func(t *testing.T) {
								got := askInTurn(t, m, up.fault, up.change, ref, cached, methods)
								alone[i] = got[0]
								for n := 1; n < len(got); n++ {
									head, get := got[n-1], got[n]
									if methods[n] == "HEAD" {
										head, get = get, head
									}
									agree(t, fmt.Sprintf("%s, request %d of %v", what, n+1, methods), head, get)
								}
							})
						}
						agree(t, what+", alone", alone[0], alone[1])
					}
				}
			}
		})
	}
}

// askInTurn asks a new registry for library/old by a reference, 100 ms apart.
func askInTurn(t *testing.T, m upstreamManifest, fault hubtest.Fault, change func(*http.Request, *http.Response), ref string, cached bool, methods []string) (got []reply) {
	first := change
	if cached {
		first = nil
	}
	l := newLab(t, labOptions{hub: hubtest.Options{AnonymousLimit: -1}, anonymous: true, intercept: serveManifest(m, first), policy: func(p *registry.Policy) { p.TagTTL = new(time.Duration) }})
	l.smallImage("library/old", "1")
	if cached {
		l.get("/v2/library/old/manifests/" + ref)
		l.waitIdle()
		time.Sleep(time.Minute)
		l.intercept(serveManifest(m, change))
	}
	if fault != nil {
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, fault)
		defer l.hub.ClearFaults()
	}
	for _, method := range methods {
		got = append(got, l.do(method, "/v2/library/old/manifests/"+ref))
		time.Sleep(100 * time.Millisecond)
	}
	return got
}

// TestSchema1IsRefusedOnce: a manifest of schema 1, signed or not, is not found, by HEAD and by
// GET, at the price of one HEAD. It is no corruption, and what its tag named before isn't
// served any more, not even while upstream is down.
func TestSchema1IsRefusedOnce(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{true, false} {
		for _, keepGone := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				m := schema1(signed)
				l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) { p.TagTTL, p.KeepGone = new(time.Duration), keepGone }})
				l.pull(l.smallImage("library/old", "1"))
				l.waitIdle()
				l.intercept(serveManifest(m, nil))
				const path = "/v2/library/old/manifests/1"
				for range 3 {
					l.hub.ResetLedger()
					for _, method := range []string{"HEAD", "GET", "HEAD", "GET"} {
						r := l.do(method, path)
						if r.status != 404 || method == "GET" && !(strings.Contains(string(r.body), "MANIFEST_UNKNOWN") && strings.Contains(string(r.body), "schema 1")) {
							t.Errorf("signed %v: %s is %d %s", signed, method, r.status, r.body)
						}
					}
					if ledger := l.hub.Ledger(); ledger.ManifestHEADs() != 1 || ledger.ManifestGETs() != 0 {
						t.Errorf("signed %v: upstream was asked\n%s", signed, ledger)
					}
					time.Sleep(time.Minute)
				}
				l.hub.ResetLedger()
				for range 2 {
					if r := l.get("/v2/library/old/manifests/" + string(m.digest)); r.status != 404 {
						t.Errorf("signed %v: by digest: %d", signed, r.status)
					}
				}
				if n := l.hub.Ledger().ManifestGETs(); n > 1 {
					t.Errorf("signed %v: %d GETs by digest", signed, n)
				}
				if n := l.reg.Stats().DigestMismatches; n != 0 {
					t.Errorf("signed %v: %d mismatches are counted", signed, n)
				}
				l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.Status(500, "oops"))
				defer l.hub.ClearFaults()
				time.Sleep(time.Minute)
				if r := l.get(path); r.status != 502 {
					t.Errorf("signed %v: with upstream down: %d %s", signed, r.status, r.header.Get("X-Hubcache"))
				}
			})
		}
	}
}

// TestHeadOfAnEvictedManifestIsThatOfItsGet: inside the TTL of a tag whose manifest was evicted,
// HEAD answers for the manifest that GET fetches, and not for what the tag names meanwhile.
func TestHeadOfAnEvictedManifestIsThatOfItsGet(t *testing.T) {
	t.Parallel()
	for _, moved := range []bool{true, false} {
		var alone [2]reply
		for i, method := range []string{"HEAD", "GET"} {
			synctest.Test(t, func(t *testing.T) {
				ttl := time.Hour
				l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) { p.TagTTL = &ttl }})
				img := l.smallImage("library/redis", "7")
				l.pull(img)
				l.waitIdle()
				l.store.Remove(img.Digest)
				if moved {
					l.hub.Tag("library/redis", "7", l.smallImage("library/redis", "8").Digest)
				} else {
					l.hub.Untag("library/redis", "7")
				}
				l.stop() // without what is in memory
				l.start()
				alone[i] = l.do(method, "/v2/library/redis/manifests/7")
				if alone[i].status != 200 || alone[i].header.Get("Docker-Content-Digest") != string(img.Digest) {
					t.Errorf("moved %v: %s is %d %s", moved, method, alone[i].status, alone[i].header.Get("Docker-Content-Digest"))
				}
			})
		}
		agree(t, fmt.Sprintf("moved %v", moved), alone[0], alone[1])
	}
}

// TestHeadAndGetOfBlobsAgree: for blobs of all kinds and every state, a HEAD and a GET are
// answered alike, whichever comes first.
func TestHeadAndGetOfBlobsAgree(t *testing.T) {
	t.Parallel()
	const budget = 4 * mib
	sizes := map[string]int64{"empty": 0, "small": 1000, "of several ranges": 3 * mib, "larger than the budget": budget + mib}
	onBlobHead := func(change func(*http.Response)) interceptor {
		return func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && req.Method == http.MethodHead && strings.Contains(req.URL.Path, "/blobs/") && resp.StatusCode < 400 {
				change(resp)
			}
			return resp, err
		}
	}
	for state, up := range map[string]struct {
		hub       hubtest.Options
		fault     hubtest.Fault
		intercept interceptor
	}{
		"well":              {},
		"HEAD with 200":     {hub: hubtest.Options{HeadBlobOK: true}},
		"without redirects": {hub: hubtest.Options{InlineBlobs: 1 << 30}},
		"HEAD is 405": {intercept: onBlobHead(func(r *http.Response) {
			r.StatusCode, r.ContentLength, r.Header = 405, 0, http.Header{"Content-Type": {"text/plain"}}
		})},
		"500":         {fault: hubtest.Status(500, "oops")},
		"unreachable": {fault: hubtest.Reset()},
		"429":         {fault: hubtest.TooManyRequests("Retry-After: 30")},
		"abuse limit": {fault: hubtest.HAP429()},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			for size := range sizes {
				for _, asked := range []string{"named", "unknown manifest", "cached", "another repository", "not there"} {
					what := fmt.Sprintf("upstream %s, %s, %s", state, size, asked)
					var alone [2]reply
					for i, methods := range [][]string{{"HEAD", "GET", "HEAD"}, {"GET", "HEAD", "GET"}} {
						synctest.Test(t, func(t *testing.T) {
							hub := up.hub
							hub.AnonymousLimit = -1
							l := newLab(t, labOptions{hub: hub, anonymous: true, budget: budget, intercept: up.intercept})
							d := l.addImage("library/app", "1", sizes[size])[0]
							l.smallImage("library/other", "1")
							path := blobPath("library/app", d)
							switch asked {
							case "named":
								l.get("/v2/library/app/manifests/1")
							case "cached":
								l.get("/v2/library/app/manifests/1")
								l.get(path)
								l.waitIdle()
							case "another repository":
								l.get("/v2/library/app/manifests/1")
								l.get("/v2/library/other/manifests/1")
								path = blobPath("library/other", d)
							case "not there":
								path = blobPath("library/app", digest.FromString("nobody has this"))
							}
							if up.fault != nil {
								l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, up.fault)
								defer l.hub.ClearFaults()
							}
							var got []reply
							for n, method := range methods {
								got = append(got, l.do(method, path))
								time.Sleep(100 * time.Millisecond)
								if n == 0 {
									continue
								}
								head, get := got[n-1], got[n]
								if method == "HEAD" {
									head, get = get, head
								}
								agree(t, fmt.Sprintf("%s, request %d of %v", what, n+1, methods), head, get)
							}
							alone[i] = got[0]
							l.waitIdle()
						})
					}
					agree(t, what+", alone", alone[0], alone[1])
				}
			}
		})
	}
}
