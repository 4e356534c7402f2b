package server

import (
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// reload reads settings, access token and certificates again. A fault in the settings
// changes none of them.
func (srv *server) reload() {
	notify(daemon.SdNotifyReloading + "\nMONOTONIC_USEC=" + monotonic())
	defer notify(daemon.SdNotifyReady)
	err := srv.adopt()
	srv.lastReload.Store(&admin.LastReload{Time: time.Now(), OK: err == nil})
	if err != nil {
		srv.log.Error("the new settings can't be used; the old ones stay", "error", err)
	}
	if srv.cred != nil {
		if err := srv.cred.Reload(); err != nil {
			srv.log.Error("the access token can't be read; the last one stays in force", "error", err)
		}
	}
	if srv.tls != nil {
		if err := srv.tls.load(); err != nil {
			srv.log.Error("the certificate can't be read; the last one stays in force", "error", err)
		}
	}
	if srv.trusted != nil {
		if err := srv.trusted.load(); err != nil {
			srv.log.Error("upstream.ca_file can't be read; the last one stays in force", "error", err)
		}
	}
	if err == nil {
		srv.log.Info("settings read again")
	}
}

// adopt reads the settings again and puts those into effect that can change.
func (srv *server) adopt() error {
	next, err := srv.loader.Load()
	if err != nil {
		return err
	}
	// What waits for the next start has no part in anything below: its folder need not exist.
	now, later := settings.Reloaded(srv.settings, next)
	budget, err := now.Budget.In(string(now.DataDir))
	if err != nil {
		return err
	}
	nets, err := now.AllowedClients()
	if err != nil {
		return err
	}
	if err := srv.registry.SetPolicy(policy(now.Settings)); err != nil {
		return err
	}
	srv.settings = now
	srv.setLevel()
	srv.store.SetLimits(budget, now.MinFree.Bytes)
	srv.gate.set(nets)
	for _, key := range later {
		srv.log.Warn("this setting changes with the next start only", "setting", key)
	}
	return nil
}

func (srv *server) setLevel() {
	var level slog.Level
	if level.UnmarshalText([]byte(srv.settings.Log.Level)) == nil {
		srv.level.Set(level)
	}
}
