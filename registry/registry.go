// Package registry answers the pull half of the OCI distribution API from a storage.Store,
// and fills the store from upstream registries.
//
// A Registry is a thin mux: it parses a request (request.go) and passes it to the mirror of
// the upstream that the request names (routes.go, mirror.go). The mirror resolves the repository once,
// to a value that carries the policy in force and the admission (repo.go). Manifests are
// answered from memory (hot.go), the store or upstream (manifest.go, tag.go); blobs from the
// store, from a flight of package fetch that is filling it, or past it (blob.go); lists pass
// through (list.go). What clients get for failures is in errors.go.
//
// No mutex of this package is held while another lock is taken, or during I/O.
package registry

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// Options is what New needs. Store and Upstreams must be set; the zero value of everything
// else means what its comment says.
type Options struct {
	Store     *storage.Store
	Upstreams []Upstream   // the first answers requests that name no registry
	Policy    Policy       // of the upstreams that have none of their own; its Limits are those of all
	Log       *slog.Logger // nil: slog.Default()

	// Quarantine has the tags that wait; see TagRule. nil: it is in memory only.
	Quarantine *quarantine.Book

	// Peer reports whether token, which a request for the blob has in fetch.PeerHeader, is that of
	// another node that may read it while this one fetches it. nil: there are no other nodes.
	Peer func(token string, d digest.Digest) bool
}

// Upstream is a registry that is cached.
type Upstream struct {
	*upstream.Options // a nil Log is Options.Log; not changed once it is given to New or Configure

	// Policy is that of this upstream, but for its Limits. nil: the Policy of all.
	Policy *Policy

	// Source puts something in front of the registry, from which tags, manifests and blobs
	// then come. It is given the registry itself as a source. nil: nothing.
	Source func(fetch.Source) fetch.Source
}

// policy is the policy of the upstream, if that of all is p.
func (u *Upstream) policy(p Policy) Policy {
	if u.Policy != nil {
		return *u.Policy
	}
	return p
}

// Registry is the pull API and the pull-through policy in one http.Handler.
// All methods are safe for concurrent use.
type Registry struct {
	*shared
	peer   func(token string, d digest.Digest) bool // see Options
	routes atomic.Pointer[routes]
	recent recent // what clients have not got lately

	configuring sync.Mutex                    // held by Configure
	counting    sync.Mutex                    // guards counted; no other lock is taken under it
	counted     map[string]*upstream.Counters // by the names of all upstreams since the start
}

// New returns a Registry that serves o.Store and fetches what it lacks from o.Upstreams.
// It makes no request: a server starts whether or not its upstreams can be reached.
// Errors: no upstream, two of one name, a URL that no upstream can have, an invalid pattern
// in the policy.
func New(o Options) (*Registry, error) {
	s := &shared{store: o.Store, tasks: newTasks(), counters: &counters{}, askers: &askers{}, reading: semaphore.NewWeighted(1), log: cmp.Or(o.Log, slog.Default())}
	if s.quarantine = o.Quarantine; s.quarantine == nil {
		s.quarantine = quarantine.New()
	}
	s.rechecks = &rechecks{store: o.Store, tasks: s.tasks, sending: &s.sending}
	s.pool = fetch.New(fetch.Options{Store: o.Store, Limits: o.Policy.Limits, Log: s.log, Verified: s.rechecks.trust})
	r := &Registry{shared: s, peer: o.Peer, counted: map[string]*upstream.Counters{}}
	if err := r.Configure(o.Upstreams, o.Policy); err != nil {
		return nil, err
	}
	return r, nil
}

// Introduce asks the upstreams in the background how they want to be authenticated to, which
// spares the first pull a round trip and a connection. Nothing depends on the answer.
func (r *Registry) Introduce() {
	for _, m := range r.routes.Load().mirrors {
		m.learn()
	}
}

// Close ends all fetches, keeping what has arrived for the next start, and waits for
// them until ctx is done. Call it when the HTTP servers have been shut down.
// Errors: that they did not end in time, with ctx's cause.
func (r *Registry) Close(ctx context.Context) error {
	r.tasks.stop()
	err := r.pool.Close(ctx)
	return cmp.Or(err, r.tasks.wait(ctx))
}

// result is how a request ended, for log and counters.
type result struct {
	status  int   // 0: err is still to be answered
	sent    int64 // body bytes
	outcome Outcome
	err     error

	cause     cause     // of OutcomeError
	first     time.Time // when the first byte of the body was written; zero: there was none, or nobody looked
	peer      bool      // another node has asked, for a client of its own, who is counted there
	ahead     bool      // what was sent had been read ahead for this request
	aheadSent int64     // and so many bytes of it
}

