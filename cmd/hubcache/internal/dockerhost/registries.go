package dockerhost

import (
	"context"
	"net/url"
	"regexp"
	"strings"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

// hubName is Docker Hub's name in references, and the folder of its hosts.toml.
const hubName = settings.Hub

// Registry is a registry that the cache serves, as clients know it.
type Registry struct {
	Name   string // in references: docker.io, ghcr.io, registry.lan:5000
	Server string // its own URL, to which clients fall back
}

// NewRegistry returns the registry of that name. at is the URL where the cache asks it; clients fall back to
// the registry itself, and take only from that URL whether that is by plain http. "" is https.
func NewRegistry(registry, at string) Registry {
	r := Registry{Name: registry, Server: "https://" + registry}
	if registry == hubName {
		r.Server = "https://registry-1.docker.io"
	} else if u, err := url.Parse(at); err == nil && u.Host == registry && u.Scheme == "http" {
		r.Server = "http://" + registry
	}
	return r
}

// registryName is the grammar of a registry's name in references.
var registryName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

// ValidRegistry reports whether a name is that of a registry in references: with a dot or a port, or
// localhost, so that it isn't a folder of Docker Hub.
func ValidRegistry(registry string) bool {
	return registryName.MatchString(registry) && !strings.Contains(registry, "..") && name.IsRegistry(registry)
}

// byPath reports whether a client that can't send ?ns= can ask for the registry by the first part of
// the path. A name with a port can't be such a part.
func (r Registry) byPath() bool { return !strings.Contains(r.Name, ":") }

// registriesOf are the registries of these settings, Docker Hub first.
func registriesOf(s *settings.Settings) []Registry {
	var list []Registry
	for _, u := range s.Upstreams() {
		list = append(list, NewRegistry(u.Name, u.URL))
	}
	return list
}

// FindRegistries are the registries that the running server has, or, if it can't be asked, those of
// the settings of this host. The error says why it couldn't.
func FindRegistries(ctx context.Context, find adminclient.Finder, own *settings.Settings) ([]Registry, error) {
	c, err := find.Find()
	if err != nil {
		return registriesOf(own), err
	}
	told, err := askServer(ctx, c, find)
	if err != nil {
		return registriesOf(own), err
	}
	return registriesOf(restore(told)), nil
}

// askServer asks the server for what it runs with.
func askServer(ctx context.Context, c *adminclient.Client, find adminclient.Finder) (admin.Settings, error) {
	told, err := c.Settings(ctx)
	if err != nil {
		// Over TCP a server tells nothing if it has a socket.
		if other := find.Packaged(); other != nil {
			told, err = other.Settings(ctx)
		}
	}
	return told, err
}

// restore are the settings that the server has told.
func restore(told admin.Settings) *settings.Settings {
	rows := make([]settings.Shown, len(told.Settings))
	for i, s := range told.Settings {
		rows[i] = settings.Shown(s)
	}
	return settings.Restore(rows)
}
