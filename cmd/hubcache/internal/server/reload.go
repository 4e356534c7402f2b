package server

import (
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/registry"
)

// reload reads settings, access token and certificates again. A fault in the settings
// changes none of them.
func (srv *server) reload() {
	notify(daemon.SdNotifyReloading + "\nMONOTONIC_USEC=" + monotonic())
	defer notify(daemon.SdNotifyReady)
	changed, err := srv.adopt()
	srv.lastReload.Store(&admin.LastReload{Time: time.Now(), OK: err == nil})
	if err != nil {
		srv.log.Error("the new settings can't be used; the old ones stay", "error", err)
	}
	for _, c := range srv.connections {
		c.reload(srv.log)
	}
	if srv.tls != nil {
		if err := srv.tls.load(); err != nil {
			srv.log.Error("the certificate can't be read; the last one stays in force", "error", err)
		}
	}
	if srv.clients != nil {
		if err := srv.clients.authorities.load(); err != nil {
			srv.log.Error("tls.client_ca_file can't be read; the last one stays in force", "error", err)
		}
	}
	if err == nil {
		srv.log.Info("settings read again", "changed", changed)
	}
}

// adopt reads the settings again and puts those into effect that can change. It returns which
// did, for people. No setting is a secret.
func (srv *server) adopt() (changed []string, err error) {
	next, err := srv.loader.Load()
	if err != nil {
		return nil, err
	}
	next.Warn(overrule(next, srv.sockets)...)
	// What waits for the next start has no part in anything below: its folder need not exist.
	now, later := settings.Reloaded(srv.settings, next)
	budget, err := now.Budget.In(string(now.DataDir))
	if err != nil {
		return nil, err
	}
	nets, err := now.AllowedClients()
	if err != nil {
		return nil, err
	}
	connections, err := connect(now.Settings, srv.connections, srv.others, srv.log)
	if err != nil {
		return nil, err
	}
	if err := srv.registry.Configure(srv.upstreams(now.Settings, connections), registry.Policy{Limits: limits(now.Settings)}); err != nil {
		return nil, err
	}
	srv.connections = connections
	changed = srv.changes(now, budget)
	srv.settings = now
	srv.showSettings()
	srv.setWarmPlan()
	srv.setLevel()
	srv.store.SetLimits(budget, now.MinFree.Bytes)
	srv.warnBudget()
	srv.gate.set(nets)
	srv.warn(next)
	waiting := map[string]settings.Change{}
	for _, c := range settings.Changes(now, next) {
		waiting[c.Key] = c
	}
	for _, key := range later {
		srv.log.Warn("this setting changes with the next start only", "setting", key, "running", waiting[key].Old, "next", waiting[key].New)
	}
	return changed, nil
}

// changes says what of the settings is another value in now than in what runs, and whether a
// budget in per cent has become another one, because the disk has.
func (srv *server) changes(now *settings.Loaded, budget int64) []string {
	changed := []string{}
	for _, c := range settings.Changes(srv.settings, now) {
		changed = append(changed, c.String())
	}
	was := srv.store.Budget()
	if now.Budget == srv.settings.Budget && was != budget {
		changed = append(changed, "budget in bytes: "+units.BytesSize(float64(was))+" → "+units.BytesSize(float64(budget)))
	}
	return changed
}

func (srv *server) setLevel() {
	var level slog.Level
	if level.UnmarshalText([]byte(srv.settings.Log.Level)) == nil {
		srv.level.Set(level)
	}
}
