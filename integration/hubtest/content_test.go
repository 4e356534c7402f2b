package hubtest_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

func TestTagsCanBeMovedAndDeleted(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		one := hub.AddImage("a/b", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 10)})
		two := hub.AddImage("a/b", "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 10)})
		odd := []byte(" {\n\t\"odd\" :1}\r\n")
		hub.AddManifest("a/b", "odd", "application/vnd.example+json", odd)
		c := newClient(t, hub.RegistryURL(), rt)
		c.login("a/b")
		digestOf := func(reference string) string {
			return c.get("HEAD", "a/b", "manifests/"+reference).Header.Get("Docker-Content-Digest")
		}
		if a := c.get("GET", "a/b", "manifests/odd"); !bytes.Equal(a.body, odd) || a.Header.Get("Content-Type") != "application/vnd.example+json" {
			t.Errorf("%q %v", a.body, a.Header)
		}
		hub.Tag("a/b", "1", two.Digest)
		if digestOf("1") != two.Digest.String() || digestOf(one.Digest.String()) != one.Digest.String() {
			t.Error("the tag did not move")
		}
		page := c.get("GET", "a/b", "tags/list?n=2")
		if string(page.body) != `{"name":"a/b","tags":["1","2"]}` || page.Header.Get("Link") != `</v2/a/b/tags/list?last=2&n=2>; rel="next"` {
			t.Errorf("%s %v", page.body, page.Header)
		}
		if page = c.get("GET", "a/b", "tags/list?n=2&last=2"); string(page.body) != `{"name":"a/b","tags":["odd"]}` || page.Header.Get("Link") != "" {
			t.Errorf("%s %v", page.body, page.Header)
		}
		hub.Untag("a/b", "1")
		hub.Untag("a/b", two.Digest.String())
		for _, reference := range []string{"1", "2", two.Digest.String()} {
			if a := c.get("GET", "a/b", "manifests/"+reference); a.StatusCode != 404 || !strings.Contains(string(a.body), "MANIFEST_UNKNOWN") {
				t.Errorf("%s: %d", reference, a.StatusCode)
			}
		}
	})
}

func TestReferrersAreListed(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		img := hub.AddImage("a/b", "1", hubtest.ImageSpec{})
		doc, _ := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "artifactType": "application/x", "subject": img.Descriptor,
		})
		d := hub.AddManifest("a/b", "", ocispec.MediaTypeImageManifest, doc)
		c := newClient(t, hub.RegistryURL(), rt)
		c.login("a/b")
		var index ocispec.Index
		a := c.get("GET", "a/b", "referrers/"+img.Digest.String())
		if err := json.Unmarshal(a.body, &index); err != nil || len(index.Manifests) != 1 ||
			index.Manifests[0].Digest != d.Digest || index.Manifests[0].ArtifactType != "application/x" {
			t.Errorf("%v: %s", err, a.body)
		}
		if a = c.get("GET", "a/b", "referrers/"+d.Digest.String()); a.StatusCode != 200 || !strings.Contains(string(a.body), `"manifests":[]`) {
			t.Errorf("none: %d %s", a.StatusCode, a.body)
		}
		if a = c.get("GET", "a/b", "referrers/sha256:zz"); a.StatusCode != 400 {
			t.Errorf("malformed digest: %d", a.StatusCode)
		}
		hub.Set(func(o *hubtest.Options) { o.NoReferrers = true })
		if a = c.get("GET", "a/b", "referrers/"+img.Digest.String()); a.StatusCode != 404 {
			t.Errorf("switched off: %d", a.StatusCode)
		}
	})
}

// TestGzipOnlyWhenAllowedAndAccepted checks that a manifest is compressed only if the option is
// set and the client accepts gzip.
func TestGzipOnlyWhenAllowedAndAccepted(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		img := hub.AddImage("a/b", "1", hubtest.ImageSpec{})
		c := newClient(t, hub.RegistryURL(), rt)
		c.login("a/b")
		for _, allowed := range []bool{false, true} {
			hub.Set(func(o *hubtest.Options) { o.Gzip = allowed })
			for _, accept := range []string{"identity", "gzip"} {
				a := c.get("GET", "a/b", "manifests/1", "Accept-Encoding: "+accept)
				plain := bytes.Equal(a.body, img.Bytes) && a.Header.Get("Content-Encoding") == ""
				if plain == (allowed && accept == "gzip") {
					t.Errorf("allowed %v, accepting %s: %v", allowed, accept, a.Header)
				}
			}
		}
	})
}
