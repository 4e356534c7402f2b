package dockerhost

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// hostsMark is the first line of each hosts.toml that Setup writes: it removes no other.
const hostsMark = "# Written by hubcache docker setup; --undo removes it.\n"

// dialTimeout is how long a client tries to connect to a cache that doesn't answer, for each request.
// Without it containerd takes 30 s. In 2 s a connection can be tried twice.
const dialTimeout = "2s"

// hostsFile is the hosts.toml of one registry: containerd's configuration, which Docker reads too,
// from version 28 on.
type hostsFile struct {
	registry  Registry
	mirrors   []string // URLs, in the order in which they are asked before the registry
	referrers bool     // the client knows the capability; one that doesn't ignores the whole file
	certs     string   // directory with a directory for each registry and mirror, which may have certificates
	planned   []string // names of certificates that the first mirror's directory is about to get
}

// text is the content, without the mark.
func (h hostsFile) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "server = %q\n", h.registry.Server)
	b.WriteString(certificates(registryDir(h.certs, h.registry.Name), "", nil))
	capabilities := `["pull", "resolve"]`
	if h.referrers {
		capabilities = `["pull", "resolve", "referrers"]`
	}
	for i, m := range h.mirrors {
		fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = %s\n  dial_timeout = %q\n", m, capabilities, dialTimeout)
		if u, err := url.Parse(m); err == nil && u.Scheme == "https" {
			b.WriteString(certificates(registryDir(h.certs, u.Host), "  ", h.plannedFor(i)))
		}
	}
	return b.String()
}

// plannedFor are the planned names for one of the mirrors: Setup's own is the first.
func (h hostsFile) plannedFor(i int) []string {
	if i > 0 {
		return nil
	}
	return h.planned
}

// certificates are the lines for the certificates in a directory. A client that finds a hosts.toml
// looks for no certificates by itself.
func certificates(dir, indent string, planned []string) string {
	authorities, own := certificateFiles(dir, ".crt", planned), certificateFiles(dir, ".cert", planned)
	var lines string
	if len(authorities) > 0 {
		lines += fmt.Sprintf("%sca = [%s]\n", indent, quoted(authorities))
	}
	var pairs []string
	for _, cert := range own {
		pairs = append(pairs, "["+quoted([]string{cert, strings.TrimSuffix(cert, ".cert") + ".key"})+"]")
	}
	if len(pairs) > 0 {
		lines += fmt.Sprintf("%sclient = [%s]\n", indent, strings.Join(pairs, ", "))
	}
	return lines
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}

// registryDir is the directory of a registry. containerd has two names for one with a port, and looks
// for that without a colon first.
func registryDir(certs, name string) string {
	if host, port, found := strings.Cut(name, ":"); found {
		if dir := filepath.Join(certs, host+"_"+port+"_"); isDir(dir) {
			return dir
		}
	}
	return filepath.Join(certs, name)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// parsedHosts is what a hosts.toml says.
type parsedHosts struct {
	hosts        []string // URLs in the order in which they are asked
	capabilities []string // all that are named in the file
	dialTimeout  string   // of the first host
}

// parseHosts reads a hosts.toml as containerd does.
func parseHosts(body []byte) (p parsedHosts, err error) {
	type host struct {
		Capabilities []string `toml:"capabilities"`
		DialTimeout  string   `toml:"dial_timeout"`
	}
	var file struct {
		Capabilities []string        `toml:"capabilities"`
		Hosts        map[string]host `toml:"host"`
	}
	if err := toml.Unmarshal(body, &file); err != nil {
		return p, err
	}
	p.capabilities = file.Capabilities
	for _, h := range file.Hosts {
		p.capabilities = append(p.capabilities, h.Capabilities...)
	}
	p.hosts = hostsInOrder(body)
	if len(p.hosts) > 0 {
		p.dialTimeout = file.Hosts[p.hosts[0]].DialTimeout
	}
	return p, nil
}

// hostsInOrder are the tables [host."…"], which a map doesn't keep in order.
func hostsInOrder(body []byte) (hosts []string) {
	var parser unstable.Parser
	parser.Reset(body)
	for parser.NextExpression() {
		e := parser.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) > 1 && key[0] == "host" && !slices.Contains(hosts, key[1]) {
			hosts = append(hosts, key[1])
		}
	}
	return hosts
}

// asks reports whether one of the URLs is among the hosts, and whether it is the first.
func (p parsedHosts) asks(urls []string) (found, first bool) {
	i := slices.IndexFunc(p.hosts, func(h string) bool {
		return slices.ContainsFunc(urls, func(u string) bool { return sameMirror(h, u) })
	})
	return i >= 0, i == 0
}

// fileName is where the hosts.toml of a registry is.
func fileName(certs, registry string) string {
	return filepath.Join(registryDir(certs, registry), "hosts.toml")
}

// planHosts adds to the plan what has to happen to the hosts.toml of each registry. A file that
// somebody else has written stays: it is an error, unless it names the mirror already.
func (s *Setup) planHosts(plan *setupPlan, certs string, files []hostsFile) error {
	var wanted []string
	for _, h := range files {
		file, err := readState(fileName(certs, h.registry.Name))
		if err != nil {
			return err
		}
		wanted = append(wanted, file.path)
		content := hostsMark + h.text()
		switch {
		case string(file.body) == content:
		case file.body != nil && !ours(file.body):
			if p, err := parseHosts(file.body); err == nil {
				if found, _ := p.asks([]string{s.Mirror}); found {
					plan.notes = append(plan.notes, fmt.Sprintf("%s names %s already, and was not written by hubcache: it stays as it is", file.path, s.Mirror))
					continue
				}
			}
			return fmt.Errorf("%s is there already and was not written by hubcache; add to it:\n%s", file.path, h.text())
		default:
			plan.changes = append(plan.changes, change{file, "ask " + s.Mirror + " first, then " + h.registry.Name, []byte(content), false})
		}
	}
	return s.planOtherHosts(plan, certs, wanted)
}

// planOtherHosts looks at the files of earlier runs that are no longer wanted. An undo removes them,
// and so does a setup without a hosts.toml for any registry. Others are only named: this host may not
// know of all registries of the cache.
func (s *Setup) planOtherHosts(plan *setupPlan, certs string, wanted []string) error {
	old, err := filepath.Glob(filepath.Join(certs, "*", "hosts.toml"))
	if err != nil {
		return err
	}
	for _, path := range old {
		body, err := os.ReadFile(path)
		if err != nil || !ours(body) || slices.Contains(wanted, realPath(path)) {
			continue // what can't be read was not written by this user
		}
		if len(wanted) > 0 {
			plan.notes = append(plan.notes, fmt.Sprintf("%s is of an earlier run, for a registry that is not configured now: remove it if the cache doesn't serve that registry", path))
			continue
		}
		file, err := readState(path)
		if err != nil {
			return err
		}
		plan.changes = append(plan.changes, change{file, "remove", nil, false})
	}
	return nil
}

// ours reports whether Setup has written the file.
func ours(body []byte) bool { return strings.HasPrefix(string(body), hostsMark) }
