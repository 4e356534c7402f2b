package dockerhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

// engine is a Docker engine that answers. nil is none.
type engine struct {
	*client.Client
	at    Location
	info  system.Info
	facts engineFacts
}

func (e *engine) close() {
	if e != nil {
		e.Close()
	}
}

// certs is the directory with a directory for each registry, of the engine's process; "" if that
// can't be known.
func (e *engine) certs() string {
	if e == nil || e.at.socket() == "" {
		return ""
	}
	p, err := findDaemon(e.at.socket(), "")
	if err != nil {
		return ""
	}
	s, f := Setup{Engine: e.at}, daemonFiles{process: &p}
	if err := s.fillPaths(&f, e.facts); err != nil {
		return ""
	}
	return f.certs
}

// insecure reports whether the engine asks for no certificate at a host and port.
func (e *engine) insecure(host string) bool {
	if e == nil || e.info.RegistryConfig == nil {
		return false
	}
	if index := e.info.RegistryConfig.IndexConfigs[host]; index != nil && !index.Secure {
		return true
	}
	name, _, _ := strings.Cut(host, ":")
	ap, err := netip.ParseAddrPort(host)
	if err != nil {
		return name == "localhost" // which resolves to one of the addresses below
	}
	return slices.ContainsFunc(e.info.RegistryConfig.InsecureRegistryCIDRs, func(p netip.Prefix) bool { return p.Contains(ap.Addr().Unmap()) })
}

// findEngine asks the Docker engine for its facts; nil when there is none.
func (d *Doctor) findEngine(ctx context.Context) *engine {
	at, err := Locate(d.Host, d.Settings)
	if err != nil {
		d.broken("docker", err.Error(), "")
		return nil
	}
	c, err := at.Connect("doctor")
	if err != nil {
		d.broken("docker", err.Error(), "")
		return nil
	}
	limited, cancel := d.limit(ctx)
	defer cancel()
	info, err := c.Info(limited, client.InfoOptions{})
	if err == nil {
		e := &engine{c, at, info.Info, factsOf(info.Info)}
		version, err := c.ServerVersion(limited, client.ServerVersionOptions{})
		e.facts.podman = err == nil && isPodman(version.Components)
		return e
	}
	c.Close()
	const where = "--host, docker.host, DOCKER_HOST or the docker context say where it is"
	path, local := strings.CutPrefix(at.Host, "unix://")
	if _, missing := os.Stat(path); local && errors.Is(missing, fs.ErrNotExist) {
		d.note("docker", "there is no Docker engine at "+at.String(), "nothing to do on a machine without one; else "+where)
	} else {
		d.broken("docker", "no Docker engine answers at "+at.String()+", so nobody can tell whether it pulls through the cache: "+err.Error(), "start Docker, or run doctor as root; "+where)
	}
	return nil
}

// limit bounds what the engine is asked: it may take a request and never answer.
func (d *Doctor) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(d.patience, engineTimeout))
}

// checkMirror looks whether the Docker daemon has the mirror, and whether that is safe. It is not
// sure when the daemon has other mirrors: one of them may be another name of the cache.
func (d *Doctor) checkMirror(e *engine) (sure bool) {
	urls := d.pullURLs()
	if e == nil || len(urls) == 0 {
		return true
	}
	if e.facts.podman {
		d.checkPodman(e.facts, urls)
		return true
	}
	f := e.facts
	path := fileName(d.certs, hubName)
	hosts, err := readHosts(path, f.takesReferrers())
	_, inHosts := hosts.asks(urls)
	byHosts := f.readsHosts() && f.containerd
	if proxy := f.proxyNote(urls[0]); proxy != "" {
		d.note("proxy", proxy, "")
	}
	mine := slices.IndexFunc(f.mirrors, func(m string) bool { return slices.ContainsFunc(urls, func(u string) bool { return sameMirror(u, m) }) })
	d.hostsAlone = byHosts && inHosts && mine < 0
	switch {
	case byHosts && err != nil && !errors.Is(err, fs.ErrNotExist):
		d.broken("docker", fmt.Sprintf("engine %s can't use %s: %v", f.version, path, err), "correct the file, or remove it and run hubcache docker setup --apply")
	case byHosts && len(hosts.hosts) > 0 && !inHosts:
		d.broken("docker", fmt.Sprintf("%s doesn't name %s first, and engine %s pulls by that file alone", path, urls[0], f.version), "add it to the file, or remove the file and run hubcache docker setup --apply")
	case f.unsafeLoopback() && !inHosts:
		d.broken("docker", fmt.Sprintf("engine %s with a mirror on a loopback address accepts any certificate for Docker Hub when it falls back", f.version),
			"hubcache docker setup --apply writes a hosts.toml instead; or let hubcache listen on another address")
	case mine > 0:
		d.note("docker", fmt.Sprintf("engine %s asks another mirror first: %s", f.version, f.mirrors[0]), "put "+f.mirrors[mine]+" first in registry-mirrors")
	case mine == 0, inHosts && byHosts:
		d.ok("docker", "engine %s has the mirror %s", f.version, urls[0])
	case len(f.mirrors) > 0:
		return false
	default:
		d.noMirror(e)
	}
	return true
}

