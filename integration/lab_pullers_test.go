//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// puller is a client of registries that has the lab's cache as its mirror. Its methods are called from
// the test's goroutine.
type puller interface {
	// pull pulls an image as the client's users do.
	pull(img labImage) error
	// forget removes all that was pulled.
	forget(t testing.TB)
}

// pullerKind is a client program.
type pullerKind struct {
	name    string
	version func(t testing.TB) string
	how     string // how it is pointed at the cache
	// direct says that it asks the cache by the cache's own name, so it can't fall back.
	direct bool
	start  func(t testing.TB, lab *registriesLab, env []string) puller
}

// pullerKinds are the clients of the matrix.
func pullerKinds() []pullerKind {
	return []pullerKind{
		{"Docker, containerd store", versionOf("29", "dockerd"), "`hosts.toml`", false, startDocker29(false)},
		{"BuildKit in Docker", versionOf("29", "dockerd"), "`hosts.toml`", false, startDocker29(true)},
		{"Docker, classic store", versionOf("", "dockerd"), "`registry-mirrors`; second registry by path", false, startDocker20},
		{"containerd, `ctr`", versionOf("29", "containerd"), "`hosts.toml`", false, startCtr("29")},
		{"containerd, CRI (`crictl`)", versionOf("29", "containerd"), "`hosts.toml` by config_path", false, startCRI},
		{"containerd, `ctr`", versionOf("", "containerd"), "`hosts.toml`", false, startCtr("")},
		{"Podman", versionOf("", "podman"), "`registries.conf`", false, startPodman},
		{"skopeo", versionOf("", "skopeo"), "`registries.conf`", false, startSkopeo},
		{"crane", builtVersion("crane"), "by the cache's name", true, startNamed("crane", "pull", "--insecure", "IMAGE", "DIR.tar")},
		{"oras", builtVersion("oras"), "by the cache's name", true, startNamed("oras", "copy", "--from-plain-http", "--to-oci-layout", "IMAGE", "DIR:1")},
		{"regctl", builtVersion("regctl"), "by the cache's name", true, startNamed("regctl", "--host", "reg=CACHE,tls=disabled", "image", "copy", "IMAGE", "ocidir://DIR:1")},
	}
}

// versionOf is the version of a program of Debian, or with "29" of the engine that is built.
func versionOf(engine, name string) func(t testing.TB) string {
	return func(t testing.TB) string {
		path := ""
		if engine != "" {
			path = filepath.Join(dockertest.Docker29(t), name)
		} else {
			path = program(t, name, name)
		}
		for word := range strings.FieldsSeq(runCommand(t, exec.Command(path, "--version"))) {
			if v := strings.TrimLeft(word, "v"); v != "" && v[0] >= '0' && v[0] <= '9' {
				v, _, _ = strings.Cut(strings.TrimRight(v, ","), "+")
				v, _, _ = strings.Cut(v, "~")
				return v
			}
		}
		return "?"
	}
}

// builtClient is a client that install-tools builds, and its version.
func builtClient(t testing.TB, name string) (path, version string) {
	t.Helper()
	versions, err := os.ReadFile("clients.versions")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(versions)) {
		if module, ok := strings.CutPrefix(line, name+"="); ok {
			_, version, _ = strings.Cut(strings.TrimSpace(module), "@")
			path = filepath.Join(cache, "hubcache-test", name+"-"+version, name)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing; integration/install-tools clients builds it: %v", name, err)
	}
	return path, strings.TrimPrefix(version, "v")
}

func builtVersion(name string) func(t testing.TB) string {
	return func(t testing.TB) string { _, v := builtClient(t, name); return v }
}

// dockerPuller is the docker command and a daemon of its own.
type dockerPuller struct {
	*dockertest.Daemon
	name  func(labImage) string
	build bool // by docker build instead of docker pull
	dir   string
	env   []string // of docker build, which gets tokens itself
}