// ServeHTTP answers one request of the pull API.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	// swarm on Docker 20.10 passes over a mirror without it.
	w.Header()["Docker-Distribution-Api-Version"] = apiVersion
	if req.ContentLength != 0 {
		// No request of a pull has a body. net/http waits for one before it answers.
		http.NewResponseController(w).SetReadDeadline(start.Add(bodyDeadline))
	}
	q, err := parse(req.URL.Path)
	m, named, unrouted := r.routes.Load().mirror(req.URL, &q)
	if err = cmp.Or(err, unrouted); err == nil {
		err = q.finish(m)
	}
	res := result{err: err}
	if err == nil {
		res = r.serve(w, req, &q, m, named)
	}
	switch {
	case res.status != 0 || res.err == nil:
	case req.Context().Err() != nil: // nobody reads the answer, and it would have been one
		res.status, res.outcome = statusClientGone, cmp.Or(res.outcome, OutcomeMiss)
	default:
		f := fail(q.kind, res.err)
		f.write(w, req)
		res.status, res.outcome, res.cause = f.status, OutcomeError, causeOf(res.err)
	}
	end := time.Now()
	if !res.peer && (req.Method == http.MethodGet || req.Method == http.MethodHead) {
		first := res.first
		if first.IsZero() {
			first = end
		}
		r.counters.count(q.kind, &res, first.Sub(start))
	}
	registry := ""
	if m != nil {
		registry = m.name
	}
	if !res.peer {
		r.noteFailure(registry, &q, &res, end)
	}
	r.access(req, registry, &q, &res, start, end)
	if res.err != nil && (res.status < 400 || res.status == statusClientGone) {
		panic(http.ErrAbortHandler) // cut the connection: what was sent is not the whole
	}
	content.Finish(w)
}

// bodyDeadline is how long a request body, which nobody asked for, may take.
const bodyDeadline = 5 * time.Second

var apiVersion = []string{"registry/2.0"}

// statusClientGone is nginx's status for the log: the client left before the answer.
const statusClientGone = 499

// serve answers, or returns an error with status 0.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request, q *request, m *mirror, named bool) result {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return result{err: &failure{status: http.StatusMethodNotAllowed, code: errcode.ErrorCodeUnsupported, detail: "this is a pull-through cache: it only reads"}}
	}
	if named {
		w.Header().Set("Oci-Namespace", m.name)
	}
	if q.kind == manifest {
		if res, ok := m.serveHot(w, req, q); ok {
			return res
		}
	}
	a := r.askers.asker(req.RemoteAddr, m.policy.Load().ClientLimit)
	defer a.leave()
	w, t := timed(w)
	res := r.serveKind(w, req, q, m, a)
	res.first = t.first
	return res
}

// serveKind answers a request that isn't answered from memory.
func (r *Registry) serveKind(w http.ResponseWriter, req *http.Request, q *request, m *mirror, a *asker) result {
	switch q.kind {
	case manifest:
		epoch := m.hot.epoch() // before the policy and the visibility: see hot.put
		mq := &manifestRequest{repo: m.repository(req, a, q.name), ref: q.ref, digest: q.digest, head: req.Method == http.MethodHead, epoch: epoch}
		return mq.serve(w, req)
	case blob:
		peer := len(req.Header[fetch.PeerHeader]) > 0
		if peer && (r.peer == nil || !r.peer(req.Header.Get(fetch.PeerHeader), q.digest)) {
			return result{err: notForPeers}
		}
		bq := &blobRequest{repo: m.repository(req, a, q.name), digest: q.digest, w: w, req: req, peer: peer}
		res := bq.serve()
		res.peer = peer
		return res
	case tags, referrers:
		return m.repository(req, a, q.name).serveList(w, req, q)
	case catalog:
		return m.serveCatalog(w, req)
	}
	return servePing(w, req)
}

// servePing answers the request by which clients find out whether this is a registry.
func servePing(w http.ResponseWriter, req *http.Request) result {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.Header()["Content-Length"] = []string{"2"}
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK}
	}
	n, err := content.Write(w, []byte("{}"))
	return result{status: http.StatusOK, sent: n, err: err}
}

// AccessLine is the message of a line of the access log.
const AccessLine = "request"

// access writes the access log: one line per request.
func (r *Registry) access(req *http.Request, registry string, q *request, res *result, start, end time.Time) {
	took := end.Sub(start)
	level := slog.LevelInfo
	f, failed := errors.AsType[*failure](res.err)
	if res.status >= 500 || res.err != nil && res.status < 400 {
		level = slog.LevelWarn
	}
	ctx := req.Context()
	if !r.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("method", req.Method), slog.String("kind", q.kind.String()),
		slog.String("registry", registry), slog.String("repository", q.name), slog.String("reference", q.ref), slog.Int("status", res.status),
		slog.String("cache", string(res.outcome)), slog.Int64("bytes", res.sent), slog.Float64("took_ms", float64(took.Round(time.Microsecond))/1e6),
		slog.String("client", req.RemoteAddr))
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 { // verified, since no other is asked for
		attrs = append(attrs, slog.String("client_name", req.TLS.PeerCertificates[0].Subject.CommonName))
	}
	if failed {
		attrs = append(attrs, slog.String("error", f.Error()))
	} else if res.err != nil {
		attrs = append(attrs, slog.String("error", res.err.Error()))
	}
	// As LogAttrs does it, without a look at the stack and another one at the clock.
	line := slog.NewRecord(end, level, AccessLine, 0)
	line.AddAttrs(attrs...)
	r.log.Handler().Handle(ctx, line)
}
