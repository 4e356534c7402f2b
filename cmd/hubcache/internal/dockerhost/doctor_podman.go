package dockerhost

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// podmanRegistry is one registry of Podman's registries.conf.
type podmanRegistry struct {
	Prefix   string
	Location string
	Mirror   []struct{ Location string }
}

// podmanRegistries are those of all of Podman's files. One that can't be read has none.
func (d *Doctor) podmanRegistries() (list []podmanRegistry) {
	dir := filepath.Join(cmp.Or(d.Root, "/"), "etc/containers")
	files, _ := filepath.Glob(filepath.Join(dir, "registries.conf.d", "*.conf")) // the pattern has no fault
	for _, file := range append(files, filepath.Join(dir, "registries.conf")) {
		body, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var conf struct{ Registry []podmanRegistry }
		if toml.Unmarshal(body, &conf) == nil {
			list = append(list, conf.Registry...)
		}
	}
	return list
}

// checkPodman looks into Podman's own files for the mirror of each registry. Podman asks for nothing
// without pulling it, so nobody can tell whether it uses the mirror.
func (d *Doctor) checkPodman(f engineFacts, urls []string) {
	conf := d.podmanRegistries()
	const advice = "hubcache docker setup --for podman prints what to write into /etc/containers/registries.conf.d"
	for _, r := range registriesOf(d.running) {
		if !r.byPath() {
			continue
		}
		has := slices.ContainsFunc(conf, func(p podmanRegistry) bool {
			return cmp.Or(p.Prefix, p.Location) == r.Name && slices.ContainsFunc(p.Mirror, func(m struct{ Location string }) bool {
				return slices.ContainsFunc(urls, func(u string) bool { return mirrorLocation(u, r) == m.Location })
			})
		})
		check := "docker " + r.Name
		if r.Name == hubName {
			check = "docker"
		}
		switch at := mirrorLocation(urls[0], r); {
		case has:
			d.ok(check, "Podman %s has the mirror %s", f.version, at)
		case r.Name == hubName:
			d.broken(check, fmt.Sprintf("Podman %s has no mirror %s for %s", f.version, at, r.Name), advice)
		default:
			d.note(check, fmt.Sprintf("Podman %s has no mirror %s for %s, so its images don't come through the cache", f.version, at, r.Name), advice)
		}
	}
}

// mirrorLocation is what a registries.conf calls the mirror of a registry.
func mirrorLocation(mirror string, r Registry) string {
	_, at, _ := strings.Cut(mirror, "://")
	if r.Name != hubName {
		at += "/" + r.Name
	}
	return at
}
