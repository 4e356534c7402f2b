package hubtest_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestImagesHaveTheShapeAskedFor checks all kinds of images, and that every descriptor in them has
// the digest and size of its bytes.
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

// TestAttestationsAreMarked checks the fields by which Docker recognizes an attestation.
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

// TestImagesAreReproducible checks that a digest is the same on every run, and that images share
// the layers that have the same seed and no others.
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
		t.Error("layers with the same seed differ, or layers without one are the same")
	}
	// If this digest changes, all digests that people have recorded change too.
	if want := "sha256:8a98cbc22dc9"; hubtest.Short(first[0].Digest.String()) != want {
		t.Errorf("layer %s, want %s", first[0].Digest, want)
	}
}
