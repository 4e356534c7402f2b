//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// registriesLab has Docker Hub, ghcr.io and quay.io under their own names behind a proxy, and a
// hubcache that serves all three. Clients on its network can reach hubcache, and the registries
// through the proxy if they are told of it.
type registriesLab struct {
	hub, ghcr, quay *hubtest.Hub
	network         *dockertest.Network
	proxy           *connectProxy
	ca              string
	cache           *server
}

// The account of hubcache at quay.io. One of its private repositories is named, and one isn't.
const (
	quayUser = "acme+robot"
	quayPAT  = "quay-Robot-Zx82-Integration"
)

// labRegistries are the names of the lab's registries.
var labRegistries = []string{"docker.io", "ghcr.io", "quay.io"}

func newRegistriesLab(t testing.TB) *registriesLab {
	t.Helper()
	lab := &registriesLab{network: dockertest.NewNetwork(t)}
	lab.hub = startHub(t, hubtest.Options{TLS: true, AccountLimit: hubtest.Unlimited, AnonymousLimit: hubtest.Unlimited,
		RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com"})
	lab.ghcr = startHub(t, hubtest.Options{TLS: true, Accounts: []hubtest.Account{}, AnonymousLimit: hubtest.Unlimited, Seed: 1,
		RegistryName: "ghcr.io", TokenName: "auth.ghcr.io", CDNName: "pkg-containers.githubusercontent.com"})
	lab.quay = startHub(t, hubtest.Options{TLS: true, AccountLimit: hubtest.Unlimited, AnonymousLimit: hubtest.Unlimited, Seed: 2,
		RegistryName: "quay.io", TokenName: "auth.quay.io", CDNName: "cdn01.quay.io",
		Accounts: []hubtest.Account{{Username: quayUser, PAT: quayPAT, Private: []string{"*"}}}})
	lab.proxy = startProxy(t, lab.network.Addr.String(), lab.hub, lab.ghcr, lab.quay)
	lab.ca = writeCA(t, lab.hub, lab.ghcr, lab.quay)
	token := lab.ca + ".quay"
	if err := os.WriteFile(token, []byte(quayPAT+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := fmt.Sprintf("{registries: {ghcr.io: {ca_file: %q}, quay.io: {username: %q, password_file: %q, ca_file: %q, private: [acme/named]}}}",
		lab.ca, quayUser, token, lab.ca)
	lab.cache = startServer(t, serverOptions{
		Upstream: "https://registry-1.docker.io", Host: lab.network.Addr.String(),
		Env:  []string{"HTTPS_PROXY=" + lab.proxy.URL, "HUBCACHE_SETTINGS=" + settings},
		Args: []string{"--upstream-ca-file", lab.ca},
	})
	t.Cleanup(func() {
		if strings.Contains(lab.cache.Log(), quayPAT) {
			t.Error("hubcache's log has the token of quay.io")
		}
	})
	return lab
}

// registry is the fake registry of that name.
func (lab *registriesLab) registry(name string) *hubtest.Hub {
	switch name {
	case "ghcr.io":
		return lab.ghcr
	case "quay.io":
		return lab.quay
	}
	return lab.hub
}

// image adds an image that runs to one of the registries.
func (lab *registriesLab) image(t testing.TB, registry, repository, tag string, layers int) labImage {
	t.Helper()
	return labImage{registry, runnableImage(t, lab.registry(registry), repository, tag, layers, 1<<20, hubtest.ImageSpec{})}
}

// labImage is an image of one of the registries.
type labImage struct {
	registry string
	*hubtest.Image
}

// reference is the whole name.
func (i labImage) reference() string { return i.registry + "/" + i.Repository + ":" + i.Tag }

// inCache is the name under which the cache has it for clients that know of no mirrors.
func (i labImage) inCache(cache *server) string {
	if i.registry == "docker.io" {
		return cache.Addr + "/" + i.Repository + ":" + i.Tag
	}
	return cache.Addr + "/" + i.reference()
}

// direct are the requests for manifests and blobs that were not made by hubcache.
func (lab *registriesLab) direct(registry string) hubtest.Ledger {
	return lab.registry(registry).Ledger().Filter(func(e hubtest.Entry) bool {
		return (e.Kind == "manifests" || e.Kind == "blobs") && !strings.HasPrefix(e.Header.Get("User-Agent"), "Go-http-client/")
	})
}

func (lab *registriesLab) resetLedgers() {
	for _, r := range labRegistries {
		lab.registry(r).ResetLedger()
	}
}

// ownWay is the environment of a client that can reach the registries itself when the cache can't
// help.
func (lab *registriesLab) ownWay() []string {
	return []string{"HTTPS_PROXY=" + lab.proxy.URL, "NO_PROXY=" + lab.network.Addr.String(), "SSL_CERT_FILE=" + lab.ca}
}

// noWay is the environment of a client that can reach nothing but the cache.
func (lab *registriesLab) noWay() []string {
	return append(deadProxy(lab.cache), "SSL_CERT_FILE="+lab.ca)
}

// setup runs docker setup for this lab's cache and registries, and returns what it prints.
func (lab *registriesLab) setup(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(hubcacheProgram(t), append([]string{"docker", "setup", "--mirror", lab.cache.URL}, args...)...)
	cmd.Env = append(os.Environ(), "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_ADMIN="+lab.cache.Admin)
	return runCommand(t, cmd)
}
