//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestExportsAreLoadedAndImported: what one cache exports, docker load and skopeo read, and another
// cache serves to dockerd while no upstream can be reached. The import is run by root, and all that
// it makes belongs to the owner of the data directory.
func TestExportsAreLoadedAndImported(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	img := hub.AddImage("library/carried", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 200<<10), Platforms: []string{"linux/amd64", "linux/arm64"}})
	s := startServer(t, serverOptions{Hub: hub})
	if err := pullImage(t.Context(), s.URL, img, "1"); err != nil {
		t.Fatal(err)
	}
	signature := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/x-signature","config":{"mediaType":%q,"digest":%q,"size":2},"layers":[],"subject":{"mediaType":%[1]q,"digest":%[4]q,"size":%[5]d}}`,
		v1.MediaTypeImageManifest, v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Digest, img.Manifests[0].Digest, len(img.Manifests[0].Bytes))
	signed := "/v2/library/carried/referrers/" + string(img.Manifests[0].Digest)
	hub.AddManifest("library/carried", "", v1.MediaTypeImageManifest, signature)
	hub.AddBlob("library/carried", v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data)
	for _, path := range []string{"/v2/library/carried/manifests/" + string(digest.FromBytes(signature)), "/v2/library/carried/blobs/" + string(v1.DescriptorEmptyJSON.Digest), signed} {
		get(t, s.URL+path)
	}
	dir := t.TempDir()
	tar := filepath.Join(dir, "images.tar")
	s.Command("export", "carried:1", "-o", tar)
	hub.Close()
	s.Stop()

	runCommand(t, exec.Command("skopeo", "inspect", "--override-arch", "arm64", "oci-archive:"+tar+":1")) // with the tag, since index.json has the signature too
	for _, newest := range []bool{false, true} {
		d := dockertest.Start(t, dockertest.Options{Docker29: newest})
		d.Docker("load", "-i", tar)
		if out := d.Docker("image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", "carried:1"); strings.TrimSpace(out) != "linux/amd64" {
			t.Errorf("docker load made %s", out)
		}
	}
	short, err := os.MkdirTemp("", "podman") // podman takes no long paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	podman := exec.Command("podman", "--root", filepath.Join(short, "root"), "--runroot", filepath.Join(short, "run"), "--tmpdir", filepath.Join(short, "tmp"), "--storage-driver", "vfs", "load", "-i", tar)
	if out := runCommand(t, podman); !strings.Contains(out, "carried:1") {
		t.Errorf("podman load: %s", out)
	}

	const owner = 4321 // nobody on this machine
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(data, owner, owner); err != nil {
		t.Fatal(err)
	}
	bring := exec.Command(hubcacheProgram(t), "import", "--public", tar)
	bring.Env = append(os.Environ(), "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_DATA_DIR="+data)
	runCommand(t, bring)
	err = filepath.Walk(data, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Sys().(*syscall.Stat_t).Uid != owner {
			t.Errorf("%s belongs to %d", path, fi.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	other := startServer(t, serverOptions{Upstream: "http://" + freeAddr(t, "127.0.0.1"), Data: data})
	if err := pullImage(t.Context(), other.URL, img, "1"); err != nil {
		t.Errorf("what was imported isn't served: %v", err)
	}
	if err := pullImage(t.Context(), other.URL, img, img.Digest.String()); err != nil {
		t.Errorf("by digest: %v", err)
	}
	if body := string(get(t, other.URL+signed).Body); !strings.Contains(body, digest.FromBytes(signature).String()) {
		t.Errorf("what refers to it: %s", body)
	}
	again := exec.Command(hubcacheProgram(t), "import", tar)
	again.Env = bring.Env
	out, err := again.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "systemctl stop hubcache") {
		t.Errorf("an import beside a running server: %v, %s", err, out)
	}
}

// TestKilledImportGoesOn: an import that is killed leaves no wrong byte, and is begun again by the same
// command, until all is there.
func TestKilledImportGoesOn(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	img := hub.AddImage("library/carried", "1", hubtest.ImageSpec{Layers: hubtest.Layers(12, 6<<20)})
	s := startServer(t, serverOptions{Hub: hub})
	if err := pullImage(t.Context(), s.URL, img, "1"); err != nil {
		t.Fatal(err)
	}
	tar, data := filepath.Join(t.TempDir(), "images.tar"), filepath.Join(t.TempDir(), "data")
	s.Command("export", "carried:1", "-o", tar)
	hub.Close()
	s.Stop()
	bring := func() *exec.Cmd {
		c := exec.Command(hubcacheProgram(t), "import", "--public", tar)
		c.Env = append(os.Environ(), "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_DATA_DIR="+data)
		return c
	}
	killed := 0
	for round := range 8 {
		c := bring()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for range 600 { // until it has so many blobs
			if blobs, _ := filepath.Glob(filepath.Join(data, "blobs", "*", "*", "*")); len(blobs) > round {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		_ = c.Process.Kill() // it may have ended
		if c.Wait() != nil {
			killed++
		}
		checkBlobsIntact(t, data)
	}
	if killed == 0 {
		t.Error("every import ended before it was killed")
	}
	runCommand(t, bring())
	other := startServer(t, serverOptions{Upstream: "http://" + freeAddr(t, "127.0.0.1"), Data: data})
	if err := pullImage(t.Context(), other.URL, img, "1"); err != nil {
		t.Errorf("what was imported isn't served: %v", err)
	}
	checkAccounted(t, other)
}
