//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// pruneHost is a Docker host with a small disk: a daemon whose data root is an ext4 of its own,
// a registry to pull from, and hubcache's docker commands.
type pruneHost struct {
	t        *testing.T
	daemon   *dockertest.Daemon
	registry *tinyRegistry
	config   string
	disk     string
}

// pruneDisk is the size of the disk, and pruneImage that of each image.
const (
	pruneDisk  = 560 << 20 // a swarm manager alone needs a quarter of it
	pruneImage = 24 << 20
)

func newPruneHost(t *testing.T) *pruneHost {
	t.Helper()
	network := dockertest.NewNetwork(t)
	registry := newTinyRegistry(t, network.Addr.String())
	h := newPruneHostOf(t, dockertest.Options{Network: network, Config: map[string]any{"insecure-registries": []string{registry.addr}}})
	h.registry = registry
	return h
}

// newPruneHostOf is newPruneHost with any daemon, and without a registry.
func newPruneHostOf(t *testing.T, opts dockertest.Options) *pruneHost {
	t.Helper()
	dir := t.TempDir()
	h := &pruneHost{t: t, disk: filepath.Join(dir, "disk"), config: filepath.Join(dir, "config.yaml")}
	file := filepath.Join(dir, "ext4")
	if err := errors.Join(os.Mkdir(h.disk, 0o755), os.WriteFile(file, nil, 0o600), os.Truncate(file, pruneDisk)); err != nil {
		t.Fatal(err)
	}
	runCommand(t, exec.Command(program(t, "mkfs.ext4", "e2fsprogs"), "-q", "-m", "0", file))
	runCommand(t, exec.Command(program(t, "mount", "mount"), "-o", "loop", file, h.disk))
	t.Cleanup(func() { runCommand(t, exec.Command(program(t, "umount", "mount"), h.disk)) })
	opts.DataRoot = filepath.Join(h.disk, "docker")
	h.daemon = dockertest.Start(t, opts)
	config := fmt.Sprintf("docker: {host: %q, hold_dir: %q, state: %q}\n", h.daemon.Host(), filepath.Join(dir, "hold"), filepath.Join(dir, "state", "uses.db"))
	if err := os.WriteFile(h.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return h
}

// hubcache returns one of hubcache's docker commands, which is not started yet.
func (h *pruneHost) hubcache(args ...string) *exec.Cmd {
	h.t.Helper()
	return exec.Command(hubcacheProgram(h.t), append([]string{"--config", h.config, "docker"}, args...)...)
}

// pruneReport is the part of the report (schema 1) that the tests use.
type pruneReport struct {
	Schema   int    `json:"schema"`
	Decision string `json:"decision"`
	Reason   string `json:"reason"`
	Watched  bool   `json:"watched"`
	// What the images free by their sizes, and what the disk got.
	Predicted int64         `json:"predicted_bytes"`
	Freed     int64         `json:"freed_bytes"`
	Images    []reportImage `json:"images"`
}

type reportImage struct {
	ID         string   `json:"id"`
	Frees      int64    `json:"frees_bytes"`
	References []string `json:"references"`
	Action     string   `json:"action"`
	Rule       string   `json:"rule"`
}

// rule returns the rule that decided about the image.
func (r pruneReport) rule(ref string) string {
	for _, img := range r.Images {
		if slices.Contains(img.References, ref) {
			return img.Rule
		}
	}
	return "not listed"
}

// deleted returns the first reference of each image to delete, in order.
func (r pruneReport) deleted() (refs []string) {
	for _, img := range r.Images {
		if img.Action == "delete" {
			refs = append(refs, img.References[0])
		}
	}
	return refs
}

// prune runs "docker prune", and fails the test unless it has this exit code and decision.
func (h *pruneHost) prune(code int, decision string, args ...string) pruneReport {
	h.t.Helper()
	cmd := h.hubcache(append([]string{"prune", "--json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	var r pruneReport
	if err := json.Unmarshal(out, &r); err != nil {
		h.t.Fatalf("docker prune: %v\n%s%s", err, out, stderr.Bytes())
	}
	if got := cmd.ProcessState.ExitCode(); got != code || r.Decision != decision || r.Schema != 1 {
		h.t.Fatalf("docker prune %v: exit code %d, %s (%s); want %d, %s\n%s%s", args, got, r.Decision, r.Reason, code, decision, out, stderr.Bytes())
	}
	return r
}

// full returns how full the disk is, in percent, as df computes it.
func (h *pruneHost) full() float64 {
	h.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(h.disk, &st); err != nil {
		h.t.Fatal(err)
	}
	used := st.Blocks - st.Bfree
	return 100 * float64(used) / float64(used+st.Bavail)
}

// has reports whether the daemon has the image.
func (h *pruneHost) has(ref string) bool {
	_, err := h.daemon.TryDocker("image", "inspect", ref)
	return err == nil
}

// images lists all images of the daemon.
func (h *pruneHost) images() string {
	lines := strings.Split(h.daemon.Docker("image", "ls", "--all", "--no-trunc", "--digests", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// watch runs "docker watch" until the test ends.
func (h *pruneHost) watch() {
	h.t.Helper()
	cmd := h.hubcache("watch")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			h.t.Errorf("docker watch: %v\n%s", err, stderr.Bytes())
		}
	})
}

// service waits until the service runs this image.
func (h *pruneHost) service(name, ref string) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		state := h.daemon.Docker("service", "ps", name, "--no-trunc", "--filter", "desired-state=running", "--format", "{{.Image}} {{.CurrentState}}")
		update := h.daemon.Docker("service", "inspect", name, "--format", "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}")
		if strings.HasPrefix(state, ref+" Running") && (update == "" || strings.HasSuffix(update, "completed")) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("service %s does not run %s: %s %s", name, ref, state, update)
		}
	}
}

// tinyRegistry serves images of one layer, by digest and by tag.
type tinyRegistry struct {
	addr   string
	server *http.Server

	mu        sync.Mutex
	manifests map[string][]byte // by digest, and by repository:tag
	blobs     map[string][]byte
}

func newTinyRegistry(t *testing.T, host string) *tinyRegistry {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &tinyRegistry{addr: listener.Addr().String(), manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	r.server = &http.Server{Handler: r}
	go func() { _ = r.server.Serve(listener) }()
	t.Cleanup(r.close)
	return r
}

func (r *tinyRegistry) close() { _ = r.server.Close() }

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// add makes an image of a shell and random bytes, which sleeps when it is run. It returns the
// image's reference by digest.
func (r *tinyRegistry) add(t *testing.T, repository string, created time.Time) string {
	t.Helper()
	shell, err := os.ReadFile(program(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, pruneImage-len(shell))
	_, _ = rand.Read(content) // it never fails
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, body := range map[string][]byte{"bin/busybox": shell, "content": content} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(body)), Typeflag: tar.TypeReg}))
		_, werr := w.Write(body)
		err = errors.Join(err, werr)
	}
	for _, name := range []string{"sh", "sleep", "true"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	config := encode(t, map[string]any{
		"created": created, "architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"/bin/sleep", "1000"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer.Bytes())}},
	})
	describe := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": kind, "digest": digestOf(b), "size": len(b)}
	}
	manifest := encode(t, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest,
		"config": describe(ociConfig, config), "layers": []any{describe(ociLayer, layer.Bytes())},
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[digestOf(manifest)] = manifest
	r.blobs[digestOf(config)], r.blobs[digestOf(layer.Bytes())] = config, layer.Bytes()
	return r.addr + "/" + repository + "@" + digestOf(manifest)
}

// tag gives the image a tag, and returns its reference by tag.
func (r *tinyRegistry) tag(ref, tag string) string {
	name, digest, _ := strings.Cut(ref, "@")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[strings.TrimPrefix(name, r.addr+"/")+":"+tag] = r.manifests[digest]
	return name + ":" + tag
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *tinyRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if path == "" {
		return
	}
	repository, ref, isManifest := strings.Cut(path, "/manifests/")
	_, blob, _ := strings.Cut(path, "/blobs/")
	r.mu.Lock()
	body := r.blobs[blob]
	if isManifest {
		if body = r.manifests[ref]; body == nil {
			body = r.manifests[repository+":"+ref]
		}
		w.Header().Set("Content-Type", ociManifest)
		w.Header().Set("Docker-Content-Digest", digestOf(body))
	}
	r.mu.Unlock()
	if body == nil {
		http.NotFound(w, req)
		return
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}
