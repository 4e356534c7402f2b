// Package server is hubcache serve: it puts the cache together from the settings, listens,
// reloads, talks to systemd and logs.
package server

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/disk"
	"github.com/hubcache/hubcache/history"
	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/tier"
	"github.com/hubcache/hubcache/tier/lease"
	"github.com/hubcache/hubcache/warm"
)

const (
	// drainWithin is how long running pulls may take after SIGTERM. systemd kills the
	// service after 90 s.
	drainWithin = 30 * time.Second
	// closeWithin is how long downloads may take to save their partial state.
	closeWithin = 5 * time.Second
)

// server is the running program.
type server struct {
	loader   *settings.Loader
	sockets  map[string][]string // addresses of the sockets that systemd has handed over, by name
	settings *settings.Loaded    // what runs: after a reload, what needs a restart is still as it was
	version  string
	log      *slog.Logger
	level    *slog.LevelVar
	store    *storage.Store
	lister   *inventory.Lister
	registry *registry.Registry

	tier        *tier.Tier    // what is shared with other nodes; nil: nothing
	leases      *lease.Redis  // nil: none
	connections []*connection // of the registries, Docker Hub first
	totals      *totals
	keeper      *warm.Keeper // of what is kept warm
	history     *history.Ring
	quarantine  *quarantine.Book
	tls         *keyPair     // nil: plain http
	clients     *clientCheck // nil: no certificate is asked for
	gate        *gate
	started     time.Time

	stopping   atomic.Bool
	lastReload atomic.Pointer[admin.LastReload]
	shown      atomic.Pointer[admin.Settings] // what GET /api/v1/settings answers

	pulls, admins []*http.Server
	failed        chan error
}

// Run serves until ctx ends, or until a listener fails. l finds the settings, at the start
// and again on SIGHUP; what is wrong with them at the start is a settings.UsageError.
// version is what stats and metrics call the program; the log goes to stderr.
func Run(ctx context.Context, l *settings.Loader, version string, stderr io.Writer) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before READY: systemd may send one right after
	defer signal.Stop(hup)
	onTerminal := IsTerminal(stderr)
	s, err := l.Load()
	if err != nil {
		return err
	}
	srv := &server{
		loader: l, settings: s, version: version, level: &slog.LevelVar{}, started: time.Now(), failed: make(chan error, 1),
	}
	srv.lastReload.Store(&admin.LastReload{})
	srv.setLevel()
	lines := &batch{w: stderr}
	defer lines.flush()
	srv.log = slog.New(batchHandler{logHandler(lines, logFormat(stderr, s.Log.Format), srv.level, toJournal(stderr)), lines})
	slog.SetDefault(srv.log)
	if err := srv.open(); err != nil {
		return err
	}
	listeners, err := srv.listen()
	if err != nil {
		srv.history.Close()
		srv.quarantine.Close()
		srv.totals.close()
		srv.closeShared()
		srv.store.Close()
		return err
	}
	srv.show(listeners)
	srv.serveAll(listeners)
	srv.greet(listeners)
	srv.registry.Introduce()
	srv.setWarmPlan()
	notify(daemon.SdNotifyReady)
	// Stats takes the locks that every request needs: a server that hangs in them is not alive.
	stopWatchdog := watchdog(func() { srv.store.Stats(); srv.registry.Stats() })
	defer stopWatchdog()
	err = srv.wait(ctx, hup, func() bool { return onTerminal && !IsTerminal(stderr) })
	return errors.Join(err, srv.stop())
}

