package server

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/history"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/warm"
)

// historyName is the file of what the charts of the dashboard show.
const historyName = "history.db"

// open opens the store and the registry. It asks nothing of upstream.
func (srv *server) open() error {
	s := srv.settings
	if err := os.MkdirAll(string(s.DataDir), 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	budget, err := s.Budget.In(string(s.DataDir))
	if err != nil {
		return err
	}
	srv.store, err = storage.Open(storage.Options{Dir: string(s.DataDir), Budget: budget, MinFree: s.MinFree.Bytes, Log: srv.log})
	if err != nil {
		return fmt.Errorf("opening the cache in %s: %w", s.DataDir, err)
	}
	err = srv.openRegistry()
	if err != nil {
		srv.store.Close()
		return err
	}
	count := func() admin.Totals { return admin.Count(srv.store.Stats(), srv.registry.Stats()) }
	srv.totals = openTotals(string(s.DataDir), count, srv.log)
	srv.history = history.Open(history.Options{
		Path: filepath.Join(string(s.DataDir), historyName), Log: srv.log, Count: func() history.Counts { return admin.CountsOf(count()) },
	})
	return nil
}

func (srv *server) openRegistry() (err error) {
	s := srv.settings
	up := registry.Upstream{}
	if up.URL, err = url.Parse(string(s.Upstream.URL)); err != nil {
		return err
	}
	if s.Upstream.CAFile != "" {
		if srv.trusted, err = newAuthorities(string(s.Upstream.CAFile), srv.log); err != nil {
			return err
		}
		up.RootCAs = srv.trusted.get
	}
	if s.Upstream.Username != "" {
		srv.cred = auth.NewFile(string(s.Upstream.Username), string(s.Upstream.PasswordFile))
		up.Credential = srv.cred
		if err := srv.checkToken(); err != nil {
			return err
		}
	}
	if s.TLS.CertFile != "" {
		if srv.tls, err = newKeyPair(string(s.TLS.CertFile), string(s.TLS.KeyFile), srv.log); err != nil {
			return err
		}
	}
	srv.registry, err = registry.New(registry.Options{Store: srv.store, Upstreams: []registry.Upstream{up}, Policy: policy(s.Settings), Log: srv.log})
	if err == nil {
		srv.keeper = warm.New(srv.registry.Warm, srv.log)
	}
	return err
}

// checkToken looks at the file with the access token. Only content that can't be a token is an
// error: whoever wrote it should hear of it now. A file that isn't there, or is empty, is not,
// since what is cached can be served, and the file may come later.
func (srv *server) checkToken() error {
	_, err := srv.cred.Credential()
	if fe, ok := errors.AsType[*auth.FileError](err); ok && fe.Fault == auth.FileMalformed {
		return settings.UsageError{Err: fmt.Errorf("upstream.password_file: %w", err)}
	}
	if err != nil {
		srv.log.Error("the access token can't be read", "error", err)
	}
	if srv.cred.Exposed() {
		srv.log.Warn("every user of this machine may read the access token: take the others' right to read away (chmod o-r)", "password_file", srv.cred.Path())
	}
	return nil
}

// Check finds what the registry refuses of the settings.
func Check(s *settings.Settings) error { return registry.CheckPolicy(policy(s)) }

// policy is the part of the settings that the registry follows, and that may change while
// it runs.
func policy(s *settings.Settings) registry.Policy {
	l := s.Limits
	p := registry.Policy{
		TagTTL: s.Tags.TTL.D, MaxStale: time.Duration(s.Tags.MaxStale), NegativeTTL: time.Duration(s.Tags.NegativeTTL),
		KeepGone: s.Tags.OnGone == settings.KeepGone, Allow: s.Allow, Deny: s.Deny, Private: s.Upstream.Private,
		QuotaReserve: float64(s.Quota.Reserve), ReadAhead: bool(s.ReadAhead), ClientLimit: int(l.Client),
		Limits: fetch.Limits{Transfers: int(l.Transfers), Orphans: int(l.Orphans), Ranges: int(l.Ranges), Bypass: int(l.Bypass)},
	}
	for _, r := range s.Tags.Rules {
		p.Tags = append(p.Tags, registry.TagRule{Match: string(r.Match), TTL: r.TTL.D, MaxStale: r.MaxStale.D, Refresh: bool(r.Refresh)})
	}
	return p
}

// setWarmPlan puts what the settings say of warm into effect.
func (srv *server) setWarmPlan() {
	w := &srv.settings.Warm
	srv.keeper.SetPlan(warm.Plan{
		Schedule: w.Schedule.String(), Next: w.Schedule.Next,
		References: w.References.References(), Files: w.Files, Platforms: w.Platforms.Platforms(),
	})
}
