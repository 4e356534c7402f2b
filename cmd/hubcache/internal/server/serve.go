package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/admin/dashboard"
	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/inventory"
)

const (
	// headerWithin and headerBytes bound what a client may send. The request of a pull is a
	// few hundred bytes long.
	headerWithin = 10 * time.Second
	headerBytes  = 64 << 10
	// idleWithin closes the connections that dockerd and containerd leave open.
	idleWithin = 2 * time.Minute
)

// serveAll starts a server for each listener.
func (srv *server) serveAll(ls []listener) {
	hosts := srv.adminHosts()
	srv.lister = inventory.NewLister(srv.store)
	o := admin.Options{
		Store: srv.store, Registry: srv.registry, Version: srv.version, Started: srv.started, Hosts: hosts,
		Ready: func() bool { return !srv.stopping.Load() }, LastReload: func() admin.LastReload { return *srv.lastReload.Load() },
		Quarantine: srv.registry, Warmer: srv.registry, Warm: srv.keeper.State, Verify: srv.registry.Verify,
		Cache: srv.store, Forget: srv.forget, Unserved: srv.registry.Unserved, Images: srv.lister.List, Inspect: srv.lister.Inspect, Dashboard: srv.dashboard,
		Token: srv.adminToken(), Log: srv.log, Totals: srv.totals.add, History: srv.history.Series,
		Refused: srv.gate.refused.Load, Settings: func() admin.Settings { return *srv.shown.Load() },
		Compat: bool(srv.settings.Metrics.Compat), Shared: srv.sharedStats, CheckShared: srv.checkShared(),
	}
	handlers := map[side]http.Handler{pullSide: srv.registry, adminSide: admin.New(o), metricsSide: admin.NewMetrics(o)}
	for _, l := range ls {
		s := &http.Server{
			Handler: handlers[l.side], ReadHeaderTimeout: headerWithin, IdleTimeout: idleWithin, MaxHeaderBytes: headerBytes,
			// No WriteTimeout: a layer may take long, and its handler sets the deadline.
			ErrorLog: slog.NewLogLogger(srv.log.Handler(), slog.LevelDebug),
		}
		serve := s.Serve
		if l.tls {
			s.TLSConfig = &tls.Config{GetCertificate: srv.tls.get, MinVersion: tls.VersionTLS12}
			if srv.clients != nil {
				srv.clients.require(s)
			}
			serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
		}
		if l.side == pullSide {
			s.ConnState = srv.gate.track
			srv.pulls = append(srv.pulls, s)
		} else {
			s.ConnContext = admin.ConnContext
			srv.admins = append(srv.admins, s)
		}
		go func() {
			if err := serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
				select {
				case srv.failed <- fmt.Errorf("serving on %s: %w", l.Addr(), err):
				default: // one error is enough to stop
				}
			}
		}()
	}
}

// dashboard is the page of the admin listener.
func (srv *server) dashboard(f admin.Figures) http.Handler {
	return dashboard.New(dashboard.Options{Stats: f.Stats, History: f.History, Verbs: f.Verbs, Images: srv.lister.List, Pinned: srv.pinned, Purge: true, Warm: true, Log: srv.log})
}

// pinned returns the references of the pinned images.
func (srv *server) pinned() (map[string]bool, error) {
	pins, err := srv.store.Pins()
	pinned := make(map[string]bool, len(pins))
	for _, p := range pins {
		pinned[p.Reference()] = true
	}
	return pinned, err
}

// forget forgets what is in memory of a repository, or, with "", all manifests.
func (srv *server) forget(repository string) {
	if repository == "" {
		srv.registry.ForgetManifests()
	} else {
		srv.registry.Forget(repository)
	}
}

// adminToken returns the check of the token of requests that change the cache, nil if none is
// set. A file that can't be read lets nobody in.
func (srv *server) adminToken() func(string) bool {
	if srv.settings.Admin.TokenFile == "" {
		return nil
	}
	file := auth.NewFile("admin", string(srv.settings.Admin.TokenFile))
	if _, err := file.Credential(); err != nil {
		srv.log.Error("the admin token can't be read: over TCP nobody can change the cache", "error", err)
	}
	return func(text string) bool {
		c, err := file.Credential()
		return err == nil && c.Matches(text)
	}
}

// adminHosts are the Host names that requests to the admin listeners may carry.
func (srv *server) adminHosts() []string {
	hosts := append([]string{}, srv.settings.Admin.Hosts...)
	for _, addr := range srv.settings.Admin.Listen {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