// greet logs in one line what runs, and warns of what is probably not meant.
func (srv *server) greet(ls []listener) {
	s := srv.settings
	pull, adm, metrics := addresses(ls, pullSide), addresses(ls, adminSide), addresses(ls, metricsSide)
	upstreams := s.Upstreams()
	hub := upstreams[0]
	budget := srv.store.Budget()
	line := []any{"version", srv.version, "listen", pull, "admin", adm, "data_dir", s.DataDir,
		"budget", units.BytesSize(float64(budget)), "cached", units.BytesSize(float64(srv.store.Stats().Bytes)),
		"upstream", hub.URL, "as", cmp.Or(hub.Username, "anonymous")}
	if len(upstreams) > 1 {
		others := []string{}
		for _, u := range upstreams[1:] {
			others = append(others, u.Name)
		}
		line = append(line, "registries", others)
	}
	if len(metrics) > 0 {
		line = append(line, "metrics", metrics)
	}
	srv.log.Info("hubcache is ready", line...)
	srv.warn(s)
	srv.warnBudget()
	if hub.Username == "" {
		srv.log.Warn("no access token is configured: pulls count against the small anonymous quota of this address (upstream.username, upstream.password_file)")
	}
}

// warnBudget logs that the budget is larger than the disk, or that a share of the disk is too small
// to be of use. Of a budget in bytes the settings know the latter.
func (srv *server) warnBudget() {
	budget := srv.store.Budget()
	room, err := srv.room()
	if err == nil && budget > room {
		srv.log.Warn("the budget is larger than what the disk has room for; min_free will bound the cache",
			"budget", units.BytesSize(float64(budget)), "room", units.BytesSize(float64(room)))
	}
	if srv.settings.Budget.Share > 0 && budget < settings.LeastBudget {
		srv.log.Warn("the budget is smaller than most images: they pass through, and nothing of them is kept",
			"budget", units.BytesSize(float64(budget)), "needs", units.BytesSize(settings.LeastBudget))
	}
}

// warn logs what was set and has no effect, or is probably not meant so.
func (srv *server) warn(s *settings.Loaded) {
	for _, w := range s.Warnings() {
		srv.log.Warn("a setting needs a look", "warning", w)
	}
}

// room is how large the cache could become, with min_free left, if nothing else on the
// file system changed.
func (srv *server) room() (int64, error) {
	s, err := disk.Measure(string(srv.settings.DataDir))
	if err != nil {
		return 0, err
	}
	return max(0, s.Available+srv.store.Stats().Bytes-srv.settings.MinFree.Bytes), nil
}

// wait returns when ctx ends, with an error when a listener fails. A signal on hup
// reloads, but ends the server when closed says that its terminal was closed: the kernel
// sends the same signal then, and nobody would know of a server that goes on.
func (srv *server) wait(ctx context.Context, hup <-chan os.Signal, closed func() bool) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-srv.failed:
			return err
		case <-hup:
			if closed() {
				return nil
			}
			srv.reload()
		}
	}
}

// stop lets running pulls end, and closes everything. Health and stats answer until the
// end. A second signal ends the waiting for pulls.
func (srv *server) stop() error {
	srv.stopping.Store(true)
	began := time.Now()
	notify(daemon.SdNotifyStopping)
	srv.log.Info("stopping: running pulls may end", "within", drainWithin.String())
	srv.keeper.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), drainWithin)
	defer cancel()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(again)
	go func() {
		select {
		case <-again:
			cancel()
		case <-ctx.Done():
		}
	}()
	var pulls sync.WaitGroup
	for _, s := range srv.pulls {
		pulls.Go(func() {
			if s.Shutdown(ctx) != nil {
				srv.log.Warn("some pulls were still running and are cut off")
				s.Close()
			}
		})
	}
	pulls.Wait()
	closing, cancelClosing := context.WithTimeout(context.Background(), closeWithin)
	defer cancelClosing()
	err := errors.Join(srv.keeper.Close(closing), srv.registry.Close(closing))
	for _, s := range srv.admins {
		s.Close()
	}
	srv.history.Close()
	srv.quarantine.Close()
	srv.totals.close()
	srv.closeShared()
	err = errors.Join(err, srv.store.Close())
	took := time.Since(began).Round(time.Millisecond).String()
	if err != nil {
		srv.log.Error("stopped, but not everything was saved", "took", took, "error", err)
	} else {
		srv.log.Info("stopped", "took", took)
	}
	return err
}
