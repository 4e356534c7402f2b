//go:build integration

package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestSkopeoCopiesFromHubOnce copies whole images with skopeo, which has hubcache as a mirror in
// registries.conf, and compares the copies with what the Hub has.
func TestSkopeoCopiesFromHubOnce(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	s := startServer(t, serverOptions{Hub: hub})
	c := newContainersClient(t, s)
	skopeo := program(t, "skopeo", "skopeo")
	for _, kind := range imageKinds {
		img := runnableImage(t, hub, "library/app", kind.name, 2, 1<<20, kind.spec)
		for by, name := range map[string]string{"tag": "docker.io/library/app:" + kind.name, "digest": "docker.io/library/app@" + img.Digest.String()} {
			t.Run(kind.name+"/"+by, func(t *testing.T) {
				s.Empty()
				dir := filepath.Join(c.dir, "copy")
				checkPullsOnce(t, hub, s, img,
					func(t *testing.T) {
						c.run(t, skopeo, "--insecure-policy", "--registries-conf", c.registries, "copy", "--all", "--preserve-digests", "docker://"+name, "dir:"+dir)
					},
					func(t *testing.T) {
						checkCopy(t, dir, img)
						if err := os.RemoveAll(dir); err != nil {
							t.Fatal(err)
						}
					})
			})
		}
	}
}

// checkCopy compares a copy in skopeo's dir: format with what the Hub has.
func checkCopy(t *testing.T, dir string, img *hubtest.Image) {
	t.Helper()
	check := func(name string, want digest.Digest) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(b) != want {
			t.Errorf("%s differs from upstream's", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "manifest.json")); err != nil || !bytes.Equal(b, img.Bytes) {
		t.Errorf("manifest.json differs from upstream's: %v", err)
	}
	if img.IsIndex {
		for _, m := range img.Manifests {
			check(m.Digest.Encoded()+".manifest.json", m.Digest)
		}
	}
	for _, b := range img.Blobs() {
		check(b.Digest.Encoded(), b.Digest)
	}
}
