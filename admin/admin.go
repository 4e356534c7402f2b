// Package admin answers the requests of the second listener: health, metrics, statistics, and the
// dashboard that is made of them. None of them can be had on the port for pulls.
package admin

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hubcache/hubcache/history"
	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/warm"
)

// Options is what New needs. Store and Registry must be set. All functions and Stats
// methods must be safe for concurrent use.
type Options struct {
	Store    interface{ Stats() storage.Stats }
	Registry interface{ Stats() registry.Stats }
	Version  string    // of the program, in Stats and metrics
	Started  time.Time // of the server; uptime counts from it

	// Hosts are further names that requests may have in their Host header, with or without a
	// port. localhost, loopback addresses and the address of the connection itself are always
	// accepted. The rule keeps a foreign web page from reading along: the page's owner could
	// make the name of the page resolve to this listener.
	Hosts []string

	// Cache is what pins, purges and exports are about; nil: there are no requests for them.
	Cache *storage.Store
	// Forget forgets what is in memory of a repository, or, with "", all manifests. It is called
	// after something was purged. Set it with Cache.
	Forget func(repository string)

	// Unserved says that the registry of a reference isn't configured, nil if it is. nil: all are.
	Unserved func(name.Reference) error

	Quarantine Quarantine // nil: nothing waits

	Warmer Warmer            // nil: no images can be warmed
	Warm   func() warm.State // what is kept warm on a schedule; nil: nothing is

	// Verify hashes all that is cached, as registry.Registry.Verify says; nil: it can't be asked for.
	Verify func(context.Context, registry.VerifyOptions) (registry.Verified, error)

	Images func(context.Context) (*inventory.List, error) // what is cached, in a list that must not be changed; nil: it isn't told
	// Inspect tells what is cached of one image. Errors: fs.ErrNotExist. nil: it isn't told.
	Inspect func(context.Context, name.Reference) (*inventory.Detail, error)

	// Token reports whether text is the token for requests that change the cache; nil: none
	// is set. Over TCP such requests then have to come from this machine.
	Token func(text string) bool
	Log   *slog.Logger // gets a line for each such request; nil: none

	Ready      func() bool       // false makes /readyz answer 503, so that load balancers send nobody; nil: always ready
	Settings   func() Settings   // what the server runs with, but for Schema; nil: it isn't told
	LastReload func() LastReload // the last reload of the settings; nil: reloads are not reported
	// Totals adds the counts of earlier runs to those of this one, and says since when; nil: there
	// are none.
	Totals func(Totals) Totals

	Shared func() Shared // what is shared with other nodes; nil: nothing is
	// CheckShared tries it, with an object and a lease of its own; nil: it can't be tried.
	CheckShared func(context.Context) SharedCheck

	Refused func() int64 // connections that were refused since the start; nil: none can be

	Compat bool // metrics have the names of distribution's registry, too

	History func() []history.Series // what the charts show; nil: it isn't told
	// Dashboard makes the handler of the paths / and /assets/; nil: there is none.
	Dashboard func(Figures) http.Handler
}

// Figures is what the dashboard shows of the admin listener itself.
type Figures struct {
	Stats   func() Stats
	History func() History
	// Verbs says how a page of this listener may change the cache: with the token of
	// admin.token_file, or not at all, and why.
	Verbs func(*http.Request) Verbs
}

// Verbs says whether whoever sends a request may change the cache.
type Verbs struct {
	Token   bool   // the token is needed
	Refused string // why it can't be done over this connection; "" when it can
}

// LastReload says how the last SIGHUP ended. The zero value means that there was none yet.
type LastReload struct {
	Time time.Time
	OK   bool // false: the settings were wrong, and the old ones stayed
}

// The errors of answers to requests that this version doesn't know. Newer ones may.
const (
	NoSuchPath   = "no such path"
	NoSuchMethod = "method not allowed"
)

