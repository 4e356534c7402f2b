//go:build integration

package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// lazyLayer is what lazyclient says of the layer that it makes.
type lazyLayer struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	DiffID digest.Digest `json:"diff_id"`
	TOC    digest.Digest `json:"toc"`
	Last   string        `json:"last"` // SHA-256 of its last file, in hex
}

// TestLazyMountReadsTheLastFileFirst: containerd with the stargz-snapshotter mounts an image of one
// cold eStargz layer of 48 MiB through hubcache, and reads its last file before a fifth of the layer
// has come. The layer is completed, and the upstream has sent each byte once.
func TestLazyMountReadsTheLastFileFirst(t *testing.T) {
	lazy := lazyClient(t)
	hub := startHub(t, hubtest.Options{Bandwidth: 1 << 20, Latency: 30 * time.Millisecond})
	s := startServer(t, serverOptions{Hub: hub})
	layer := addLazyImage(t, hub, lazy, "library/lazy", "1")

	dir, err := os.MkdirTemp("", "hubcache") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	socket, mounted := filepath.Join(dir, "stargz"), filepath.Join(dir, "mnt")
	startSnapshotter(t, lazy, dir, socket, s.Addr)
	c := startContainerdWith(t, containerd{dir: dockertest.Docker29(t), env: append(os.Environ(), deadProxy(s)...),
		config: fmt.Sprintf("[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = %q\n", socket)})
	if err := os.Mkdir(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	runCommand(t, exec.Command(lazy, "mount", c.socket, s.Addr, "docker.io/library/lazy:1", mounted))
	t.Cleanup(func() { _ = syscall.Unmount(mounted, syscall.MNT_DETACH) })
	last, err := os.ReadFile(filepath.Join(mounted, "file47"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(last)); got != layer.Last {
		t.Errorf("the last file has the digest %s, want %s", got, layer.Last)
	}
	n := hub.Ledger().BlobBytes()
	if n > layer.Size/5 {
		t.Errorf("%d of %d bytes had come", n, layer.Size)
	}
	t.Logf("mounted and read after %s, when %d of %d bytes had come", time.Since(began), n, layer.Size)
	hub.Set(func(o *hubtest.Options) { o.Bandwidth = 0 })
	waitIdle(t, s)
	sent := int64(0)
	for _, e := range hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Reference == string(layer.Digest) && e.Face == hubtest.CDN }) {
		sent += e.BodyBytes
	}
	if sent != layer.Size {
		t.Errorf("the upstream has sent %d bytes of %d", sent, layer.Size)
	}
}

// lazyClient returns the program that integration/install-tools builds of lazyclient, a module of its
// own.
func lazyClient(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join("lazyclient", name))
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(b)
	}
	path := filepath.Join(cache, "hubcache-test", fmt.Sprintf("lazyclient-%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the lazy puller is missing; integration/install-tools builds it: %v", err)
	}
	return path
}

// addLazyImage adds an image with one eStargz layer.
func addLazyImage(t testing.TB, hub *hubtest.Hub, lazy, repository, tag string) (l lazyLayer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer")
	if err := json.Unmarshal([]byte(runCommand(t, exec.Command(lazy, "layer", path))), &l); err != nil {
		t.Fatal(err)
	}
	blob, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.DiffID}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = hub.AddBlob(repository, ocispec.MediaTypeImageConfig, config)
	layer := hub.AddBlob(repository, ocispec.MediaTypeImageLayerGzip, blob)
	layer.Annotations = map[string]string{"containerd.io/snapshot/stargz/toc.digest": string(l.TOC)}
	m.Layers = append(m.Layers, layer)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	hub.AddManifest(repository, tag, m.MediaType, b)
	return l
}

// startSnapshotter starts the stargz-snapshotter, and removes its folder when the test ends.
func startSnapshotter(t testing.TB, lazy, dir, socket, mirror string) {
	t.Helper()
	cmd := exec.Command(lazy, "serve", filepath.Join(dir, "root"), socket, mirror)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the end of the snapshotter's log:\n%s", lastLines(log.String(), 30))
		}
		mounts, _ := filepath.Glob(filepath.Join(dir, "root", "snapshotter", "snapshots", "*", "fs"))
		for _, m := range mounts {
			_ = syscall.Unmount(m, syscall.MNT_DETACH) // most aren't mounted
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the snapshotter doesn't listen")
		}
	}
}
