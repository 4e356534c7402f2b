package dockerhost

import (
	"fmt"
	"slices"
	"strings"
)

// clientFile is the file by which a client other than Docker gets its mirrors.
type clientFile struct {
	name, program string
	path          string
	reload        string // how the client is made to read it
	content       func(mirror string, registries []Registry) string
}

// clientFiles are the clients whose file setup prints. containerd's are in a directory; setup can
// write them too.
var clientFiles = []clientFile{
	{"podman", "Podman, Buildah and skopeo", "/etc/containers/registries.conf.d/hubcache.conf", "", registriesConf},
	{"crio", "CRI-O", "/etc/containers/registries.conf.d/hubcache.conf", "systemctl reload crio", registriesConf},
	{"k3s", "k3s and RKE2", "/etc/rancher/k3s/registries.yaml (RKE2: /etc/rancher/rke2/registries.yaml)", "systemctl restart k3s", registriesYAML},
	{"buildkit", "a BuildKit of its own", "/etc/buildkit/buildkitd.toml", "systemctl restart buildkit", buildkitdTOML},
}

// OtherClients are the names of the clients beside Docker, as docker setup --for takes them.
func OtherClients() []string {
	names := []string{"containerd"}
	for _, c := range clientFiles {
		names = append(names, c.name)
	}
	return names
}

// ClientFile is the file that one of OtherClients but containerd needs, to be printed, with a comment
// that says where it belongs. A mirror that no client could use is a usage error.
func (s *Setup) ClientFile(client string) (string, error) {
	if err := checkMirror(s.Mirror); err != nil {
		return "", s.wrongMirror(err)
	}
	i := slices.IndexFunc(clientFiles, func(c clientFile) bool { return c.name == client })
	if i < 0 {
		return "", fmt.Errorf("there is no file for %s", client)
	}
	c := clientFiles[i]
	head := fmt.Sprintf("# For %s: %s\n", c.program, c.path)
	if c.reload != "" {
		head += fmt.Sprintf("# Then: %s\n", c.reload)
	}
	return head + c.content(s.Mirror, s.registries()), nil
}

// splitMirror is the URL without its scheme, and whether that is plain http.
func splitMirror(mirror string) (at string, plain bool) {
	scheme, at, _ := strings.Cut(mirror, "://")
	return at, scheme == "http"
}

// registriesConf is the part of a registries.conf for programs that use containers/image. They don't
// send ?ns=, so the registry is the first part of the path.
func registriesConf(mirror string, registries []Registry) string {
	_, plain := splitMirror(mirror)
	var b strings.Builder
	for _, r := range registries {
		if !r.byPath() {
			fmt.Fprintf(&b, "\n# Not through the cache: %s. A name with a port can't be in a path.\n", r.Name)
			continue
		}
		fmt.Fprintf(&b, "\n[[registry]]\nprefix = %q\nlocation = %q\n\n[[registry.mirror]]\nlocation = %q\n", r.Name, r.Name, mirrorLocation(mirror, r))
		if plain {
			b.WriteString("insecure = true\n")
		}
	}
	return b.String()
}

// registriesYAML is k3s's registries.yaml, from which k3s makes the hosts.toml of its containerd.
func registriesYAML(mirror string, registries []Registry) string {
	var b strings.Builder
	b.WriteString("mirrors:\n")
	for _, r := range registries {
		fmt.Fprintf(&b, "  %q:\n    endpoint: [%q]\n", r.Name, mirror)
	}
	return b.String()
}

// buildkitdTOML is the part of a buildkitd.toml. BuildKit sends ?ns=, as containerd does.
func buildkitdTOML(mirror string, registries []Registry) string {
	at, plain := splitMirror(mirror)
	var b strings.Builder
	for _, r := range registries {
		fmt.Fprintf(&b, "[registry.%q]\n  mirrors = [%q]\n", r.Name, at)
	}
	if host, _, _ := strings.Cut(at, "/"); plain {
		fmt.Fprintf(&b, "[registry.%q]\n  http = true\n", host)
	}
	return b.String()
}
