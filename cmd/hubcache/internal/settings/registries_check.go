package settings

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// hubNames are further names of Docker Hub.
var hubNames = []string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// checkRegistryName finds what is wrong with a key of registries.
func checkRegistryName(registry string) error {
	host, port, err := net.SplitHostPort(registry)
	hasPort := err == nil && port != ""
	switch {
	case slices.Contains(hubNames, registry):
		return errors.New("is Docker Hub, whose name in references is " + Hub)
	case strings.Contains(registry, "://"):
		return errors.New("is a URL: the key is the registry's name in references, like ghcr.io, and url is its setting")
	case strings.Contains(registry, "/"):
		return errors.New("has a slash: the key is the registry alone, like ghcr.io, and allow says which repositories are served")
	case strings.ToLower(registry) != registry:
		return errors.New("is written in lower case")
	case !strings.Contains(registry, ".") && !hasPort && registry != "localhost":
		return errors.New("has no dot and no port, and isn't localhost: such a name is taken for a folder of Docker Hub")
	}
	if hasPort {
		_, err = net.LookupPort("tcp", port)
	} else {
		host, err = registry, nil
	}
	named, parseErr := reference.ParseNormalizedNamed(registry + "/a/b")
	if err != nil || host == "" || parseErr != nil || reference.Domain(named) != registry || len(registry) > maxRegistryName {
		return errors.New("is not the name of a registry like ghcr.io or registry.example.org:5000")
	}
	return nil
}

// maxRegistryName is how long the name of a registry may be, in bytes. The longest host name with a
// port is longer, but a whole name has to leave room for a repository.
const maxRegistryName = 128

// checkRegistries finds what can't work with upstream and registries. Each error has its line, if
// the setting is from a file.
func (s *Loaded) checkRegistries() error {
	var all []error
	fault := func(key, format string, args ...any) {
		all = append(all, errors.New(s.at(key)+key+": "+fmt.Sprintf(format, args...)))
	}
	if s.Registries[Hub] != nil {
		s.checkHubTwice(fault)
	}
	for _, registry := range slices.Sorted(maps.Keys(s.Registries)) {
		if err := checkRegistryName(registry); err != nil {
			fault("registries."+registry, "%v", err)
		}
	}
	for _, u := range s.Upstreams() {
		switch {
		case u.Username == "" && u.PasswordFile != "":
			fault(u.Key+".password_file", "is set, and %s.username is not", u.Key)
		case u.Username != "" && u.PasswordFile == "":
			fault(u.Key+".username", "is set, and %s.password_file is not", u.Key)
		case strings.Contains(u.Username, ":"):
			fault(u.Key+".username", "a name has no colon; the token is in the file that %s.password_file names", u.Key)
		}
		if err := checkUpstream(u.URL, u.Key); err != nil {
			fault(u.Key+".url", "%v", err)
		} else if addr := s.loop(u.URL); addr != "" {
			fault(u.Key+".url", "is %s, an address of listen: the cache would ask itself", addr)
		}
	}
	return errors.Join(all...)
}

// checkHubTwice finds settings of Docker Hub that are set in two places.
func (s *Loaded) checkHubTwice(fault func(key, format string, args ...any)) {
	const entry = "registries." + Hub
	for key, r := range leaves([]row{{key: "upstream", rows: s.upstreamTable()}}) {
		if s.source[key] != "" && textOf(r.value) != "" {
			fault(key, "Docker Hub has an entry in registries too: set %s there alone", entry+strings.TrimPrefix(key, "upstream"))
		}
	}
	hub := s.Registries[Hub]
	for _, both := range []struct {
		key        string
		top, entry List
	}{{"allow", s.Allow, hub.Allow}, {"deny", s.Deny, hub.Deny}} {
		if len(both.top) > 0 && len(both.entry) > 0 {
			fault(both.key, "is Docker Hub's, and %s.%s is set too: leave one out", entry, both.key)
		}
	}
}

// at is where a setting, or the entry of a registry, was set, as the beginning of an error:
// "config.yaml:7: ". It is "" if that is no file.
func (s *Loaded) at(key string) string {
	for {
		source := s.source[key]
		if place, ok := strings.CutPrefix(source, "file "); ok {
			return place + ": "
		}
		if place, ok := strings.CutPrefix(source, "environment "); ok {
			return place + ": "
		}
		if i := strings.LastIndexByte(key, '.'); source == "" && i > 0 && strings.HasPrefix(key, "registries.") {
			key = key[:i] // the entry's line, when the setting itself has none
			continue
		}
		return ""
	}
}

// registryDoubts are about registries that work, and that are probably not meant so.
func (s *Settings) registryDoubts(say func(doubt bool, format string, args ...any)) {
	for _, u := range s.Upstreams() {
		lists := u.Key + "."
		if u.Key == "upstream" {
			lists = ""
		}
		say(len(u.Private) > 0 && u.Username == "", "%s.private has no effect: without %s.username nothing private can be read", u.Key, u.Key)
		host, plain := strings.CutPrefix(u.URL, "http://")
		say(plain && u.Username != "" && !loopback(hostOf(host)), "%s.url is plain http: whoever is between here and %s reads the access token", u.Key, host)
		for _, pattern := range u.Allow {
			say(slices.Contains(u.Deny, pattern), "%sallow and %sdeny both have %s: deny wins", lists, lists, pattern)
		}
	}
	ruleDoubts("tags", s.Tags.TTL.D, s.Tags.Rules, say)
	for _, registry := range slices.Sorted(maps.Keys(s.Registries)) {
		r := s.Registries[registry]
		ttl := r.Tags.TTL.D
		if ttl == nil {
			ttl = s.Tags.TTL.D
		}
		ruleDoubts("registries."+registry+".tags", ttl, r.Tags.Rules, say)
	}
}

// ruleDoubts are about rules for tags. ttl is what holds beside them; nil: it depends.
func ruleDoubts(key string, ttl *time.Duration, rules []TagRule, say func(doubt bool, format string, args ...any)) {
	seen := map[Text]bool{}
	for _, r := range rules {
		d := ttl
		if r.TTL.D != nil {
			d = r.TTL.D
		}
		say(bool(r.Refresh) && d != nil && *d == 0, "%s.rules: refresh has no effect in the rule for %s: with ttl 0 every pull asks", key, r.Match)
		say(seen[r.Match], "%s.rules: the second rule for %s has no effect: the first that matches is used", key, r.Match)
		seen[r.Match] = true
	}
}

// hostOf is a host without its port.
func hostOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}
