package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

const (
	// drainWithin is how long readers may finish after SIGTERM: systemd kills after 90 s.
	drainWithin = 30 * time.Second
	// closeWithin is how long downloads may take to put down what they have.
	closeWithin = 5 * time.Second

	// headerWithin and headerBytes bound what a client may send us: a pull's request is a
	// few hundred bytes. idleWithin frees what dockerd and containerd leave open.
	headerWithin = 10 * time.Second
	headerBytes  = 64 << 10
	idleWithin   = 2 * time.Minute
)

func newServeCommand(l *settings.Loader) *cobra.Command {
	own := &settings.Loader{Check: checkPolicies}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the cache",
		Long: `Runs the cache until SIGTERM or SIGINT, which let running pulls end first; a
second one stops at once. SIGHUP reads settings, certificate and access token
again.

A flag can be an environment variable too: --tag-ttl is HUBCACHE_TAG_TTL. Flags
win over the environment, the environment over the file, the file over defaults;
'hubcache config show' says which did.`,
		Example: "  hubcache serve --budget 50GiB --username jane --password-file ~/hub-token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			own.File = l.File
			return serve(cmd.Context(), own, cmd.ErrOrStderr())
		},
	}
	own.BindFlags(cmd.Flags())
	return cmd
}

// server is the running program.
type server struct {
	loader   *settings.Loader
	settings *settings.Loaded
	log      *slog.Logger
	level    *slog.LevelVar
	store    *storage.Store
	registry *registry.Registry
	cred     *auth.File // nil: anonymous
	tls      *keyPair   // nil: plain http
	gate     *gate
	started  time.Time

	stopping   atomic.Bool
	lastReload atomic.Pointer[admin.LastReload]

	pulls, admins []*http.Server
	failed        chan error
}

func serve(ctx context.Context, l *settings.Loader, stderr io.Writer) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before READY: systemd may send one right after
	defer signal.Stop(hup)
	onTerminal := isTerminal(stderr)
	s, err := l.Load()
	if err != nil {
		return err
	}
	srv := &server{loader: l, settings: s, level: &slog.LevelVar{}, started: time.Now(), failed: make(chan error, 1)}
	srv.lastReload.Store(&admin.LastReload{})
	srv.setLevel()
	lines := &batch{w: stderr}
	defer lines.flush()
	srv.log = slog.New(batchHandler{logHandler(lines, logFormat(stderr, string(s.Log.Format)), srv.level), lines})
	slog.SetDefault(srv.log)
	if err := srv.open(); err != nil {
		return err
	}
	listeners, err := srv.listen()
	if err != nil {
		srv.store.Close()
		return err
	}
	srv.serveAll(listeners)
	srv.greet(listeners)
	srv.registry.Introduce()
	notify(daemon.SdNotifyReady)
	stopWatchdog := watchdog(func() { srv.store.Stats(); srv.registry.Stats() }) // they take the locks that all need
	defer stopWatchdog()
	err = srv.wait(ctx, hup, func() bool { return onTerminal && !isTerminal(stderr) })
	return errors.Join(err, srv.stop())
}

// open opens what is behind the listeners. It asks nothing of upstream.
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
	}
	return err
}

func (srv *server) openRegistry() (err error) {
	s := srv.settings
	up := registry.Upstream{}
	if up.URL, err = url.Parse(string(s.Upstream.URL)); err != nil {
		return err
	}
	if s.Upstream.CAFile != "" {
		if up.RootCAs, err = readCAs(string(s.Upstream.CAFile)); err != nil {
			return fmt.Errorf("upstream.ca_file: %w", err)
		}
	}
	if s.Upstream.Username != "" {
		srv.cred = auth.NewFile(string(s.Upstream.Username), string(s.Upstream.PasswordFile))
		up.Credential = srv.cred
		if _, err := srv.cred.Credential(); err != nil {
			// Not fatal: what is cached can be served, and the file may come yet.
			srv.log.Error("the access token can't be read", "error", err)
		}
	}
	if s.TLS.CertFile != "" {
		if srv.tls, err = newKeyPair(string(s.TLS.CertFile), string(s.TLS.KeyFile)); err != nil {
			return err
		}
	}
	srv.registry, err = registry.New(registry.Options{Store: srv.store, Upstreams: []registry.Upstream{up}, Policy: registryPolicy(s.Settings), Log: srv.log})
	return err
}

func readCAs(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}

