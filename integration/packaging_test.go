//go:build integration

package integration

import (
	"context"
	"debug/elf"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// distVersion is the version that TestPackagesAreReproducibleAndRun builds.
const distVersion = "1.2.3"

// TestPackagesAreReproducibleAndRun builds what `make dist` builds and checks each file.
func TestPackagesAreReproducibleAndRun(t *testing.T) {
	for name, debianPackage := range map[string]string{
		"dpkg-deb": "dpkg", "jq": "jq", "git": "git", "tar": "tar", "xz": "xz-utils", "update-ca-certificates": "ca-certificates",
	} {
		program(t, name, debianPackage)
	}
	dist := t.TempDir()
	runDist(t, dist)
	name := filepath.Join(dist, "hubcache_"+distVersion)
	t.Run("reproducible", func(t *testing.T) { checkReproducible(t, dist) })
	t.Run("deb", func(t *testing.T) { checkDeb(t, name+"_"+runtime.GOARCH+".deb") })
	t.Run("sbom", func(t *testing.T) { checkSBOM(t, name+".cdx.json") })
	t.Run("image", func(t *testing.T) { checkImage(t, name+"_"+runtime.GOARCH+".image.tar") })
	t.Run("recipe", func(t *testing.T) { checkRecipe(t, name+"_"+runtime.GOARCH+".image.tar") })
	t.Run("boot", func(t *testing.T) { checkInstalledPackage(t, name+"_"+runtime.GOARCH+".deb") })
}

// runDist runs packaging/dist for this machine's architecture.
func runDist(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(repositoryRoot, "packaging/dist"), runtime.GOARCH)
	cmd.Env = append(os.Environ(), "VERSION=v"+distVersion, "DIST="+dir)
	runCommand(t, cmd)
}

// checkReproducible checks that a second build has the same bytes, and that all files have
// checksums.
func checkReproducible(t *testing.T, dist string) {
	again := t.TempDir()
	runDist(t, again)
	sums := exec.Command("sha256sum", "--check", "--strict", filepath.Join(dist, "SHA256SUMS"))
	sums.Dir = again
	out, err := sums.CombinedOutput()
	if err != nil {
		t.Errorf("a second build differs from the first: %s", out)
	}
	if files := strings.Count(string(out), ": OK"); files != 4 {
		t.Errorf("checksums of %d files, want archive, package, image and SBOM:\n%s", files, out)
	}
}

