package dockerhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// askRegistries asks the pull port for each further registry as containerd does, so that the server
// asks that registry now, and returns the server's figures after that. With hub it asks for Docker Hub
// in that way too, where there is no Docker engine that can be made to.
func (d *Doctor) askRegistries(ctx context.Context, hub bool, before admin.Stats) (admin.Stats, error) {
	asked := false
	for _, u := range d.running.Upstreams() {
		if u.Name == hubName && !hub {
			continue
		}
		asked = true
		check := "pull " + u.Name
		status, code, detail, err := d.askManifest(ctx, probeOf(u), u.Name)
		switch {
		case err != nil:
			d.broken(check, fmt.Sprintf("%s answers /v2/, and no request with ?ns=%s: %v", d.mirror(), u.Name, err), "look into the server's log (journalctl -u hubcache)")
		case status == http.StatusNotFound && strings.Contains(detail, "does not serve the registry"):
			d.broken(check, fmt.Sprintf("what answers at %s does not serve %s", d.mirror(), u.Name), "add it to registries in the server's settings, and reload the server")
		case status < http.StatusInternalServerError:
			d.ok(check, "%s is served with ?ns=%s", d.mirror(), u.Name)
		default:
			d.note(check, fmt.Sprintf("%s answers ?ns=%s with %d %s %s", d.mirror(), u.Name, status, code, detail), "")
		}
	}
	if !asked {
		return before, nil
	}
	stats, _, err := d.client.Stats(ctx)
	return stats, err
}

// probeOf is the repository that is asked for: one that the server serves.
func probeOf(u settings.Upstream) string {
	for _, pattern := range u.Allow {
		if !strings.ContainsAny(pattern, "*?[\\") {
			return pattern
		}
	}
	if u.Name == hubName {
		return "library/busybox"
	}
	return "hubcache/doctor"
}

// checkClients looks whether the engine, or containerd where there is none, asks the cache for each
// registry.
func (d *Doctor) checkClients(ctx context.Context, e *engine) {
	switch {
	case e == nil:
		d.checkContainerd(ctx)
	case !e.facts.podman:
		d.checkEngineRegistries(e)
	}
}

// checkEngineRegistries looks at the hosts.toml of each further registry.
func (d *Doctor) checkEngineRegistries(e *engine) {
	urls := d.pullURLs()
	if len(urls) == 0 {
		return
	}
	registries := registriesOf(d.running)
	if note := e.facts.pathNote(urls[0], registries); note != "" {
		d.note("docker", note, "")
	}
	if !e.facts.readsHosts() {
		return
	}
	for _, r := range registries {
		if r.Name == hubName {
			continue // see checkMirror
		}
		d.checkHosts("docker "+r.Name, r, d.certs, urls, e.facts.takesReferrers(), "hubcache docker setup --apply")
	}
}

// checkHosts looks at the hosts.toml of a registry.
func (d *Doctor) checkHosts(check string, r Registry, certs string, urls []string, referrers bool, remedy string) {
	path := fileName(certs, r.Name)
	hosts, err := readHosts(path, referrers)
	_, named := hosts.asks(urls)
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.note(check, "this user may not look at "+path, "run doctor as root")
	case errors.Is(err, fs.ErrNotExist):
		d.note(check, fmt.Sprintf("images of %s don't come through the cache: there is no %s", r.Name, path), remedy)
	case err != nil:
		d.broken(check, fmt.Sprintf("images of %s don't come through the cache: %s: %v", r.Name, path, err), "correct the file, or remove it and run "+remedy)
	case !named:
		d.note(check, fmt.Sprintf("images of %s don't come through the cache: %s doesn't name %s first", r.Name, path, urls[0]), "add it to the file, or remove the file and run "+remedy)
	default:
		d.ok(check, "%s names %s", path, urls[0])
	}
}

// readHosts reads a hosts.toml. The error says why a client that takes referrers, or doesn't, can't use
// it.
func readHosts(path string, referrers bool) (parsedHosts, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return parsedHosts{}, err
	}
	p, err := parseHosts(body)
	if err != nil {
		return parsedHosts{}, fmt.Errorf("it can't be read: %w", err)
	}
	known := []string{"pull", "resolve", "push"}
	if referrers {
		known = append(known, "referrers")
	}
	for _, c := range p.capabilities {
		if !slices.Contains(known, strings.ToLower(c)) {
			return parsedHosts{}, fmt.Errorf("its client ignores it because of the capability %q", c)
		}
	}
	return p, nil
}

// checkContainerd looks at a containerd without Docker, as Kubernetes and nerdctl use it.
func (d *Doctor) checkContainerd(ctx context.Context) {
	socket := cmp.Or(d.Containerd, containerdSocket)
	if _, err := os.Stat(socket); err != nil {
		return // there is none
	}
	c, err := findContainerd(ctx, socket)
	if err != nil {
		d.note("containerd", fmt.Sprintf("there is a containerd at %s, and nobody can tell whether it pulls through the cache: %v", socket, err), "run doctor as root")
		return
	}
	switch {
	case !c.cri:
		d.note("containerd", fmt.Sprintf("containerd %s has its part for Kubernetes (CRI) disabled", c.version), "nerdctl reads "+containerdCerts+" by itself, and ctr with --hosts-dir")
	case c.legacy:
		d.broken("containerd", fmt.Sprintf("containerd %s has mirrors or registries in its own configuration, with which it reads no hosts.toml", c.version), "move them into hosts.toml files, and set config_path = \""+containerdCerts+"\"; hubcache docker setup --for containerd shows where")
	case len(c.paths) == 0:
		d.broken("containerd", fmt.Sprintf("containerd %s reads no directory of registries: config_path is empty", c.version), "set config_path = \""+containerdCerts+"\" in its configuration and restart it; hubcache docker setup --for containerd shows where")
	default:
		d.ok("containerd", "containerd %s reads %s", c.version, strings.Join(c.paths, ", "))
	}
	urls := d.pullURLs()
	if len(urls) == 0 {
		return
	}
	for _, r := range registriesOf(d.running) {
		d.checkHosts("containerd "+r.Name, r, c.dir(r.Name), urls, c.takesReferrers(), "hubcache docker setup --for containerd --apply")
	}
}
