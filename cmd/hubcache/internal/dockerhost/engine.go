// Package dockerhost is what the program knows of a host that runs Docker: how its engine
// pulls through a mirror, how a command holds off the prune of its images, and what can be
// wrong on it.
package dockerhost

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/net/http/httpproxy"
)

// engineFacts decide how an engine is pointed at a mirror. All are what the engine says of
// itself.
type engineFacts struct {
	version    string
	major      int    // 20, 28, …; 0 if the version can't be read
	release    [3]int // the numbers of the version: 24.0.8
	containerd bool   // images are in containerd's store, not in a graphdriver's
	mirrors    []string
	podman     bool // it is Podman, which speaks Docker's API
	system     string
	root       string // its data root
	rootless   bool
	proxy      httpproxy.Config
}

// engineTimeout is how long an engine may take to say something of itself.
const engineTimeout = 30 * time.Second

// askEngine asks the engine for its facts.
func askEngine(ctx context.Context, at Location) (engineFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	c, err := at.Connect("docker setup")
	if err != nil {
		return engineFacts{}, err
	}
	defer c.Close()
	version, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return engineFacts{}, fmt.Errorf("ask the Docker engine at %s: %w", at, err)
	}
	info, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		return engineFacts{}, fmt.Errorf("ask the Docker engine at %s: %w", at, err)
	}
	f := factsOf(info.Info)
	f.podman = isPodman(version.Components)
	return f, nil
}

// isPodman reports whether an engine of these components is Podman.
func isPodman(components []system.ComponentVersion) bool {
	return slices.ContainsFunc(components, func(c system.ComponentVersion) bool { return c.Name == "Podman Engine" })
}

func factsOf(info system.Info) engineFacts {
	f := engineFacts{
		version: info.ServerVersion, release: releaseOf(info.ServerVersion), system: info.OperatingSystem, root: info.DockerRootDir,
		containerd: slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"}),
		rootless:   slices.Contains(info.SecurityOptions, "name=rootless"),
		proxy:      httpproxy.Config{HTTPProxy: info.HTTPProxy, HTTPSProxy: info.HTTPSProxy, NoProxy: info.NoProxy},
	}
	f.major = f.release[0]
	if info.RegistryConfig != nil {
		for _, m := range info.RegistryConfig.Mirrors {
			f.mirrors = append(f.mirrors, strings.TrimRight(m, "/"))
		}
	}
	return f
}

// releaseOf are the numbers of a version such as 20.10.24+dfsg1. A development build has no
// numbers and counts as old.
func releaseOf(version string) (r [3]int) {
	for i, part := range strings.SplitN(version, ".", 3) {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		r[i], _ = strconv.Atoi(digits) // none is 0
		if digits != part {
			break
		}
	}
	return r
}

// pathsSince is the first release that takes a path in a mirror's URL.
var pathsSince = [3]int{24, 0, 8}

// referrersSince is the first release that takes the capability referrers in a hosts.toml. An
// older one ignores a file with it.
var referrersSince = [3]int{29, 1, 0}

// hostsSince is the first major version that reads certs.d/<registry>/hosts.toml. It is
// also the first whose containerd store and BuildKit use one HTTP client for the mirror
// and for Docker Hub. A mirror on a loopback address needs no valid certificate, and with
// that client Docker Hub needs none either.
const hostsSince = 28

// usesMirrors reports whether the mirror belongs into registry-mirrors. The graphdriver store and
// engines that don't read hosts.toml pull by it alone. The others resolve the images of services by
// it, but on a loopback address it would be unsafe.
func (f engineFacts) usesMirrors(mirror string) bool {
	return !f.containerd || !f.readsHosts() || !isLoopback(mirror)
}

// readsHosts reports whether the engine reads the hosts.toml of each registry: for pulls if it has
// the containerd store, and for BuildKit, which graphdriver engines have too. It is the only way to
// a mirror of other registries than Docker Hub, and it takes the place of an unsafe loopback mirror.
func (f engineFacts) readsHosts() bool { return f.major >= hostsSince }