// checkDeb checks the files of the Debian package.
func checkDeb(t *testing.T, deb string) {
	root := t.TempDir()
	runCommand(t, exec.Command("dpkg-deb", "--raw-extract", deb, root))
	for _, file := range []string{
		"usr/bin/hubcache", "etc/hubcache/config.yaml", "lib/systemd/system/hubcache.service", "lib/systemd/system/hubcache-pull.socket",
		"lib/systemd/system/hubcache-docker-prune.timer", "usr/lib/sysusers.d/hubcache.conf", "usr/lib/tmpfiles.d/hubcache.conf",
		"usr/share/bash-completion/completions/hubcache", "usr/share/man/man1/hubcache.1.gz", "usr/share/man/man1/hubcache-docker-prune.1.gz",
		"usr/share/hubcache/prometheus/hubcache.rules.yaml", "usr/share/hubcache/grafana/hubcache.json", "DEBIAN/postinst",
	} {
		if info, err := os.Stat(filepath.Join(root, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s is missing or empty: %v", file, err)
		}
	}
	program := filepath.Join(root, "usr/bin/hubcache")
	if out := runCommand(t, exec.Command(program, "version")); !strings.Contains(out, distVersion) {
		t.Errorf("the packaged program is version %q", out)
	}
	binary, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, part := range binary.Progs {
		if part.Type == elf.PT_INTERP {
			t.Error("the packaged program is not static")
		}
	}
	runCommand(t, exec.Command(program, "config", "check", "--config", filepath.Join(root, "etc/hubcache/config.yaml")))
}

// checkSBOM checks that the SBOM names linked modules with their version in go.mod, and no
// module that only tests use.
func checkSBOM(t *testing.T, file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		BOMFormat string
		Metadata  struct {
			Component struct{ Name, Version string }
		}
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(b, &sbom); err != nil {
		t.Fatal(err)
	}
	if sbom.BOMFormat != "CycloneDX" || !strings.Contains(sbom.Metadata.Component.Name, "hubcache") || sbom.Metadata.Component.Version != "v"+distVersion {
		t.Errorf("%s of %+v", sbom.BOMFormat, sbom.Metadata.Component)
	}
	have := map[string]string{}
	for _, c := range sbom.Components {
		have[c.Name] = c.Version
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "go.etcd.io/bbolt")
	list.Dir = repositoryRoot
	if want := strings.TrimSpace(runCommand(t, list)); have["go.etcd.io/bbolt"] != want {
		t.Errorf("bbolt %q, want %s", have["go.etcd.io/bbolt"], want)
	}
	// Only tests use this module.
	if version, ok := have["github.com/rogpeppe/go-internal"]; ok {
		t.Errorf("the SBOM names go-internal %s, which is not linked in", version)
	}
}

// checkImage loads the image into Docker and runs it as the compose file says: not as root,
// with nothing writable but the cache, and without capabilities. It must be healthy and serve
// pulls.
func checkImage(t *testing.T, archive string) {
	checkImageLayer(t, archive)
	network := dockertest.NewNetwork(t)
	listen := net.JoinHostPort(network.Addr.String(), "0")
	hub := hubtest.New(hubtest.Options{RegistryAddr: listen, TokenAddr: listen, CDNAddr: listen})
	image := hub.AddImage("library/sample", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	defer hub.Close()

	d := dockertest.Start(t, dockertest.Options{Network: network})
	d.Docker("load", "--quiet", "--input", archive)
	service := composeService(t)
	if user := d.Docker("image", "inspect", "--format", "{{.Config.User}}", service.Image); user != "65532:65532" {
		t.Errorf("%s runs as %q", service.Image, user)
	}
	args := append(dockerRunArgs(service), "--network", "host", "--health-interval", "1s", "--env", "HUBCACHE_UPSTREAM="+hub.RegistryURL())
	d.Docker(append(args, service.Image)...)
	waitHealthy(t, d, "hubcache")
	// The program has the compose file's budget.
	if stats := d.Docker("exec", "hubcache", "hubcache", "stats", "--json"); !strings.Contains(stats, "21474836480") {
		t.Errorf("stats do not show a budget of %s: %s", *service.Environment["HUBCACHE_BUDGET"], stats)
	}
	for _, want := range []string{"miss", "hit"} {
		resp, err := http.Get("http://" + net.JoinHostPort(d.Addr.String(), "5000") + "/v2/library/sample/manifests/" + image.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-Hubcache"); resp.StatusCode != http.StatusOK || got != want {
			t.Errorf("%s, X-Hubcache %q, want %q", resp.Status, got, want)
		}
	}
	checkImageEnvironment(t, d, service.Image)
	checkMovedVolume(t, d, args[1:], service, image)
	checkImportInAContainer(t, d, args[1:], service, image, hub)
}

// checkImportInAContainer takes over what a folder has as docs/use/from-registry2.md says, without the
// program on the host, and pulls it without an upstream.
func checkImportInAContainer(t *testing.T, d *dockertest.Daemon, run []string, service types.ServiceConfig, image *hubtest.Image, hub *hubtest.Hub) {
	t.Helper()
	old := t.TempDir()
	runCommand(t, exec.Command(program(t, "skopeo", "skopeo"), "copy", "--quiet", "--src-tls-verify=false",
		"docker://"+strings.TrimPrefix(hub.RegistryURL(), "http://")+"/library/sample:1", "oci:"+old+":sample:1"))
	d.Docker("rm", "--force", service.Name)
	args := []string{"run"}
	for _, arg := range run {
		args = append(args, strings.Replace(arg, service.Volumes[0].Source+":", "imported:", 1))
	}
	once := slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "--detach" })
	d.Docker(append(once, "--rm", "-v", old+":/from:ro", service.Image, "import", "/from", "--as", "docker.io/library/sample:1")...) // as docker compose run does
	d.Docker(append(args, "--env", "HUBCACHE_UPSTREAM=http://"+net.JoinHostPort(d.Addr.String(), "1"), service.Image)...)
	waitHealthy(t, d, service.Name)
	if got := get(t, "http://"+net.JoinHostPort(d.Addr.String(), "5000")+"/v2/library/sample/manifests/1"); got.Status != http.StatusOK {
		log, _ := d.Command("logs", service.Name).CombinedOutput()
		t.Errorf("what was imported is not served: status %d\n%s", got.Status, log)
	}
}