func startDocker29(build bool) func(t testing.TB, lab *registriesLab, env []string) puller {
	return func(t testing.TB, lab *registriesLab, env []string) puller {
		certs := t.TempDir()
		d := dockertest.Start(t, dockertest.Options{Docker29: true, Network: lab.network, Certs: certs, Env: env})
		lab.setup(t, "--host", d.Host(), "--certs-dir", certs, "--apply")
		return &dockerPuller{d, labImage.reference, build, t.TempDir(), env}
	}
}

func startDocker20(t testing.TB, lab *registriesLab, env []string) puller {
	d := dockertest.Start(t, dockertest.Options{Network: lab.network, Env: env, Config: map[string]any{"insecure-registries": []string{lab.cache.Addr}}})
	lab.setup(t, "--host", d.Host(), "--apply")
	return &dockerPuller{d, func(i labImage) string {
		if i.registry == "docker.io" {
			return i.reference()
		}
		return i.inCache(lab.cache)
	}, false, t.TempDir(), env}
}

func (d *dockerPuller) pull(img labImage) error {
	if !d.build {
		_, err := d.TryDocker("pull", d.name(img))
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "Dockerfile"), fmt.Appendf(nil, "FROM %s\nCOPY Dockerfile /\n", d.name(img)), 0o644); err != nil {
		return err
	}
	cmd := exec.Command("/usr/bin/docker", "build", "--no-cache", "--tag", "built:1", d.dir) // Debian's client needs no plugin for BuildKit
	cmd.Env = append(append(d.Env(), "DOCKER_BUILDKIT=1"), d.env...)
	return tryCommand(cmd)
}

func (d *dockerPuller) forget(t testing.TB) {
	if d.build {
		d.Docker("builder", "prune", "--all", "--force")
	}
	d.Docker("image", "prune", "--all", "--force")
}

// containerdPuller is a containerd of its own, and what asks it to pull.
type containerdPuller struct {
	*containerd
	program string
	args    func(img labImage) []string
	remove  func(t testing.TB)
}

func (c *containerdPuller) pull(img labImage) error {
	cmd := exec.Command(c.program, c.args(img)...)
	cmd.Env = c.env
	return tryCommand(cmd)
}

func (c *containerdPuller) forget(t testing.TB) { c.remove(t) }

// newContainerd starts a containerd of these programs that has the cache by docker setup.
func newContainerd(t testing.TB, lab *registriesLab, with containerd) *containerd {
	t.Helper()
	with.hosts = t.TempDir()
	c := startContainerdWith(t, with)
	lab.setup(t, "--for", "containerd", "--containerd", c.socket, "--certs-dir", c.hosts, "--apply")
	return c
}

func startCtr(engine string) func(t testing.TB, lab *registriesLab, env []string) puller {
	return func(t testing.TB, lab *registriesLab, env []string) puller {
		with := containerd{env: append(os.Environ(), env...)}
		if engine != "" {
			with.dir = dockertest.Docker29(t)
		}
		c := newContainerd(t, lab, with)
		return &containerdPuller{c, c.program(t, "ctr"), func(img labImage) []string {
			return []string{"--address", c.socket, "images", "pull", "--snapshotter", "native", "--hosts-dir", c.hosts, img.reference()}
		}, func(t testing.TB) {
			for name := range strings.FieldsSeq(c.ctr(t, "images", "ls", "-q")) {
				c.ctr(t, "images", "rm", "--sync", name)
			}
		}}
	}
}

func startCRI(t testing.TB, lab *registriesLab, env []string) puller {
	crictl, _ := builtClient(t, "crictl")
	c := newContainerd(t, lab, containerd{dir: dockertest.Docker29(t), env: append(os.Environ(), env...), cri: true})
	at := []string{"--runtime-endpoint", "unix://" + c.socket, "--image-endpoint", "unix://" + c.socket, "--timeout", "5m"}
	return &containerdPuller{c, crictl, func(img labImage) []string { return append(at[:len(at):len(at)], "pull", img.reference()) }, func(t testing.TB) {
		cmd := exec.Command(crictl, append(at[:len(at):len(at)], "rmi", "--all")...)
		cmd.Env = c.env
		runCommand(t, cmd)
		c.ctr(t, "--namespace", "k8s.io", "content", "prune", "references") // else the next pull may find the blobs
	}}
}

