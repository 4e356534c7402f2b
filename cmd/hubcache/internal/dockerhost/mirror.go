package dockerhost

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// MirrorURL is the URL by which this host reaches the pull API: the first TCP address of
// listen, or loopback if that is every address. "" if it listens on no TCP address.
func MirrorURL(s *settings.Settings) string { return mirrorURL(s.Listen, s.TLS.CertFile != "") }

func mirrorURL(listen []string, tls bool) string {
	scheme := "http://"
	if tls {
		scheme = "https://"
	}
	for _, addr := range listen {
		host, port, err := net.SplitHostPort(addr)
		if strings.HasPrefix(addr, "unix:") || err != nil {
			continue
		}
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		return scheme + net.JoinHostPort(host, port)
	}
	return ""
}

// isLoopback reports whether the host of the URL is a loopback address.
func isLoopback(mirror string) bool {
	u, err := url.Parse(mirror)
	if err != nil {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.Unmap().IsLoopback()
}

// withMirror is the list with the mirror first, or, unless it is wanted, without it.
func withMirror(mirrors []string, mirror string, want bool) []string {
	has := func(m string) bool { return strings.TrimRight(m, "/") == mirror }
	switch found := slices.ContainsFunc(mirrors, has); {
	case want && !found:
		return append([]string{mirror}, mirrors...)
	case !want && found:
		return slices.DeleteFunc(slices.Clone(mirrors), has)
	}
	return mirrors
}

// hostsTOML is containerd's configuration of Docker Hub: ask the mirror, then Docker Hub.
func hostsTOML(mirror string) string {
	return fmt.Sprintf(`server = "https://registry-1.docker.io"

[host.%q]
  capabilities = ["pull", "resolve"]
`, mirror)
}

// snippets are the configurations of the other clients.
func snippets(mirror string) string {
	location := mirror
	insecure := ""
	if rest, ok := strings.CutPrefix(mirror, "http://"); ok {
		location, insecure = rest, "insecure = true\n"
	}
	location = strings.TrimPrefix(location, "https://")
	plain := ""
	if insecure != "" {
		plain = fmt.Sprintf("[registry.%q]\n  http = true\n", location)
	}
	return fmt.Sprintf(`
For containerd, /etc/containerd/certs.d/docker.io/hosts.toml
(and config_path = "/etc/containerd/certs.d" in its registry section):

%s
For podman, CRI-O and skopeo, /etc/containers/registries.conf.d/hubcache.conf:

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = %q
%s
For a BuildKit of its own, /etc/buildkit/buildkitd.toml:

[registry."docker.io"]
  mirrors = [%q]
%s`, hostsTOML(mirror), location, insecure, location, plain)
}
