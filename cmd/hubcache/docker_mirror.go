package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/system"
)

// engineFacts are what decides how an engine is pointed at a mirror.
type engineFacts struct {
	version    string
	major      int  // 20, 28, …; 0 if the version can't be read
	containerd bool // images are in containerd's store, not in a graphdriver's
	mirrors    []string
}

func factsOf(info system.Info) engineFacts {
	f := engineFacts{version: info.ServerVersion}
	major, _, _ := strings.Cut(info.ServerVersion, ".")
	f.major, _ = strconv.Atoi(major) // a development build has no number: treated as old
	f.containerd = slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
	if info.RegistryConfig != nil {
		for _, m := range info.RegistryConfig.Mirrors {
			f.mirrors = append(f.mirrors, strings.TrimRight(m, "/"))
		}
	}
	return f
}

// hostsSince is the first engine that reads certs.d/<registry>/hosts.toml, and the first
// whose containerd store and BuildKit share one HTTP client between mirror and Hub: with a
// loopback mirror, which needs no valid certificate, Hub's isn't checked either.
const hostsSince = 28

// usesMirrors reports whether registry-mirrors is the way. It is for the graphdriver
// store, for engines that know no hosts.toml, and for mirrors that aren't loopback.
func (f engineFacts) usesMirrors(mirror string) bool {
	return !f.containerd || !f.needsHosts(mirror)
}

// needsHosts reports whether a hosts.toml is needed: in the containerd store and in
// BuildKit, which graphdriver engines have too, it replaces an unsafe loopback mirror.
func (f engineFacts) needsHosts(mirror string) bool {
	return f.major >= hostsSince && isLoopback(mirror)
}

// unsafeLoopback reports whether the mirror that the engine has makes it accept any
// certificate for Docker Hub, unless a hosts.toml takes its place.
func (f engineFacts) unsafeLoopback() bool {
	return f.major >= hostsSince && slices.ContainsFunc(f.mirrors, isLoopback)
}

func (f engineFacts) notes(mirror string) []string {
	var notes []string
	plain := strings.HasPrefix(mirror, "http://")
	if f.major < hostsSince && plain && !isLoopback(mirror) {
		// With the scheme: 20.10 reads a bare host:port as a URL, fails, and takes https.
		notes = append(notes, fmt.Sprintf("engine %s asks a mirror by https when it builds (BuildKit), unless insecure-registries in daemon.json lists %q; pulls are not affected",
			f.version, mirror))
	}
	if f.needsHosts(mirror) && !f.containerd {
		notes = append(notes, "registry-mirrors is for docker pull, hosts.toml for docker build")
	}
	return notes
}

// mirrorURL is the URL of the pull API on this machine: the first TCP address of listen,
// and loopback where that is every address. "" if it listens on no TCP address.
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

// isLoopback reports whether the URL names this machine itself.
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

// withMirror is the list with the mirror first, or without it.
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

// hostsTOML is containerd's configuration of one registry: the mirror, then the registry.
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

// object is a JSON object that keeps the order of its keys, and what it doesn't know.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

const mirrorsKey = "registry-mirrors"

// parseObject reads an object; nothing at all is an empty one, as the daemon has it.
func parseObject(body []byte) (object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is not a JSON object"), err)
	}
	var o object
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: key.(string)} // within an object a token is a key
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		if o.index(m.key) >= 0 {
			return nil, fmt.Errorf("%q is there twice", m.key)
		}
		o = append(o, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows the object")
	}
	return o, nil
}

func (o object) index(key string) int {
	return slices.IndexFunc(o, func(m member) bool { return m.key == key })
}

func (o object) mirrors() ([]string, error) {
	i := o.index(mirrorsKey)
	if i < 0 {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal(o[i].value, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", mirrorsKey, err)
	}
	return list, nil
}

// setMirrors sets the list. An empty one stays in the file: a daemon that reloads and
// finds no list keeps the mirrors that it has.
func (o *object) setMirrors(mirrors []string) {
	value, _ := json.Marshal(append([]string{}, mirrors...)) // strings always can be
	if i := o.index(mirrorsKey); i < 0 {
		*o = append(*o, member{mirrorsKey, value})
	} else {
		(*o)[i].value = value
	}
}

// bytes is the object indented as people write it.
func (o object) bytes() []byte {
	var flat, out bytes.Buffer
	flat.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			flat.WriteByte(',')
		}
		key, _ := json.Marshal(m.key)
		flat.Write(key)
		flat.WriteByte(':')
		flat.Write(m.value)
	}
	flat.WriteByte('}')
	_ = json.Indent(&out, flat.Bytes(), "", "  ") // it was put together from valid parts
	out.WriteByte('\n')
	return out.Bytes()
}
