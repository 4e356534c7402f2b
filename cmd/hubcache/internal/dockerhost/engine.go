// Package dockerhost is what the program knows of a host that runs Docker: how its engine
// pulls through a mirror, how a command holds off the prune of its images, and what can be
// wrong on it.
package dockerhost

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

// engineFacts decide how an engine is pointed at a mirror.
type engineFacts struct {
	version    string
	major      int  // 20, 28, …; 0 if the version can't be read
	containerd bool // images are in containerd's store, not in a graphdriver's
	mirrors    []string
}

// askEngine asks the engine for its facts.
func askEngine(ctx context.Context, at Location) (engineFacts, error) {
	c, err := at.Connect("docker setup")
	if err != nil {
		return engineFacts{}, err
	}
	defer c.Close()
	info, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		return engineFacts{}, fmt.Errorf("ask the Docker engine at %s: %w", at, err)
	}
	return factsOf(info.Info), nil
}

func factsOf(info system.Info) engineFacts {
	f := engineFacts{version: info.ServerVersion}
	major, _, _ := strings.Cut(info.ServerVersion, ".")
	f.major, _ = strconv.Atoi(major) // a development build has no number and counts as old
	f.containerd = slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
	if info.RegistryConfig != nil {
		for _, m := range info.RegistryConfig.Mirrors {
			f.mirrors = append(f.mirrors, strings.TrimRight(m, "/"))
		}
	}
	return f
}

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
	return notes
}
