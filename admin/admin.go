// Package admin is the second listener: health, metrics and statistics. It is never
// reachable on the pull port.
package admin

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
)

// Options is what New needs. Store and Registry must be set.
type Options struct {
	Store    interface{ Stats() storage.Stats }
	Registry interface{ Stats() registry.Stats }
	Version  string
	Started  time.Time

	// Hosts are names that requests may carry in Host, with or without a port, beside
	// localhost, loopback addresses and the address that the connection came in on.
	// Without the rule a foreign web page could point its own name here and read along.
	Hosts []string

	Ready      func() bool       // false turns load balancers away; nil: always ready
	LastReload func() LastReload // nil: none
}

// LastReload is how the last SIGHUP ended. The zero value is "none yet".
type LastReload struct {
	Time time.Time
	OK   bool
}

// New returns the handler of the admin listener.
func New(o Options) http.Handler {
	a := &admin{Options: o, hosts: map[string]bool{"localhost": true}}
	for _, h := range o.Hosts {
		if name := hostname(h); name != "" {
			a.hosts[name] = true
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newCollector(a))

	m := mux.NewRouter()
	get := func(path string, h http.Handler) { m.Handle(path, h).Methods(http.MethodGet, http.MethodHead) }
	get("/healthz", http.HandlerFunc(ok))
	get("/readyz", http.HandlerFunc(a.ready))
	get("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	get("/api/v1/stats", a.guard(http.HandlerFunc(a.stats)))
	m.NotFoundHandler = a.guard(refuse(http.StatusNotFound, "no such path"))
	m.MethodNotAllowedHandler = a.guard(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Allow", "GET, HEAD") // of every path there is
		refuse(http.StatusMethodNotAllowed, "method not allowed").ServeHTTP(w, req)
	}))
	return m
}

type admin struct {
	Options
	hosts map[string]bool // lower case, without ports
}

func ok(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
}

// ready asks nothing of upstream: what is cached can be pulled without it.
func (a *admin) ready(w http.ResponseWriter, req *http.Request) {
	if a.Ready != nil && !a.Ready() {
		refuse(http.StatusServiceUnavailable, "stopping").ServeHTTP(w, req)
		return
	}
	ok(w, req)
}

// guard refuses requests whose Host is a name that isn't ours.
func (a *admin) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !a.ours(req) {
			refuse(http.StatusForbidden, "this Host is not one of the admin listener's; admin.hosts names more").ServeHTTP(w, req)
			return
		}
		next.ServeHTTP(w, req)
	})
}

// ours reports whether the Host is one that only who means this listener sends. An address
// can't be pointed elsewhere by a foreign DNS server, as a name can.
func (a *admin) ours(req *http.Request) bool {
	name := hostname(req.Host)
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

// hostname takes port and brackets off a Host.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

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
