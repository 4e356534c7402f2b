package dockerhost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/client"
)

// checkDaemon looks whether the Docker daemon has the mirror, whether that is safe, and,
// with the server's figures, whether it uses it.
func (d *Doctor) checkDaemon(ctx context.Context, haveStats bool) {
	at, err := Locate(d.Host, d.Settings)
	if err != nil {
		d.say("docker", StatusBroken, err.Error(), "")
		return
	}
	engine, err := at.Connect("doctor")
	if err != nil {
		d.say("docker", StatusBroken, err.Error(), "")
		return
	}
	defer engine.Close()
	info, err := engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		d.say("docker", StatusNote, "no Docker engine answers at "+at.String()+": "+err.Error(), "without one there is nothing to check; --host, docker.host, DOCKER_HOST or the docker context say where it is")
		return
	}
	facts := factsOf(info.Info)
	mirror := MirrorURL(d.Settings)
	hosts, _ := os.ReadFile(filepath.Join(d.Certs, "docker.io", "hosts.toml")) // no file counts as an empty one
	inHosts := strings.Contains(string(hosts), mirror)
	inMirrors := len(withMirror(facts.mirrors, mirror, false)) < len(facts.mirrors)
	switch {
	case !inMirrors && !(inHosts && facts.major >= hostsSince):
		d.say("docker", StatusBroken, fmt.Sprintf("engine %s does not have the mirror %s (it has: %s)", facts.version, mirror, orNone(facts.mirrors)), "hubcache docker setup --apply")
	case facts.unsafeLoopback() && !inHosts:
		d.say("docker", StatusBroken, fmt.Sprintf("engine %s with a mirror on a loopback address accepts any certificate for Docker Hub when it falls back", facts.version),
			"hubcache docker setup --apply writes a hosts.toml instead; or let hubcache listen on another address")
	default:
		d.ok("docker", "engine %s has the mirror %s", facts.version, mirror)
	}
	if haveStats {
		d.checkUse(ctx, engine)
	}
}

// checkUse makes the daemon ask for a manifest and looks whether the cache was asked. The
// daemon itself doesn't say when it falls back to Docker Hub.
func (d *Doctor) checkUse(ctx context.Context, engine *client.Client) {
	before, err := d.stats(ctx)
	if err != nil {
		d.say("pull", StatusBroken, err.Error(), "")
		return
	}
	_, asked := engine.DistributionInspect(ctx, d.Image, client.DistributionInspectOptions{})
	after, err := d.stats(ctx)
	if err != nil {
		d.say("pull", StatusBroken, err.Error(), "")
		return
	}
	switch {
	case after.Requests.Manifest.Total() == before.Requests.Manifest.Total():
		d.say("pull", StatusBroken, "the daemon asked for "+d.Image+" and not through the cache", "the daemon's log says why it did not use the mirror (journalctl -u docker)")
	case asked != nil:
		d.say("pull", StatusBroken, "the daemon asked the cache for "+d.Image+" and got: "+asked.Error(), "see the upstream above, or the server's log")
	default:
		d.ok("pull", "the daemon asked for %s through the cache", d.Image)
	}
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
