// Package admin is the second listener: health, metrics and statistics. It is never
// reachable on the pull port.
package admin

import (
	"encoding/json"
	"net"
	"net/http"
	"slices"
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
	Store    *storage.Store
	Registry *registry.Registry
	Version  string
	Started  time.Time

	// Hosts are the names that requests may carry in Host, beside localhost and IP
	// addresses of this machine's loopback: the listeners' own. Without them a foreign web
	// page could point its own name here and read along.
	Hosts []string
}

// New returns the handler of the admin listener.
func New(o Options) http.Handler {
	a := &admin{Options: o}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newCollector(a))

	m := mux.NewRouter()
	get := func(path string, h http.Handler) { m.Handle(path, h).Methods(http.MethodGet, http.MethodHead) }
	get("/healthz", http.HandlerFunc(ok))
	get("/readyz", http.HandlerFunc(ok)) // serving is being ready: starting needs no upstream
	get("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	get("/api/v1/stats", a.guard(http.HandlerFunc(a.stats)))
	m.NotFoundHandler = a.guard(refuse(http.StatusNotFound, "no such path"))
	m.MethodNotAllowedHandler = a.guard(refuse(http.StatusMethodNotAllowed, "method not allowed"))
	return m
}

type admin struct{ Options }

func ok(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}

// guard refuses requests whose Host is a name that isn't ours.
func (a *admin) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !a.ours(req.Host) {
			refuse(http.StatusForbidden, "this Host is not one of the admin listener's (admin.hosts)").ServeHTTP(w, req)
			return
		}
		next.ServeHTTP(w, req)
	})
}

func (a *admin) ours(host string) bool {
	name := strings.ToLower(host)
	if h, _, err := net.SplitHostPort(name); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() {
		return true
	}
	return name == "localhost" || slices.Contains(a.Hosts, name) || slices.Contains(a.Hosts, strings.ToLower(host))
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