// checkMovedVolume copies the volume of the running container as docs/use/moving-data.md says, and
// pulls from a container that has the copy and no upstream. run has docker's arguments for the first
// container.
func checkMovedVolume(t *testing.T, d *dockertest.Daemon, run []string, service types.ServiceConfig, image *hubtest.Image) {
	t.Helper()
	d.ImportBusybox("busybox:latest", "copies")
	d.Docker("stop", service.Name)
	d.Docker("run", "--rm", "--network=none", "-v", service.Volumes[0].Source+":/from:ro", "-v", "moved:/to", "busybox:latest", "/bin/busybox", "cp", "-a", "/from/.", "/to/")
	d.Docker("rm", service.Name)
	args := []string{"run"}
	for _, arg := range run {
		args = append(args, strings.Replace(arg, service.Volumes[0].Source+":", "moved:", 1))
	}
	args = append(args, "--env", "HUBCACHE_UPSTREAM=http://"+net.JoinHostPort(d.Addr.String(), "1"))
	d.Docker(append(args, service.Image)...)
	waitHealthy(t, d, service.Name)
	got := get(t, "http://"+net.JoinHostPort(d.Addr.String(), "5000")+"/v2/library/sample/manifests/"+image.Digest.String())
	if got.Status != http.StatusOK {
		log, _ := d.Command("logs", service.Name).CombinedOutput()
		t.Errorf("the moved volume is not served: status %d\n%s", got.Status, log)
	}
}

// checkImageEnvironment runs the image with all that a cluster may set: both addresses, a
// document of settings, and variables that are no settings. The health check has to find the
// server, and another host its metrics.
func checkImageEnvironment(t *testing.T, d *dockertest.Daemon, image string) {
	addr := d.Addr.String()
	d.Docker("run", "--detach", "--name", "elsewhere", "--network", "host", "--health-interval", "1s",
		"--env", "HUBCACHE_LISTEN="+net.JoinHostPort(addr, "6000"), "--env", "HUBCACHE_ADMIN_LISTEN=0.0.0.0:6001",
		"--env", "HUBCACHE_SETTINGS=tags: {rules: [{match: 'a:*', ttl: 1h}]}",
		"--env", "HUBCACHE_PORT=tcp://10.96.0.7:5000", image)
	waitHealthy(t, d, "elsewhere")
	for _, url := range []string{"http://" + net.JoinHostPort(addr, "6000") + "/v2/", "http://" + net.JoinHostPort(addr, "6001") + "/metrics"} {
		if got := get(t, url); got.Status != http.StatusOK {
			t.Errorf("%s: status %d", url, got.Status)
		}
	}
	if settings := d.Docker("exec", "elsewhere", "hubcache", "config", "show"); !strings.Contains(settings, "environment HUBCACHE_SETTINGS:1") {
		t.Errorf("config show in the container:\n%s", settings)
	}
	log, err := d.Command("logs", "elsewhere").CombinedOutput()
	if err != nil || strings.Count(string(log), "HUBCACHE_PORT: ignored; Kubernetes") != 1 {
		t.Errorf("the log has no warning of HUBCACHE_PORT, or more than one: %v\n%s", err, log)
	}
}

