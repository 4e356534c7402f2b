package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/upstream"
)

// connection is what is open for one registry, for as long as the settings that it was made of are
// the same: then the registry goes on with what it knows.
type connection struct {
	name    string
	of      wiring
	options *upstream.Options
	cred    *auth.File   // nil: anonymous
	trusted *authorities // nil: the system's
}

// wiring are the settings that a connection is made of. For all others there is a policy.
type wiring struct{ url, username, passwordFile, caFile string }

func wiringOf(u settings.Upstream) wiring {
	return wiring{u.URL, u.Username, u.PasswordFile, u.CAFile}
}

// connect returns a connection for each registry of the settings, in their order: the one that is
// open already, if its settings are the same, or a new one. others returns the other nodes that use its
// account. It asks nothing of the registries.
// Errors: a file that is wrong; that of a token is a settings.UsageError.
func connect(s *settings.Settings, open []*connection, others func(settings.Upstream) upstream.Others, log *slog.Logger) ([]*connection, error) {
	var all []*connection
	for _, u := range s.Upstreams() {
		at := slices.IndexFunc(open, func(c *connection) bool { return c.name == u.Name && c.of == wiringOf(u) })
		if at >= 0 {
			all = append(all, open[at])
			continue
		}
		c, err := newConnection(u, log)
		if err != nil {
			return nil, err
		}
		c.options.Others = others(u)
		all = append(all, c)
	}
	return all, nil
}

func newConnection(u settings.Upstream, log *slog.Logger) (*connection, error) {
	c := &connection{name: u.Name, of: wiringOf(u), options: &upstream.Options{Name: u.Name}}
	var err error
	if c.options.URL, err = url.Parse(u.URL); err != nil {
		return nil, err
	}
	if u.CAFile != "" {
		if c.trusted, err = newAuthorities(u.CAFile, u.Key+".ca_file", log); err != nil {
			return nil, err
		}
		c.options.RootCAs = c.trusted.get
	}
	if u.Username == "" {
		return c, nil
	}
	c.cred = auth.NewFile(u.Username, u.PasswordFile)
	c.options.Credential = c.cred
	return c, c.checkToken(u, log)
}

// checkToken looks at the file with the access token. Only content that can't be a token is an
// error: whoever wrote it should hear of it now. A file that isn't there, or is empty, is not,
// since what is cached can be served, and the file may come later.
func (c *connection) checkToken(u settings.Upstream, log *slog.Logger) error {
	_, err := c.cred.Credential()
	if fe, ok := errors.AsType[*auth.FileError](err); ok && fe.Fault == auth.FileMalformed {
		return settings.UsageError{Err: fmt.Errorf("%s.password_file: %w", u.Key, err)}
	}
	if err != nil {
		log.Error("the access token can't be read", "registry", c.name, "error", err)
	}
	if c.cred.Exposed() {
		log.Warn("every user of this machine may read the access token: take the others' right to read away (chmod o-r)", "registry", c.name, "password_file", c.cred.Path())
	}
	return nil
}

// reload reads the files of the connection again.
func (c *connection) reload(log *slog.Logger) {
	if c.cred != nil {
		was := c.cred.Version()
		if err := c.cred.Reload(); err != nil {
			log.Error("the access token can't be read; the last one stays in force", "registry", c.name, "error", err)
		} else if c.cred.Version() != was {
			log.Info("the access token has changed and is in use", "registry", c.name, "password_file", c.cred.Path())
		}
	}
	if c.trusted != nil {
		if err := c.trusted.load(); err != nil {
			log.Error(c.trusted.what+" can't be read; the last one stays in force", "error", err)
		}
	}
}

// upstreams are the registries as package registry takes them, each with its policy.
func (srv *server) upstreams(s *settings.Settings, open []*connection) (all []registry.Upstream) {
	for i, u := range s.Upstreams() {
		p := policy(s, u)
		all = append(all, registry.Upstream{Options: open[i].options, Policy: &p, Source: srv.shared(u)})
	}
	return all
}

// Check finds what the registries refuse of the settings.
func Check(s *settings.Settings) error {
	for _, u := range s.Upstreams() {
		err := registry.CheckPolicy(policy(s, u))
		if wrong, ok := errors.AsType[*registry.PatternError](err); ok {
			return &settings.KeyError{Key: u.KeyOf(wrong.Setting), Text: fmt.Sprintf("%q is not a pattern", wrong.Pattern)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// policy is what one registry follows, and what may change while it runs.
func policy(s *settings.Settings, u settings.Upstream) registry.Policy {
	p := registry.Policy{
		TagTTL: u.TagTTL, MaxStale: u.MaxStale, NegativeTTL: u.NegativeTTL, KeepGone: u.OnGone == settings.KeepGone,
		Allow: u.Allow, Deny: u.Deny, Private: u.Private, QuotaReserve: float64(u.QuotaReserve),
		ReadAhead: bool(s.ReadAhead), ClientLimit: int(s.Limits.Client), Limits: limits(s), DenyDigests: s.DenyDigests.Digests(),
	}
	for _, r := range u.Rules {
		p.Tags = append(p.Tags, registry.TagRule{Match: string(r.Match), TTL: r.TTL.D, MaxStale: (*time.Duration)(r.MaxStale.D), Refresh: bool(r.Refresh), Quarantine: time.Duration(r.Quarantine)})
	}
	return p
}

// limits are those of all registries together.
func limits(s *settings.Settings) fetch.Limits {
	l := s.Limits
	return fetch.Limits{Transfers: int(l.Transfers), Orphans: int(l.Orphans), Ranges: int(l.Ranges), Bypass: int(l.Bypass)}
}