// noMirror says that the daemon has none that is the cache.
func (d *Doctor) noMirror(e *engine) {
	d.broken("docker", fmt.Sprintf("engine %s does not have the mirror %s (it has: %s)", e.facts.version, d.mirror(), orNone(e.facts.mirrors)), "hubcache docker setup --apply")
}

// checkUse makes the daemon ask for a manifest and looks whether the cache was asked. The daemon
// itself doesn't say when it falls back to Docker Hub. served says that the cache serves the image;
// sure that checkMirror was.
func (d *Doctor) checkUse(ctx context.Context, e *engine, served, sure bool) {
	if e == nil || e.facts.podman {
		return
	}
	if d.hostsAlone {
		d.note("pull", "engine "+e.facts.version+" asks the cache only when it pulls, and not for what doctor makes it ask for, so nobody can tell whether it does", "pull an image and look at hubcache stats")
		return
	}
	before, _, err := d.client.Stats(ctx)
	if err != nil {
		d.broken("pull", err.Error(), "")
		return
	}
	limited, cancel := d.limit(ctx)
	defer cancel()
	_, asked := e.DistributionInspect(limited, d.Image, client.DistributionInspectOptions{})
	after, _, err := d.client.Stats(ctx)
	if err != nil {
		d.broken("pull", err.Error(), "")
		return
	}
	used := after.Requests.Manifest.Total() != before.Requests.Manifest.Total()
	switch {
	case !used && !sure:
		d.noMirror(e)
		return
	case !sure:
		d.ok("docker", "engine %s has a mirror that is the cache (%s)", e.facts.version, orNone(e.facts.mirrors))
	}
	cause := d.brokenIn("docker", "server", "token", "upstream "+hubName, "clock")
	switch {
	case !used && cause:
		d.note("pull", "the daemon asked for "+d.Image+" and not through the cache, for what is broken above", "")
	case !used:
		d.broken("pull", "the daemon has the mirror and does not use it: it asked for "+d.Image+" and not through the cache", e.whyUnused(d.mirror()))
	case asked == nil:
		d.ok("pull", "the daemon asked for %s through the cache", d.Image)
	case cause:
		d.note("pull", "the daemon asked the cache for "+d.Image+" and got, for what is broken above: "+asked.Error(), "")
	case !served:
		d.ok("pull", "the daemon asked for %s through the cache, which doesn't serve it", d.Image)
	default:
		d.broken("pull", "the daemon asked the cache for "+d.Image+" and got: "+asked.Error(), "look into the server's log (journalctl -u hubcache)")
	}
}

// brokenIn reports whether one of these checks found something broken.
func (d *Doctor) brokenIn(checks ...string) bool {
	return slices.ContainsFunc(d.findings, func(f Finding) bool {
		return f.Status == StatusBroken && slices.Contains(checks, f.Check)
	})
}

// whyUnused is what to look at when the engine has the mirror and doesn't use it.
func (e *engine) whyUnused(mirror string) string {
	if note := e.facts.proxyNote(mirror); note != "" {
		return note
	}
	return "the daemon's log says why (journalctl -u docker)"
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
