package hubtest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestImagesHaveTheShapeAskedFor checks what kinds of images there are, and that every descriptor in them
// leads to the bytes it promises.
func TestImagesHaveTheShapeAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := hubtest.New(hubtest.Options{AnonymousLimit: hubtest.Unlimited})
		defer hub.Close()
		c := newClient(t, hub.RegistryURL(), hub.Transport())
		two := []string{"linux/amd64", "linux/arm64/v8"}
		for name, row := range map[string]struct {
			spec           hubtest.ImageSpec
			top, child     string
			manifests, all int // manifests, and blobs of all of them
		}{
			"oci":          {hubtest.ImageSpec{}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageManifest, 1, 3},
			"docker":       {hubtest.ImageSpec{Docker: true}, hubtest.DockerManifest, hubtest.DockerManifest, 1, 3},
			"index of one": {hubtest.ImageSpec{Index: true}, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, 1, 3},
			"list":         {hubtest.ImageSpec{Docker: true, Platforms: two}, hubtest.DockerList, hubtest.DockerManifest, 2, 6},
			"attested":     {hubtest.ImageSpec{Platforms: two, Attestations: true}, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, 4, 10},
			"sha512":       {hubtest.ImageSpec{Algorithm: digest.SHA512, Index: true}, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, 1, 3},
		} {
			repository := "library/" + strings.ReplaceAll(name, " ", "-")
			row.spec.Layers = hubtest.Layers(2, 5000)
			img := hub.AddImage(repository, "1", row.spec)
			c.login(repository)
			top := c.get("GET", repository, "manifests/1")
			if got := top.Header.Get("Content-Type"); got != row.top || img.MediaType != row.top || !bytes.Equal(top.body, img.Bytes) {
				t.Errorf("%s: %s, %s", name, got, top.body)
			}
			if len(img.Manifests) != row.manifests || len(img.Blobs()) != row.all {
				t.Errorf("%s: %d manifests, %d blobs", name, len(img.Manifests), len(img.Blobs()))
			}
			for _, m := range img.Manifests {
				a := c.get("GET", repository, "manifests/"+m.Digest.String())
				if a.Header.Get("Content-Type") != row.child || m.Digest.Algorithm().FromBytes(a.body) != m.Digest {
					t.Errorf("%s: child %d %v", name, a.StatusCode, a.Header)
				}
			}
			for _, b := range img.Blobs() {
				a := c.get("GET", repository, "blobs/"+b.Digest.String())
				if int64(len(a.body)) != b.Size || b.Digest.Algorithm().FromBytes(a.body) != b.Digest {
					t.Errorf("%s: blob %d, %d bytes of %d", name, a.StatusCode, len(a.body), b.Size)
				}
			}
		}
	})
}

// TestAttestationsAreMarked checks the marks by which Docker tells an attestation from a platform.
func TestAttestationsAreMarked(t *testing.T) {
	img := hubtest.New(hubtest.Options{}).AddImage("a/b", "1", hubtest.ImageSpec{Attestations: true})
	var index ocispec.Index
	if err := json.Unmarshal(img.Bytes, &index); err != nil || len(index.Manifests) != 2 {
		t.Fatalf("%v: %s", err, img.Bytes)
	}
	image, attestation := index.Manifests[0], index.Manifests[1]
	if attestation.Platform.OS != "unknown" || attestation.Platform.Architecture != "unknown" ||
		attestation.Annotations["vnd.docker.reference.type"] != "attestation-manifest" ||
		attestation.Annotations["vnd.docker.reference.digest"] != image.Digest.String() {
		t.Errorf("%+v", attestation)
	}
}

// TestLayersCanBeUnpacked reads synthetic and real layers as a container engine does, and
// compares them with the config's diff IDs.
func TestLayersCanBeUnpacked(t *testing.T) {
	busybox, err := hubtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	hub := hubtest.New(hubtest.Options{})
	img := hub.AddImage("a/b", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{
		busybox, {Tar: hubtest.Tar(map[string]string{"etc/motd": "hello\n"})}, {Size: 4096}, {Size: 1_000_001},
	}})
	m := img.Manifests[0]
	var config ocispec.Image
	if err := json.NewDecoder(hub.Blob(m.Config.Digest)).Decode(&config); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, l := range m.Layers {
		var r io.Reader = hub.Blob(l.Digest)
		if strings.HasSuffix(l.MediaType, "+gzip") {
			if r, err = gzip.NewReader(r); err != nil {
				t.Fatal(err)
			}
		}
		content, err := io.ReadAll(r)
		if err != nil || digest.FromBytes(content) != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff ID, %v", i, err)
		}
		tr := tar.NewReader(bytes.NewReader(content))
		for header, err := tr.Next(); err != io.EOF; header, err = tr.Next() {
			if err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			names = append(names, header.Name)
		}
	}
	for _, want := range []string{"bin/busybox", "bin/sh", "etc/motd"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %q", want, names)
		}
	}
	if !strings.HasPrefix(names[len(names)-1], "fakehub/") {
		t.Errorf("synthetic layer: %q", names)
	}
}

// TestImagesAreReproducible checks that a digest is the same on every run, that images don't
// share layers by chance, and that they do on purpose.
func TestImagesAreReproducible(t *testing.T) {
	hub := hubtest.New(hubtest.Options{})
	make := func(hub *hubtest.Hub, tag string) *hubtest.Image {
		return hub.AddImage("a/b", tag, hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 5000, Seed: 7}, {Size: 5000}}})
	}
	one, two, again := make(hub, "1"), make(hub, "2"), make(hubtest.New(hubtest.Options{}), "1")
	if one.Digest != again.Digest || one.Digest == two.Digest {
		t.Errorf("%s, %s, %s", one.Digest, again.Digest, two.Digest)
	}
	first, second := one.Manifests[0].Layers, two.Manifests[0].Layers
	if first[0].Digest != second[0].Digest || first[1].Digest == second[1].Digest {
		t.Error("layers shared by chance, or not shared on purpose")
	}
	// Recorded once: a change here changes every digest that somebody has written down.
	if want := "sha256:8a98cbc22dc9"; hubtest.Short(first[0].Digest.String()) != want {
		t.Errorf("layer %s, want %s", first[0].Digest, want)
	}
}

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

// FuzzLayerReadAt reads a layer in two pieces and compares with the whole.
func FuzzLayerReadAt(f *testing.F) {
	f.Add(uint64(1), uint16(5000), uint16(511), uint16(700))
	f.Add(uint64(2), uint16(4096), uint16(0), uint16(4096))
	f.Add(uint64(3), uint16(10), uint16(3), uint16(4))
	f.Fuzz(func(t *testing.T, seed uint64, size, off, n uint16) {
		layer := hubtest.NewLayer(seed, int64(size))
		whole := make([]byte, size)
		if _, err := layer.ReadAt(whole, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if size >= 4096 {
			n := 0
			for tr := tar.NewReader(bytes.NewReader(whole)); ; n++ {
				if _, err := tr.Next(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if n != 1 {
				t.Fatalf("%d files", n)
			}
		}
		part := make([]byte, n)
		got, _ := layer.ReadAt(part, int64(off))
		want := whole[min(off, size):min(int(off)+int(n), int(size))]
		if !bytes.Equal(part[:got], want) {
			t.Fatalf("%d bytes at %d of %d differ", n, off, size)
		}
	})
}

// TestGzipOnlyWhenAllowedAndAccepted checks that a manifest is compressed only when allowed and asked for.
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