// serveAll starts a server for each listener.
func (srv *server) serveAll(ls []listener) {
	hosts := srv.adminHosts()
	adminHandler := admin.New(admin.Options{
		Store: srv.store, Registry: srv.registry, Version: versionString(), Started: srv.started, Hosts: hosts,
		Ready: func() bool { return !srv.stopping.Load() }, LastReload: func() admin.LastReload { return *srv.lastReload.Load() },
	})
	for _, l := range ls {
		h := http.Handler(srv.registry)
		if l.admin {
			h = adminHandler
		}
		s := &http.Server{
			Handler: h, ReadHeaderTimeout: headerWithin, IdleTimeout: idleWithin, MaxHeaderBytes: headerBytes,
			// No WriteTimeout: a layer takes what it takes; its handler moves the deadline.
			ErrorLog: slog.NewLogLogger(srv.log.Handler(), slog.LevelDebug),
		}
		serve := s.Serve
		if l.tls {
			s.TLSConfig = &tls.Config{GetCertificate: srv.tls.get, MinVersion: tls.VersionTLS12}
			serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
		}
		if l.admin {
			srv.admins = append(srv.admins, s)
		} else {
			srv.pulls = append(srv.pulls, s)
		}
		go func() {
			if err := serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
				select {
				case srv.failed <- fmt.Errorf("serving on %s: %w", l.Addr(), err):
				default: // one is reason enough to stop
				}
			}
		}()
	}
}

// adminHosts are the names under which the admin listeners may be asked.
func (srv *server) adminHosts() []string {
	hosts := append([]string{}, srv.settings.Admin.Hosts...)
	for _, addr := range srv.settings.Admin.Listen {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// greet says in one line what runs.
func (srv *server) greet(ls []listener) {
	s := srv.settings
	var pull, adm []string
	for _, l := range ls {
		if l.admin {
			adm = append(adm, l.String())
		} else {
			pull = append(pull, l.String())
		}
	}
	as := "anonymous"
	if srv.cred != nil {
		as = string(s.Upstream.Username)
	}
	budget := srv.store.Budget()
	srv.log.Info("hubcache is ready", "version", versionString(), "listen", pull, "admin", adm, "data_dir", s.DataDir,
		"budget", units.BytesSize(float64(budget)), "cached", units.BytesSize(float64(srv.store.Stats().Bytes)),
		"upstream", s.Upstream.URL, "as", as)
	if room, err := srv.room(); err == nil && budget > room {
		srv.log.Warn("the budget is larger than what the disk has room for; min_free will bound the cache",
			"budget", units.BytesSize(float64(budget)), "room", units.BytesSize(float64(room)))
	}
	if srv.cred == nil {
		srv.log.Warn("no access token is configured: pulls count against the small anonymous quota of this address (upstream.username, upstream.password_file)")
	}
}

// room is what the cache could grow to if nothing else grew: min_free is left alone.
func (srv *server) room() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(string(srv.settings.DataDir), &st); err != nil {
		return 0, err
	}
	return max(0, int64(st.Bavail)*st.Bsize+srv.store.Stats().Bytes-srv.settings.MinFree.Bytes), nil
}

// wait returns when the server is told to stop, or fails; hup reloads, unless it means
// that the terminal was closed: nobody would know of a server that goes on without.
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

// stop lets readers end, then puts everything down; health and stats answer to the last. A
// second signal ends the waiting.
func (srv *server) stop() error {
	srv.stopping.Store(true)
	notify(daemon.SdNotifyStopping)
	srv.log.Info("stopping: running pulls may end", "within", drainWithin.String())
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
				srv.log.Warn("pulls were still running and are cut off")
				s.Close()
			}
		})
	}
	pulls.Wait()
	closing, cancel2 := context.WithTimeout(context.Background(), closeWithin)
	defer cancel2()
	err := srv.registry.Close(closing)
	for _, s := range srv.admins {
		s.Close()
	}
	return errors.Join(err, srv.store.Close())
}

// reload takes over what can change while the server runs. A fault changes nothing.
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
	if err == nil {
		srv.log.Info("settings read again")
	}
}

// adopt reads the settings again and takes over those that can change.
func (srv *server) adopt() error {
	next, err := srv.loader.Load()
	if err != nil {
		return err
	}
	old := srv.settings
	budget, err := next.Budget.In(string(old.DataDir))
	if err != nil {
		return err
	}
	nets, err := next.AllowedClients()
	if err != nil {
		return err
	}
	if err := srv.registry.SetPolicy(registryPolicy(next.Settings)); err != nil {
		return err
	}
	srv.settings = next
	srv.setLevel()
	srv.store.SetLimits(budget, next.MinFree.Bytes)
	srv.gate.set(nets)
	for _, key := range settings.NeedRestart(old.Settings, next.Settings) {
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

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logFormat is text on a terminal, else JSON, unless format says.
func logFormat(w io.Writer, format string) string {
	if format == "" && isTerminal(w) {
		return "text"
	}
	return format
}

// logHandler logs as text or, when format says anything else, as JSON.
func logHandler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	if format == "text" {
		return slog.NewTextHandler(w, o)
	}
	return slog.NewJSONHandler(w, o)
}

// newLogger is the log of commands other than serve.
func newLogger(w io.Writer) *slog.Logger {
	return slog.New(logHandler(w, logFormat(w, ""), slog.LevelInfo))
}
