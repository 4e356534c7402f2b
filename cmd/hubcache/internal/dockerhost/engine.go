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

// hostsSince is the first major version that reads certs.d/<registry>/hosts.toml. It is
// also the first whose containerd store and BuildKit use one HTTP client for the mirror
// and for Docker Hub. A mirror on a loopback address needs no valid certificate, and with
// that client Docker Hub needs none either.
const hostsSince = 28

// usesMirrors reports whether registry-mirrors is what points the engine at the mirror:
// for the graphdriver store, for engines that don't read hosts.toml, and for mirrors that
// aren't on a loopback address.
func (f engineFacts) usesMirrors(mirror string) bool {
	return !f.containerd || !f.needsHosts(mirror)
}

// needsHosts reports whether a hosts.toml is needed. It takes the place of an unsafe
// loopback mirror in the containerd store, and in BuildKit, which graphdriver engines have
// too.
func (f engineFacts) needsHosts(mirror string) bool {
	return f.major >= hostsSince && isLoopback(mirror)
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
	if note := f.proxyNote(mirror); note != "" {
		notes = append(notes, note)
	}
	return notes
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