func (f engineFacts) takesReferrers() bool {
	return slices.Compare(f.release[:], referrersSince[:]) >= 0
}

// hostsFiles are the files that the engine needs for these registries. Docker Hub's has the other
// mirrors of the engine too, since the engine asks no mirror that the file doesn't name.
func (f engineFacts) hostsFiles(mirror string, registries []Registry, certs string, planned []string) (files []hostsFile) {
	if !f.readsHosts() {
		return nil
	}
	for _, r := range registries {
		h := hostsFile{registry: r, mirrors: []string{mirror}, referrers: f.takesReferrers(), certs: certs, planned: planned}
		if r.Name == hubName {
			h.mirrors = append(h.mirrors, slices.DeleteFunc(slices.Clone(f.mirrors), func(m string) bool { return sameMirror(m, mirror) })...)
		}
		files = append(files, h)
	}
	return files
}

// unsafeLoopback reports whether the mirror that the engine has makes it accept any
// certificate for Docker Hub, unless there is a hosts.toml.
func (f engineFacts) unsafeLoopback() bool {
	return f.major >= hostsSince && slices.ContainsFunc(f.mirrors, isLoopback)
}

// snap reports whether the engine is a snap.
func (f engineFacts) snap() bool { return strings.HasPrefix(f.root, "/var/snap/docker/") }

// uses reports whether the engine has the mirror in its list.
func (f engineFacts) uses(mirror string) bool {
	return slices.ContainsFunc(f.mirrors, func(m string) bool { return sameMirror(m, mirror) })
}

// notes are what else the user should know about this engine and this mirror.
func (f engineFacts) notes(mirror string, registries []Registry) []string {
	var notes []string
	plain := strings.HasPrefix(mirror, "http://")
	if f.major < hostsSince && plain && !isLoopback(mirror) {
		// With the scheme: 20.10 reads a bare host:port as a URL, fails, and takes https.
		notes = append(notes, fmt.Sprintf("engine %s asks a mirror by https when it builds (BuildKit), unless insecure-registries in daemon.json lists %q; pulls are not affected",
			f.version, mirror))
	}
	if f.readsHosts() && !f.containerd {
		notes = append(notes, "registry-mirrors is for docker pull, hosts.toml for docker build")
	}
	if note := f.pathNote(mirror, registries); note != "" {
		notes = append(notes, note)
	}
	if note := f.proxyNote(mirror); note != "" {
		notes = append(notes, note)
	}
	return notes
}

// pathNote says how images of other registries are pulled through the cache by an engine whose
// mirrors are for Docker Hub alone; "" if there are no others.
func (f engineFacts) pathNote(mirror string, registries []Registry) string {
	var names []string
	for _, r := range registries {
		if r.Name != hubName && r.byPath() {
			names = append(names, r.Name)
		}
	}
	if len(names) == 0 || f.readsHosts() && f.containerd {
		return ""
	}
	_, at, _ := strings.Cut(mirror, "://")
	return fmt.Sprintf("when engine %s pulls, its mirrors are for Docker Hub alone; images of %s come through the cache by names that begin with it, such as %s/%s/…",
		f.version, strings.Join(names, ", "), at, names[0])
}

// proxyNote says that the engine asks the mirror through a proxy; "" if it doesn't.
func (f engineFacts) proxyNote(mirror string) string {
	proxy := f.proxyFor(mirror)
	if proxy == "" {
		return ""
	}
	u, _ := url.Parse(mirror) // proxyFor has parsed it
	return fmt.Sprintf("the engine asks %s through its proxy %s; if the proxy can't reach the cache, add %s to the daemon's NO_PROXY, which is %q now",
		mirror, proxy, u.Hostname(), f.proxy.NoProxy)
}

// proxyFor is the proxy through which the engine would reach the mirror; "" for none. No
// proxy is used for a loopback address.
func (f engineFacts) proxyFor(mirror string) string {
	u, err := url.Parse(mirror)
	if err != nil {
		return ""
	}
	proxy, err := f.proxy.ProxyFunc()(u)
	if err != nil || proxy == nil {
		return ""
	}
	return proxy.Redacted()
}