// waitHealthy waits until the health check of a container succeeds.
func waitHealthy(t *testing.T, d *dockertest.Daemon, container string) {
	t.Helper()
	var health string
	for range 120 {
		if health = d.Docker("inspect", "--format", "{{.State.Health.Status}}", container); health == "healthy" {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Fatalf("the container is %s\n%s", health, d.Docker("inspect", "--format", "{{json .State}}", container))
}

// dockerRunArgs are the arguments of docker that start a service of a compose file.
func dockerRunArgs(service types.ServiceConfig) []string {
	args := []string{"run", "--detach", "--name", service.Name}
	for _, v := range service.Volumes {
		args = append(args, "--volume", v.Source+":"+v.Target)
	}
	if service.ReadOnly {
		args = append(args, "--read-only")
	}
	for _, c := range service.CapDrop {
		args = append(args, "--cap-drop", c)
	}
	for _, o := range service.SecurityOpt {
		args = append(args, "--security-opt", o)
	}
	for name, value := range service.Environment {
		args = append(args, "--env", name+"="+*value)
	}
	return args
}

// checkImageLayer checks that the image's one layer has the files that container engines and
// TLS need.
func checkImageLayer(t *testing.T, archive string) {
	t.Helper()
	layer := runCommand(t, exec.Command("tar", "--extract", "--to-stdout", "--wildcards", "--file", archive, "*.tar"))
	list := exec.Command("tar", "--list", "--verbose")
	list.Stdin = strings.NewReader(layer)
	files := strings.Split(runCommand(t, list), "\n")
	for _, file := range []string{"./etc/passwd", "./etc/group", "./etc/ssl/certs/ca-certificates.crt"} {
		regular := func(line string) bool { return strings.HasPrefix(line, "-") && strings.HasSuffix(line, " "+file) }
		if !slices.ContainsFunc(files, regular) {
			t.Errorf("%s is not a regular file of the image:\n%s", file, strings.Join(files, "\n"))
		}
	}
}

// composeService is the one service of packaging/compose.yaml.
func composeService(t *testing.T) types.ServiceConfig {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(repositoryRoot, "packaging/compose.yaml")}, cli.WithName("hubcache"))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	service, err := project.GetService("hubcache")
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// checkTokenRecipe: doctor is content with the recipe, and config check and doctor find a file that
// the service can't read.
func checkTokenRecipe(t *testing.T, h *bootedHost, token string) {
	t.Helper()
	doctor := func(want string) {
		t.Helper()
		out, err := h.try("hubcache", "doctor", "--image", "busybox:latest")
		if (err != nil) != (want != "") || !strings.Contains(out, want) {
			t.Errorf("doctor: %v, want %q:\n%s", err, want, out)
		}
	}
	doctor("")
	h.shell("cp /etc/hubcache/config.yaml /etc/hubcache/config.yaml.right")
	h.write("/etc/hubcache/token", "0600", token)
	h.shell("sed -i 's|password_file:.*|password_file: /etc/hubcache/token|' /etc/hubcache/config.yaml")
	if out, err := h.try("hubcache", "config", "check"); err == nil || !strings.Contains(out, "hubcache.service can't read /etc/hubcache/token") {
		t.Errorf("config check: %v %s", err, out)
	}
	h.run("systemctl", "restart", "hubcache.service")
	doctor("can't read the access token: /etc/hubcache/token")
	h.shell("mv /etc/hubcache/config.yaml.right /etc/hubcache/config.yaml; rm /etc/hubcache/token")
	h.run("systemctl", "restart", "hubcache.service")
	doctor("")
}

// checkInstalledPackage installs the Debian package on a booted host, pulls, upgrades the
// package and purges it.
func checkInstalledPackage(t *testing.T, deb string) {
	const token = "dckr_pat_of_the_test"
	programs := buildPrograms(t)
	if err := copyProgram(filepath.Join(programs, "hubcache.deb"), deb); err != nil {
		t.Fatal(err)
	}
	h := bootHost(t, programs)
	h.serveHub(token, "3x4MiB")
	h.run("dpkg", "--install", hostPrograms+"/hubcache.deb")
	h.run("systemctl", "is-active", "hubcache.service", "hubcache-pull.socket", "hubcache-admin.socket")
	if out, err := h.try("systemctl", "is-enabled", "hubcache-docker-prune.timer"); err == nil {
		t.Errorf("the prune timer is enabled by default: %s", out)
	}

	// The comments in config.yaml say to do this.
	h.shell("echo " + token + " | $(sed -n 's/^# *\\(install .*\\)/\\1/p' /etc/hubcache/config.yaml)")
	h.shell(`sed -i '/^#upstream:/,/^$/s/^#//; s|^upstream:|&\n  url: http://127.0.0.1:5100|; s/^budget:.*/budget: 1GiB/' /etc/hubcache/config.yaml`)
	h.run("hubcache", "config", "check")
	h.run("systemctl", "restart", "hubcache.service")
	h.write("/etc/docker/daemon.json", "0644", `{"registry-mirrors": ["http://127.0.0.1:5000"], "iptables": false, "bridge": "none"}`)
	h.run("systemctl", "start", "docker.service")
	h.run("docker", "pull", "--quiet", "busybox:latest")
	checkTokenRecipe(t, h, token)
	if ledger := h.ledger(); !strings.Contains(ledger, "jane") {
		t.Errorf("Hub did not see the account: %s", ledger)
	}
	h.pullThroughRestarts("big:1")

	pid := h.mainPID()
	h.run("dpkg", "--install", hostPrograms+"/hubcache.deb")
	if h.mainPID() == pid {
		t.Error("an upgrade left the old program running")
	}
	h.run("docker", "image", "rm", "busybox:latest")
	h.run("docker", "pull", "--quiet", "busybox:latest")

	checkSockets(h)
	h.run("systemctl", "enable", "--now", "hubcache-docker-prune.timer")
	if out := h.run("dpkg", "--purge", "hubcache"); !strings.Contains(out, "/etc/docker/daemon.json still names a mirror") {
		t.Errorf("a purge doesn't tell of the mirror:\n%s", out)
	}
	left := h.shell("ls -d /etc/hubcache /var/lib/hubcache* /var/lib/private/hubcache* /etc/systemd/system/*/hubcache* 2>/dev/null || true")
	if left != "" {
		t.Errorf("a purge leaves these files:\n%s", left)
	}
	if out, err := h.try("curl", "-sS", "http://127.0.0.1:5000/v2/"); err == nil {
		t.Errorf("after a purge the server still answers: %s", out)
	}
	checkPortTaken(h)
}

// checkSockets serves another address, as operations.md says, and restarts sockets and service in
// each order.
func checkSockets(h *bootedHost) {
	h.t.Helper()
	h.shell(`printf 'listen: ["0.0.0.0:5000", "127.0.0.1:5005"]\n' >> /etc/hubcache/config.yaml`)
	const warning = "listen is 0.0.0.0:5000,127.0.0.1:5005 (file /etc/hubcache/config.yaml:"
	if out := h.run("hubcache", "config", "check"); !strings.Contains(out, warning) {
		h.t.Errorf("config check doesn't say that the socket listens elsewhere:\n%s", out)
	}
	h.run("systemctl", "restart", "hubcache.service")
	h.run("journalctl", "--sync") // the line may still be on its way
	if log := h.run("journalctl", "--unit=hubcache.service", "--priority=warning", "--output=cat"); !strings.Contains(log, warning) {
		h.t.Errorf("the server doesn't say that the socket listens elsewhere:\n%s", log)
	}
	out := h.run("hubcache", "config", "sockets", "--apply")
	_, command, found := strings.Cut(out, "now run: ")
	if !found {
		h.t.Fatalf("config sockets: %s", out)
	}
	h.shell(command)
	h.run("curl", "-sS", "--fail", "http://127.0.0.9:5000/v2/", "http://127.0.0.1:5005/v2/")
	if out := h.run("hubcache", "config", "check"); strings.Contains(out, "warning") {
		h.t.Errorf("config check after config sockets:\n%s", out)
	}
	for _, units := range [][]string{
		{"hubcache-pull.socket"}, {"hubcache-admin.socket"}, {"hubcache.service"},
		{"hubcache-pull.socket", "hubcache.service"}, {"hubcache.service", "hubcache-admin.socket", "hubcache-pull.socket"},
	} {
		h.run("systemctl", "reset-failed", "hubcache.service") // systemd counts: five starts in ten seconds are too many
		h.run(append([]string{"systemctl", "restart"}, units...)...)
		h.run("systemctl", "is-active", "hubcache.service", "hubcache-pull.socket", "hubcache-admin.socket")
		h.run("curl", "-sS", "--fail", "http://127.0.0.9:5000/v2/")
		h.run("hubcache", "stats")
	}
}

// checkPortTaken installs the package while another program has its port. The installation says
// so, leaves no failed unit, and what it says to do works.
func checkPortTaken(h *bootedHost) {
	h.t.Helper()
	h.write("/etc/systemd/system/taken.socket", "0644", "[Socket]\nListenStream=127.0.0.1:5000\nAccept=yes\n")
	h.write("/etc/systemd/system/taken@.service", "0644", "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n")
	h.run("systemctl", "daemon-reload")
	h.run("systemctl", "start", "taken.socket")
	out := h.run("dpkg", "--install", hostPrograms+"/hubcache.deb")
	if !strings.Contains(out, "127.0.0.1:5000 is in use by systemd (process 1)") {
		h.t.Errorf("the installation doesn't say what has the port:\n%s", out)
	}
	if failed := h.run("systemctl", "--failed", "--plain", "--no-legend"); strings.Contains(failed, "hubcache") {
		h.t.Errorf("failed units are left:\n%s", failed)
	}
	_, command, found := strings.Cut(out, "Then run: ")
	if !found {
		h.t.Fatal("the installation doesn't say what to do")
	}
	h.run("systemctl", "stop", "taken.socket")
	command, _, _ = strings.Cut(command, "\n")
	h.shell(command)
	h.run("curl", "-sS", "--fail", "http://127.0.0.1:5000/v2/")
}
