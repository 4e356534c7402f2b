package registry

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/upstream"
)

// hub is Docker Hub's name. Some rules hold for it alone.
const hub = "docker.io"

// aliases are other names of a registry.
var aliases = map[string][]string{hub: {"index.docker.io", "registry-1.docker.io"}}

// routes say which mirror a request is for. Immutable.
type routes struct {
	mirrors []*mirror          // the first answers requests that name no registry
	byName  map[string]*mirror // by the names of registries, in references and in the parameter ns
}

// configured returns the routes for upstreams. A mirror of old whose Options are the same goes on
// with all that it has in memory. Nothing is changed by it.
// Errors: no upstream, two of one name, those of newMirror.
func (r *Registry) configured(upstreams []Upstream, old *routes) (*routes, error) {
	if len(upstreams) == 0 {
		return nil, errors.New("no upstream is configured")
	}
	next := &routes{byName: map[string]*mirror{}}
	for _, u := range upstreams {
		m, err := r.mirrorFor(u, old)
		if err != nil {
			return nil, err
		}
		for _, ns := range append([]string{m.name}, aliases[m.name]...) {
			if next.byName[ns] != nil {
				return nil, errors.New("two upstreams have the name " + ns)
			}
			next.byName[ns] = m
		}
		next.mirrors = append(next.mirrors, m)
	}
	return next, nil
}

// mirrorFor returns the mirror of an upstream: that of old, if it has the same options.
func (r *Registry) mirrorFor(u Upstream, old *routes) (*mirror, error) {
	if old != nil {
		for _, m := range old.mirrors {
			if m.options == u.Options {
				return m, nil
			}
		}
	}
	return newMirror(u, r.shared, r.counts)
}

// Configure replaces the upstreams and the policy for the requests that come after it. An upstream
// whose Options are the same pointer as before keeps what it knows. Another one of the same name
// begins anew, with the counters and the cached content of the old one. What goes on at an upstream
// that is no longer there ends as it began; what is cached of it stays in the store.
//
// Errors: those of New, and then nothing changes.
func (r *Registry) Configure(upstreams []Upstream, p Policy) error {
	r.configuring.Lock()
	defer r.configuring.Unlock()
	old := r.routes.Load()
	next, err := r.configured(upstreams, old)
	if err != nil {
		return err
	}
	policies := make([]*policy, len(upstreams))
	for i, u := range upstreams {
		if policies[i], err = newPolicy(u.policy(p), next.mirrors[i].name); err != nil {
			return err
		}
	}
	r.pool.SetLimits(p.Limits)
	for i, m := range next.mirrors {
		m.setPolicy(policies[i])
	}
	r.routes.Store(next)
	if old == nil {
		return nil
	}
	for _, m := range next.mirrors {
		if !slices.Contains(old.mirrors, m) {
			m.learn()
		}
	}
	for _, m := range old.mirrors {
		if next.byName[m.name] != m {
			m.retire()
		}
	}
	return nil
}

// counts returns the counters of the upstream with that name, which are kept when it is replaced:
// the sums of all upstreams never fall. r.configuring is held.
func (r *Registry) counts(registry string) *upstream.Counters {
	r.counting.Lock()
	defer r.counting.Unlock()
	c := r.counted[registry]
	if c == nil {
		c = &upstream.Counters{}
		r.counted[registry] = c
	}
	return c
}

// mirror returns the mirror that a request is for, and cuts the registry off the repository's name
// where that names one. named reports whether the parameter ns does, which containerd and Docker 28
// and later send: then the whole path is the repository's name. Without either, a request is for the
// first mirror.
//
// Errors: *failure, when the registry isn't configured.
func (rt *routes) mirror(u *url.URL, q *request) (m *mirror, named bool, err error) {
	if u.RawQuery != "" {
		if query := u.Query(); query.Has("ns") {
			m, err = rt.named(query.Get("ns"))
			return m, true, err
		}
	}
	first, rest, more := strings.Cut(q.name, "/")
	if !more || !name.IsRegistry(first) {
		return rt.mirrors[0], false, nil
	}
	if strings.Contains(first, ":") {
		return nil, false, unserved("a registry with a port is asked for by the parameter ns, not by the path: " + short(first))
	}
	if m, err = rt.named(first); err == nil {
		q.name, q.prefix = rest, first
	}
	return m, false, err
}

// named returns the mirror of a registry.
// Errors: *failure, when it isn't configured.
func (rt *routes) named(registry string) (*mirror, error) {
	if m := rt.byName[registry]; m != nil {
		return m, nil
	}
	return nil, unserved("this cache does not serve the registry " + short(registry))
}

// unserved is the answer for a registry that isn't configured. The upstreams aren't asked.
func unserved(detail string) *failure {
	return &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, policy: true, detail: detail}
}

func short(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}
