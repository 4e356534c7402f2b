package server

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/history"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/warm"
)

// quarantineName is the file of what tags have named, and since when.
const quarantineName = "quarantine.json"

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
	if err = srv.openShared(); err == nil {
		err = srv.openRegistry()
	}
	if err != nil {
		srv.closeShared()
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
	if srv.connections, err = connect(s.Settings, nil, srv.others, srv.log); err != nil {
		return err
	}
	if s.TLS.CertFile != "" {
		if srv.tls, err = newKeyPair(string(s.TLS.CertFile), string(s.TLS.KeyFile), srv.log); err != nil {
			return err
		}
	}
	if s.TLS.ClientCAFile != "" {
		refused := func(client net.Addr, why string) { srv.gate.sayRefused(client, why) }
		if srv.clients, err = newClientCheck(string(s.TLS.ClientCAFile), refused, srv.log); err != nil {
			return err
		}
	}
	srv.quarantine = quarantine.Open(filepath.Join(string(s.DataDir), quarantineName), srv.log)
	srv.registry, err = registry.New(registry.Options{
		Store: srv.store, Upstreams: srv.upstreams(s.Settings, srv.connections), Policy: registry.Policy{Limits: limits(s.Settings)}, Log: srv.log,
		Quarantine: srv.quarantine, Peer: srv.peer(),
	})
	if err == nil {
		srv.keeper = warm.New(srv.registry.Warm, filepath.Join(string(s.DataDir), "warm.json"), srv.log)
	}
	return err
}

// setWarmPlan puts what the settings say of warm into effect.
func (srv *server) setWarmPlan() {
	w := &srv.settings.Warm
	srv.keeper.SetPlan(warm.Plan{
		Schedule: w.Schedule.String(), Next: w.Schedule.Next,
		References: w.References.References(), Files: w.Files, Platforms: w.Platforms.Platforms(),
	})
}
