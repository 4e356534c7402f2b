//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestClientsPullFromThreeRegistries pulls from Docker Hub, ghcr.io and quay.io through one hubcache,
// cold and warm, with clients that docker setup has pointed at it and that can reach nothing else.
// Private images are served only if they are named, and no registry sees another's token.
func TestClientsPullFromThreeRegistries(t *testing.T) {
	lab := newRegistriesLab(t)
	lab.quay.SetPrivate("acme/named", true)
	lab.quay.SetPrivate("acme/hidden", true)
	images := []labImage{
		lab.image(t, "docker.io", "library/app", "1", 1), lab.image(t, "ghcr.io", "org/app", "1", 1),
		lab.image(t, "quay.io", "org/app", "1", 1), lab.image(t, "quay.io", "acme/named", "1", 1),
	}
	hidden := lab.image(t, "quay.io", "acme/hidden", "1", 1)
	for name, start := range map[string]func(testing.TB, *registriesLab, []string) puller{
		"Docker 29": startDocker29(false), "containerd": startCtr("29"), "Debian's containerd": startCtr(""), "Podman": startPodman,
	} {
		t.Run(name, func(t *testing.T) {
			lab.cache.Empty()
			client := start(t, lab, lab.noWay())
			for _, temperature := range []string{"cold", "warm"} {
				lab.resetLedgers()
				for _, img := range images {
					if err := client.pull(img); err != nil {
						t.Errorf("%s, %s: %v", temperature, img.reference(), err)
					}
				}
				if err := client.pull(hidden); err == nil {
					t.Errorf("%s, %s: it is private and not named, and was pulled", temperature, hidden.reference())
				}
				for _, registry := range labRegistries {
					ledger := lab.registry(registry).Ledger()
					if got := ledger.BlobBytes(); (got > 0) != (temperature == "cold") {
						t.Errorf("%s: %d bytes were fetched from %s:\n%s", temperature, got, registry, ledger)
					}
				}
				checkAccounts(t, lab)
				client.forget(t)
			}
		})
	}
}

// checkAccounts checks that each registry was asked with its own account or with none.
func checkAccounts(t *testing.T, lab *registriesLab) {
	t.Helper()
	for registry, account := range map[string]string{"docker.io": labUser, "ghcr.io": "", "quay.io": quayUser} {
		for _, e := range lab.registry(registry).Ledger() {
			if e.Account != "" && e.Account != account {
				t.Errorf("%s was asked with the account %q: %s", registry, e.Account, e)
			}
		}
	}
}

// TestSilentCacheCostsSeconds pulls with a Docker 29 whose packets to the cache are lost, as when the
// cache's machine is switched off. Without dial_timeout each request would wait for 30 s.
func TestSilentCacheCostsSeconds(t *testing.T) {
	lab := newRegistriesLab(t)
	img := lab.image(t, "ghcr.io", "org/app", "1", 1)
	client := startDocker29(false)(t, lab, lab.ownWay()).(*dockerPuller)
	lab.cache.Stop()
	_, port, _ := strings.Cut(lab.cache.Addr, ":")
	drop := exec.Command("nsenter", "-t", fmt.Sprint(client.PID()), "-n", program(t, "iptables", "iptables"), "-A", "OUTPUT", "-p", "tcp", "--dport", port, "-j", "DROP")
	runCommand(t, drop)
	start := time.Now()
	if err := client.pull(img); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("%v", took)
	// It makes five requests or more.
	if took > time.Minute {
		t.Errorf("the pull took %v", took)
	}
	if lab.ghcr.Ledger().BlobBytes() == 0 {
		t.Error("the image came from nowhere")
	}
}

// TestReferrersNeedTheirCapability pulls an image with attestations, with a Docker that asks for their
// referrers. It asks the cache only if hosts.toml says that the cache has the capability, which docker
// setup writes for Docker 29.1 and later: this one says that it is 29.0.
func TestReferrersNeedTheirCapability(t *testing.T) {
	lab := newRegistriesLab(t)
	certs := t.TempDir()
	d := dockertest.Start(t, dockertest.Options{Docker29: true, Network: lab.network, Certs: certs, Env: lab.ownWay()})
	lab.setup(t, "--host", d.Host(), "--certs-dir", certs, "--apply")
	runnableImage(t, lab.ghcr, "org/app", "1", 1, 1<<20, hubtest.ImageSpec{Attestations: true})
	hosts := filepath.Join(certs, "ghcr.io", "hosts.toml")
	for _, capability := range []bool{false, true} {
		if capability {
			with := strings.Replace(fileOf(t, hosts), `"resolve"`, `"resolve", "referrers"`, 1)
			if err := os.WriteFile(hosts, []byte(with), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		lab.resetLedgers()
		d.Docker("pull", "ghcr.io/org/app:1")
		direct := lab.ghcr.Ledger().Count(func(e hubtest.Entry) bool {
			return e.Kind == "referrers" && !strings.HasPrefix(e.Header.Get("User-Agent"), "Go-http-client/")
		})
		if (direct == 0) != capability {
			t.Errorf("with the capability %v: %d requests for referrers went past the cache", capability, direct)
		}
		d.Docker("image", "prune", "--all", "--force")
	}
}
