//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// TestContainerdHost sets up and examines hosts with a real containerd and no Docker: the newest, which
// has its registries' directory in its configuration, and Debian's, which reads none yet.
func TestContainerdHost(t *testing.T) {
	lab := newRegistriesLab(t)
	doctor := func(c *containerd) string {
		cmd := exec.Command(hubcacheProgram(t), "doctor", "--host", "unix:///does/not/exist", "--containerd", c.socket)
		cmd.Env = append(os.Environ(), "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_ADMIN="+lab.cache.Admin)
		out, _ := cmd.CombinedOutput() // it may find something broken on this machine, such as a full disk
		return string(out)
	}
	want := func(what, text string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s doesn't say %q:\n%s", what, part, text)
			}
		}
	}
	certs := t.TempDir()
	newest := startContainerdWith(t, containerd{dir: dockertest.Docker29(t), hosts: certs, cri: true, env: append(os.Environ(), lab.noWay()...)})
	want("doctor before setup", doctor(newest), "reads "+certs, "there is no "+filepath.Join(certs, "ghcr.io", "hosts.toml"), "docker setup --for containerd --apply")
	setup := []string{"--for", "containerd", "--containerd", newest.socket}
	want("a dry run", lab.setup(t, setup...), filepath.Join(certs, "quay.io", "hosts.toml")+": ask "+lab.cache.URL+" first", "Nothing was done")
	lab.setup(t, append(setup, "--apply")...)
	want("the file for containerd 2.2 and later", fileOf(t, filepath.Join(certs, "ghcr.io", "hosts.toml")), `"referrers"`, `dial_timeout = "2s"`)
	report := doctor(newest)
	for _, registry := range labRegistries {
		want("doctor", report, filepath.Join(certs, registry, "hosts.toml")+" names "+lab.cache.URL, "is served with ?ns="+registry)
	}
	lab.setup(t, append(setup, "--undo", "--apply")...)
	if left, _ := filepath.Glob(filepath.Join(certs, "*", "*")); len(left) > 0 {
		t.Errorf("after the undo: %v", left)
	}

	old := startContainerdWith(t, containerd{env: append(os.Environ(), lab.noWay()...), cri: true})
	want("doctor", doctor(old), "config_path is empty")
	want("setup", lab.setup(t, "--for", "containerd", "--containerd", old.socket), `[plugins."io.containerd.grpc.v1.cri".registry] # in a file with version = 2`, `config_path = "/etc/containerd/certs.d"`)
}