// New returns the handler of the admin listener. It is safe for concurrent use.
//
// /healthz, /readyz and /metrics are answered for every Host. All other paths need one that
// Options.Hosts allows.
func New(o Options) http.Handler {
	a := newAdmin(o)
	m := mux.NewRouter()
	get := func(path string, h http.Handler) { m.Handle(path, h).Methods(http.MethodGet, http.MethodHead) }
	get("/healthz", http.HandlerFunc(ok))
	get("/readyz", http.HandlerFunc(a.ready))
	get("/metrics", a.metrics())
	get("/api/v1/stats", a.checkHost(http.HandlerFunc(a.stats)))
	if a.Images != nil {
		get("/api/v1/images", a.checkHost(http.HandlerFunc(a.images)))
	}
	if a.Warmer != nil {
		m.Handle("/api/v1/warm", a.guarded(a.warm)).Methods(http.MethodPost)
	}
	if a.Verify != nil {
		m.Handle("/api/v1/verify", a.guarded(a.verify)).Methods(http.MethodPost)
	}
	if a.CheckShared != nil {
		m.Handle("/api/v1/shared/check", a.guarded(a.checkShared)).Methods(http.MethodPost)
	}
	if a.Settings != nil {
		get("/api/v1/settings", a.checkHost(http.HandlerFunc(a.settings)))
	}
	get("/api/v1/events", a.checkHost(http.HandlerFunc(a.listen)))
	if a.History != nil {
		get("/api/v1/history", a.checkHost(http.HandlerFunc(a.history)))
	}
	if a.Dashboard != nil {
		page := a.checkHost(a.Dashboard(Figures{Stats: func() Stats { return a.document(time.Now()) }, History: a.historyDocument, Verbs: a.verbs}))
		get("/", page)
		get("/assets/{name}", page)
	}
	if a.Inspect != nil {
		get("/api/v1/images/{reference:.+}", a.checkHost(http.HandlerFunc(a.inspect)))
	}
	if a.Quarantine != nil {
		get("/api/v1/quarantine", a.checkHost(http.HandlerFunc(a.quarantined)))
		m.Handle("/api/v1/quarantine/{reference:.+}", a.guarded(a.release)).Methods(http.MethodDelete)
	}
	if a.Cache != nil {
		get("/api/v1/pins", a.checkHost(http.HandlerFunc(a.pins)))
		m.Handle("/api/v1/pins/{reference:.+}", a.guarded(a.pin)).Methods(http.MethodPut)
		m.Handle("/api/v1/pins/{reference:.+}", a.guarded(a.unpin)).Methods(http.MethodDelete)
		m.Handle("/api/v1/images/{reference:.+}", a.guarded(a.purgeImage)).Methods(http.MethodDelete)
		m.Handle("/api/v1/export", a.guarded(a.export)).Methods(http.MethodGet)
		m.Handle("/api/v1/export/{reference:.+}", a.guarded(a.export)).Methods(http.MethodGet)
		m.Handle("/api/v1/blobs/{digest}", a.guarded(a.purgeBlob)).Methods(http.MethodDelete)
	}
	m.NotFoundHandler = a.checkHost(refuse(http.StatusNotFound, NoSuchPath))
	m.MethodNotAllowedHandler = a.checkHost(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Allow", strings.Join(allowed(m, req), ", "))
		refuse(http.StatusMethodNotAllowed, NoSuchMethod).ServeHTTP(w, req)
	}))
	return m
}

// NewMetrics returns the handler of a listener that has /metrics alone. Metrics name no repository,
// and every Host is answered. It is safe for concurrent use.
func NewMetrics(o Options) http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /metrics", newAdmin(o).metrics())
	return m
}

// metrics returns the handler of /metrics.
func (a *admin) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newCollector(a))
	if a.Compat {
		reg.MustRegister(newCompatCollector(a))
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

func newAdmin(o Options) *admin {
	if o.Refused == nil {
		o.Refused = func() int64 { return 0 }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &admin{Options: o, hosts: map[string]bool{"localhost": true}}
	for _, h := range o.Hosts {
		if name := hostname(h); name != "" {
			a.hosts[name] = true
		}
	}
	return a
}

// admin has the handlers.
type admin struct {
	Options
	hosts  map[string]bool // names accepted in Host: in lower case, without ports
	events events
}

func ok(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
}

// ready answers without a look at the upstream, because cached images can be pulled without it.
func (a *admin) ready(w http.ResponseWriter, req *http.Request) {
	if a.Ready != nil && !a.Ready() {
		refuse(http.StatusServiceUnavailable, "stopping").ServeHTTP(w, req)
		return
	}
	ok(w, req)
}

// checkHost refuses requests with a foreign Host before they reach next.
func (a *admin) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !a.ownHost(req) {
			refuse(http.StatusForbidden, "this Host is not accepted; the setting admin.hosts adds more").ServeHTTP(w, req)
			return
		}
		next.ServeHTTP(w, req)
	})
}

// ownHost reports whether the request's Host means this listener: an accepted name, a
// loopback address, or the address of the connection. Addresses are safe, because a foreign
// DNS server decides only what names resolve to.
func (a *admin) ownHost(req *http.Request) bool {
	return a.ownName(req, hostname(req.Host))
}

// ownName is ownHost for a name from another header of the request.
func (a *admin) ownName(req *http.Request, name string) bool {
	if a.hosts[name] {
		return true
	}
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	local, _ := req.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.IsLoopback() || local != nil && ip.Unmap() == local.AddrPort().Addr().Unmap()
}

// hostname returns a Host in lower case, without its port and without brackets.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

// refuse returns a handler that answers with an error as JSON.
func refuse(status int, message string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, status, map[string]string{"error": message})
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}

func (a *admin) stats(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, a.document(time.Now()))
}
