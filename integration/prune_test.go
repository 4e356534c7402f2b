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

// pruneHost is a Docker host with a small disk: a daemon whose data root is an ext4 of
// its own, a registry that it pulls from, and hubcache's docker commands.
type pruneHost struct {
	t        *testing.T
	daemon   *dockertest.Daemon
	registry *tinyRegistry
	config   string
	disk     string
}

// pruneDisk is the size of the disk, and pruneImage the size of each image's content.
const (
	pruneDisk  = 560 << 20 // a swarm manager alone takes a quarter of it
	pruneImage = 24 << 20
)

func newPruneHost(t *testing.T) *pruneHost {
	t.Helper()
	dir := t.TempDir()
	h := &pruneHost{t: t, disk: filepath.Join(dir, "disk"), config: filepath.Join(dir, "config.yaml")}
	file := filepath.Join(dir, "ext4")
	if err := errors.Join(os.Mkdir(h.disk, 0o755), os.WriteFile(file, nil, 0o600), os.Truncate(file, pruneDisk)); err != nil {
		t.Fatal(err)
	}
	command(t, program(t, "mkfs.ext4", "e2fsprogs"), "-q", "-m", "0", file)
	command(t, program(t, "mount", "mount"), "-o", "loop", file, h.disk)
	t.Cleanup(func() { command(t, program(t, "umount", "mount"), h.disk) })
	network := dockertest.NewNetwork(t)
	h.registry = newTinyRegistry(t, network.Addr.String())
	h.daemon = dockertest.Start(t, dockertest.Options{
		Network: network, DataRoot: filepath.Join(h.disk, "docker"),
		Config: map[string]any{"insecure-registries": []string{h.registry.addr}},
	})
	config := fmt.Sprintf("docker: {host: %q, hold_dir: %q, state: %q}\n", h.daemon.Host(), filepath.Join(dir, "hold"), filepath.Join(dir, "state", "uses.db"))
	if err := os.WriteFile(h.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return h
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// hubcache is one of hubcache's docker commands, not started yet.
func (h *pruneHost) hubcache(args ...string) *exec.Cmd {
	h.t.Helper()
	return exec.Command(hubcacheProgram(h.t), append([]string{"--config", h.config, "docker"}, args...)...)
}

// pruneReport is what the tests read of the report, schema 1.
type pruneReport struct {
	Schema   int    `json:"schema"`
	Decision string `json:"decision"`
	Reason   string `json:"reason"`
	Watched  bool   `json:"watched"`
	Images   []struct {
		References []string `json:"references"`
		Action     string   `json:"action"`
		Rule       string   `json:"rule"`
	} `json:"images"`
}

// rule is the rule that decided about the image.
func (r pruneReport) rule(ref string) string {
	for _, img := range r.Images {
		if slices.Contains(img.References, ref) {
			return img.Rule
		}
	}
	return "not listed"
}

// deleted are the first references of what goes, in order.
func (r pruneReport) deleted() (refs []string) {
	for _, img := range r.Images {
		if img.Action == "delete" {
			refs = append(refs, img.References[0])
		}
	}
	return refs
}

// prune runs "docker prune" and checks its exit code and decision.
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

// full is how full the disk is, in percent, as df says.
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

// images are all images of the daemon.
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

// service waits until the service runs that image.
func (h *pruneHost) service(name, ref string) {
	h.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(200 * time.Millisecond) {
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

// TestPruneUnderPressure is a CI host whose disk fills up, told with the real program, a
// real daemon and a real swarm.
func TestPruneUnderPressure(t *testing.T) {
	h := newPruneHost(t)
	r := h.registry
	// Here days are seconds.
	const minAge, quiet = 25 * time.Second, 4 * time.Second
	flags := func(args ...string) []string {
		return append(args, "--min-age", minAge.String(), "--quiet", quiet.String(), "--max-wait", "2s")
	}
	long2015 := time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

	h.daemon.SwarmInit()
	h.watch()
	before, after := r.add(t, "web", long2015), r.add(t, "web", time.Now())
	h.daemon.Docker("service", "create", "--detach", "--no-resolve-image", "--name=web", "--network=host", before)
	h.service("web", before)
	h.daemon.Docker("service", "update", "--detach", "--no-resolve-image", "--image", after, "web")
	h.service("web", after)
	h.daemon.Docker("container", "prune", "--force") // of the first task: only the rollback holds its image now
	base := r.tag(r.add(t, "base", long2015), "1")
	h.daemon.Docker("pull", "-q", base)
	h.daemon.Docker("run", "--detach", "--network=none", "--health-cmd=true", "--health-interval=1s", "--name=healthy", base)
	recipe := r.add(t, "recipe", long2015)
	h.daemon.Docker("pull", "-q", recipe)
	var apps []string
	for h.full() < 82 {
		apps = append(apps, r.add(t, "app", time.Now()))
		h.daemon.Docker("pull", "-q", apps[len(apps)-1])
	}
	if len(apps) < 4 {
		t.Fatalf("%d images filled the disk", len(apps))
	}
	time.Sleep(minAge)
	ancient := r.add(t, "app", long2015)
	h.daemon.Docker("pull", "-q", ancient)
	if full := h.full(); full <= 85 || full >= 95 {
		t.Fatalf("the disk is %.1f %% full; the test needs 85 to 95", full)
	}
	all := h.images()

	t.Run("a pull defers it", func(t *testing.T) {
		if r := h.prune(75, "deferred", flags("--apply")...); !strings.Contains(r.Reason, "quiet") {
			t.Errorf("reason: %s", r.Reason)
		}
	})
	time.Sleep(quiet)
	t.Run("a hold defers it", func(t *testing.T) {
		hold := h.hubcache("hold", "--", "sh", "-c", "echo held; read line")
		stdin, _ := hold.StdinPipe()
		stdout, _ := hold.StdoutPipe()
		if err := hold.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if r := h.prune(75, "deferred", flags("--apply")...); !strings.Contains(r.Reason, "hold") {
			t.Errorf("reason: %s", r.Reason)
		}
		stdin.Close()
		_ = hold.Wait() // read fails at the end of its input
	})
	var planned []string
	t.Run("a dry run", func(t *testing.T) {
		r := h.prune(0, "pruned", flags()...)
		planned = r.deleted()
		if !r.Watched {
			t.Error("the watcher is not seen")
		}
		for ref, rule := range map[string]string{before: "previous-spec", after: "container", base: "container", recipe: "newest", ancient: "newest", apps[0]: "orphan"} {
			if got := r.rule(ref); got != rule {
				t.Errorf("%s: %s, want %s", ref, got, rule)
			}
		}
	})
	if h.images() != all {
		t.Fatalf("images went:\n%s\nbefore:\n%s", h.images(), all)
	}
	t.Run("to the low watermark, in spite of a health check", func(t *testing.T) {
		r := h.prune(0, "pruned", flags("--apply")...)
		if full := h.full(); full > 75 || full < 75-100*float64(pruneImage)/pruneDisk-1 {
			t.Errorf("the disk is %.1f %% full: want 75, or one image less", full)
		}
		n := len(r.deleted())
		if n == 0 || !slices.Equal(r.deleted(), apps[:n]) || !slices.Equal(r.deleted(), planned) {
			t.Errorf("deleted %v\nwant the least recently used of %v\nas planned %v", r.deleted(), apps, planned)
		}
		for i, ref := range apps {
			if h.has(ref) != (i >= n) {
				t.Errorf("app %d: there %v, and %d were deleted", i, h.has(ref), n)
			}
		}
	})
	t.Run("below the high watermark", func(t *testing.T) { h.prune(0, "not-needed", flags("--apply")...) })
	// From here on nothing can be pulled again.
	r.close()
	t.Run("what is left is kept", func(t *testing.T) {
		h.prune(3, "incomplete", flags("--apply", "--high-watermark=2%", "--low-watermark=1%")...)
		for name, ref := range map[string]string{"a service's rollback image": before, "a service's image": after,
			"a base image cached by tag": base, "an image held by digest only": recipe, "an image built years ago and pulled a minute ago": ancient} {
			if !h.has(ref) {
				t.Errorf("%s is gone", name)
			}
		}
		if h.has(apps[len(apps)-1]) {
			t.Error("an orphan is left")
		}
		h.daemon.Docker("service", "rollback", "--detach", "web")
		h.service("web", before)
		h.daemon.Docker("inspect", "healthy")
	})
}

// TestPruneKeepsTaggedImagesUnlessTold: a base image that nothing uses is kept for its tag alone,
// and goes only with --tagged, when its repository has a newer one.
func TestPruneKeepsTaggedImagesUnlessTold(t *testing.T) {
	h := newPruneHost(t)
	old, newer := h.registry.tag(h.registry.add(t, "base", time.Now().Add(-time.Hour)), "1"), h.registry.tag(h.registry.add(t, "base", time.Now()), "2")
	h.daemon.Docker("pull", "-q", old)
	time.Sleep(time.Second)
	h.daemon.Docker("pull", "-q", newer)
	flags := []string{"--apply", "--min-age=0s", "--quiet=0s", "--high-watermark=2%", "--low-watermark=1%"}
	if r := h.prune(3, "incomplete", flags...); r.rule(old) != "tag" || !h.has(old) {
		t.Errorf("%s: %s", old, r.rule(old))
	}
	if r := h.prune(3, "incomplete", append(flags, "--tagged", "--keep", h.registry.addr+"/base:1")...); r.rule(old) != "keep-list" || !h.has(old) {
		t.Errorf("%s: %s", old, r.rule(old))
	}
	if r := h.prune(3, "incomplete", append(flags, "--tagged")...); h.has(old) || !h.has(newer) || r.rule(newer) != "newest" {
		t.Errorf("left:\n%s", h.images())
	}
}

// tinyRegistry serves images of one layer by digest and tag.
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

// add makes an image of a shell and random content that sleeps, and returns its
// reference by digest.
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

// tag names the image, and returns its reference by tag.
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