// commandPuller is a program that pulls into a directory or a store of its own.
type commandPuller struct {
	dir, program string
	env          []string
	args         func(img labImage) []string
	remove       func(t testing.TB)
}

func (c *commandPuller) pull(img labImage) error {
	cmd := exec.Command(c.program, c.args(img)...)
	cmd.Env, cmd.Dir = c.env, c.dir
	return tryCommand(cmd)
}

func (c *commandPuller) forget(t testing.TB) { c.remove(t) }

// newImageClient has a registries.conf of docker setup.
func newImageClient(t testing.TB, lab *registriesLab, env []string) containersClient {
	t.Helper()
	c := newContainersClient(t, lab.cache)
	c.registries = c.write(t, "registries.conf", lab.setup(t, "--for", "podman"))
	c.env = append(append(os.Environ(), "HOME="+c.dir, "XDG_RUNTIME_DIR="+c.dir, "CONTAINERS_REGISTRIES_CONF="+c.registries, "REGISTRY_AUTH_FILE="), env...)
	return c
}

func startPodman(t testing.TB, lab *registriesLab, env []string) puller {
	c := newImageClient(t, lab, env)
	policy := c.write(t, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	global := []string{
		"--root", filepath.Join(c.dir, "root"), "--runroot", filepath.Join(c.dir, "run"), "--tmpdir", filepath.Join(c.dir, "tmp"),
		"--storage-driver", "vfs", "--runtime", program(t, "runc", "runc"), "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}
	global = global[:len(global):len(global)]
	podman := program(t, "podman", "podman")
	return &commandPuller{c.dir, podman, c.env, func(img labImage) []string {
		return append(global, "pull", "--signature-policy", policy, img.reference())
	}, func(t testing.TB) { c.run(t, podman, append(global, "rmi", "--all", "--force")...) }}
}

func startSkopeo(t testing.TB, lab *registriesLab, env []string) puller {
	c := newImageClient(t, lab, env)
	dir := filepath.Join(c.dir, "copy")
	return &commandPuller{c.dir, program(t, "skopeo", "skopeo"), c.env, func(img labImage) []string {
		return []string{"--insecure-policy", "--registries-conf", c.registries, "copy", "docker://" + img.reference(), "dir:" + dir}
	}, func(t testing.TB) { removeAll(t, dir) }}
}

// startNamed is a program that is given the name that the image has in the cache. IMAGE, CACHE and DIR
// in its arguments are replaced.
func startNamed(name string, args ...string) func(t testing.TB, lab *registriesLab, env []string) puller {
	return func(t testing.TB, lab *registriesLab, env []string) puller {
		dir := t.TempDir()
		path, _ := builtClient(t, name)
		return &commandPuller{dir, path, append(os.Environ(), append(env, "HOME="+dir, "DOCKER_CONFIG="+dir)...), func(img labImage) []string {
			replace := strings.NewReplacer("IMAGE", img.inCache(lab.cache), "CACHE", lab.cache.Addr, "DIR", filepath.Join(dir, "image"))
			var all []string
			for _, a := range args {
				all = append(all, replace.Replace(a))
			}
			return all
		}, func(t testing.TB) {
			removeAll(t, filepath.Join(dir, "image"))
			removeAll(t, filepath.Join(dir, "image.tar"))
		}}
	}
}

func removeAll(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// tryCommand runs a program. Its error has what the program wrote.
func tryCommand(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, lastLines(out.String(), 12))
	}
	return nil
}
