// Package registry answers the pull half of the OCI distribution API from a
// storage.Store, and fills the store from an upstream registry, Docker Hub.
//
// A request comes in through Registry.ServeHTTP, is parsed (request.go) and admitted
// (access.go). Manifests are answered from memory (hot.go), the store or upstream
// (manifest.go, tag.go); blobs from the store, from a flight that is filling it
// (flight.go, download.go, tap.go), or past it (blob.go). What upstream must not be asked
// now is in cooldown.go, what clients get for its failures in errors.go.
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
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/storage"
)

// Registry is the pull API and the pull-through policy in one http.Handler.
// All methods are safe for concurrent use.
type Registry struct {
	store *storage.Store
	up    *upstream
	log   *slog.Logger

	policy    atomic.Pointer[policy]
	transfers atomic.Pointer[lanes]
	bypasses  atomic.Pointer[slots]
	aheads    atomic.Pointer[slots]

	flights flights
	once    singleflight.Group // verdicts, confirmations, manifests, lists
	hot     *hot
	lists   *lists
	ahead   *ahead
	gone    memory // tags that upstream has not
	failed  memory // blobs whose fetch has just failed
	got     memory // whole blobs that clients have just got from the store
	trusted memory // blobs that were hashed lately

	doubting atomic.Bool // one is being hashed
	renewed  memory      // repositories whose verdict has just been asked for again

	slow atomic.Bool // upstream has just let a tag's check wait in vain

	behind  sync.WaitGroup // what goes on in the background
	closing context.Context
	close   context.CancelFunc

	counters
}

// New returns a Registry that serves o.Store and fetches what it lacks from o.Upstream.
// It makes no request: a server starts whether or not its upstream can be reached.
// Errors: an upstream URL that can't be one, an invalid pattern in the policy.
func New(o Options) (*Registry, error) {
	o.Log = cmp.Or(o.Log, slog.Default())
	up, err := newUpstream(o)
	if err != nil {
		return nil, err
	}
	r := &Registry{store: o.Store, up: up, log: o.Log, hot: newHot(), lists: newLists(), ahead: newAhead()}
	r.flights.all = map[digest.Digest]*flight{}
	r.closing, r.close = context.WithCancel(context.Background())
	if err := r.SetPolicy(o.Policy); err != nil {
		return nil, err
	}
	return r, nil
}

// Introduce asks upstream in the background how it wants to be spoken to, which spares the
// first pull a round trip and a connection. Nothing depends on the answer.
func (r *Registry) Introduce() {
	r.background(func(context.Context) {
		if err := r.up.auth.Learn(); err != nil {
			r.log.Debug("upstream doesn't answer yet", "error", err)
		}
	})
}

// SetPolicy replaces the policy for the requests that come after it.
// An invalid pattern is an error, and then nothing changes.
func (r *Registry) SetPolicy(p Policy) error {
	next, err := newPolicy(p)
	if err != nil {
		return err
	}
	old := r.policy.Swap(next)
	if old == nil || old.Limits != next.Limits {
		r.transfers.Store(newLanes(next.Limits.Transfers))
		r.bypasses.Store(semaphore.NewWeighted(int64(next.Limits.Bypass)))
		r.aheads.Store(semaphore.NewWeighted(int64(next.Limits.Orphans)))
	}
	r.hot.clear()
	return nil
}

// Close ends all fetches, keeping what has arrived for the next start, and waits for
// them until ctx is done. Call it when the HTTP servers have been shut down.
func (r *Registry) Close(ctx context.Context) error {
	r.close()
	r.ahead.stop()
	err := r.closeFlights(ctx)
	done := make(chan struct{})
	go func() { r.behind.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		err = cmp.Or(err, context.Cause(ctx))
	}
	return err
}

// background runs what no client waits for, until Close.
func (r *Registry) background(f func(context.Context)) {
	if leave, ok := r.enter(); ok {
		go func() { defer leave(); f(r.closing) }()
	}
}

// enter says that something begins which Close has to wait for, and that leave ends.
// ok is false when the server is stopping.
func (r *Registry) enter() (leave func(), ok bool) {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	if r.flights.closed {
		return nil, false
	}
	r.behind.Add(1)
	return r.behind.Done, true
}

// detached returns a context with ctx's values that ends with the server and not with ctx.
func (r *Registry) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(r.closing, func() { cancel(errStopping) })
	return ctx, func() { stop(); cancel(nil) }
}

// errStopping is what requests get that come when the server stops.
var errStopping = &upstreamError{cause: unreachable, host: "hubcache", err: errClosed}

// ServeHTTP answers one request of the pull API.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	// swarm on Docker 20.10 passes over a mirror without it.
	w.Header()["Docker-Distribution-Api-Version"] = apiVersion
	if req.ContentLength != 0 {
		// No request of a pull has a body. net/http waits for one before it answers.
		http.NewResponseController(w).SetReadDeadline(start.Add(bodyWithin))
	}
	q, err := parse(req.URL.Path)
	res := result{err: err}
	if err == nil {
		res = r.serve(w, req, q)
	}
	switch {
	case res.status != 0 || res.err == nil:
	case req.Context().Err() != nil: // nobody reads the answer, and it would have been one
		res.status, res.outcome = statusClientGone, cmp.Or(res.outcome, OutcomeMiss)
	default:
		f := fail(q.kind, res.err)
		f.write(w, req)
		res.status, res.outcome = f.status, OutcomeError
	}
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		r.count(q.kind, res)
	}
	r.access(req, q, res, start)
	if res.err != nil && (res.status < 400 || res.status == statusClientGone) {
		panic(http.ErrAbortHandler) // cut the connection: what was sent is not the whole
	}
}

// bodyWithin is how long a body that nobody asked for may take.
const bodyWithin = 5 * time.Second

var apiVersion = []string{"registry/2.0"}

// statusClientGone is nginx's status for the log: the client left before the answer.
const statusClientGone = 499

// serve answers, or returns an error with status 0.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request, q request) result {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return result{err: &failure{status: http.StatusMethodNotAllowed, code: errcode.ErrorCodeUnsupported, detail: "this is a pull-through cache: it only reads"}}
	}
	ns, asked, other := foreign(req.URL)
	if other {
		return result{err: &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: "this cache does not serve " + short(ns)}}
	}
	if asked {
		w.Header().Set("Oci-Namespace", "docker.io")
	}
	switch q.kind {
	case manifest:
		return r.serveManifest(w, req, q)
	case blob:
		return r.serveBlob(w, req, q)
	case tags, referrers:
		return r.serveList(w, req, q)
	case catalog:
		return r.serveCatalog(w, req)
	}
	w.Header()["Content-Type"] = []string{"application/json"}
	w.Header()["Content-Length"] = []string{"2"}
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK}
	}
	n, err := w.Write([]byte("{}"))
	return result{http.StatusOK, int64(n), "", err}
}

func short(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// serveManifest answers a GET or HEAD of a manifest.
func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, q request) result {
	head := req.Method == http.MethodHead
	age := r.hot.age()
	if m := r.hot.get(q.name, q.ref); m != nil && r.up.cool.down() == nil && len(req.Header["Range"]) == 0 && len(req.Header["If-None-Match"]) == 0 {
		if !head && m.handed.CompareAndSwap(false, true) {
			r.ahead.handedOut(q.name, m.digest, m.children)
		}
		return r.serveHot(w, m, head)
	}
	ctx, cancel := context.WithTimeoutCause(req.Context(), answerWithin, &upstreamError{cause: timeout, host: r.up.base.Host})
	defer cancel()
	f, err := r.manifestFor(ctx, q, head)
	if err != nil {
		return result{err: err}
	}
	if f.body != nil {
		r.hot.put(age, q.name, string(f.digest), &found{digest: f.digest, mediaType: f.mediaType, body: f.body, children: f.children})
		if q.digest == "" && !f.expires.IsZero() {
			r.hot.put(age, q.name, q.ref, f)
		}
		if !head {
			r.ahead.handedOut(q.name, f.digest, f.children)
		}
	}
	return send(w, req, content.Object{Digest: string(f.digest), MediaType: f.mediaType, Size: f.size, Cache: string(f.outcome)}, content.Bytes(f.body))
}

func (r *Registry) serveHot(w http.ResponseWriter, m *hotManifest, head bool) result {
	if m.due() {
		r.store.Touch(m.digest)
	}
	h := w.Header()
	for k, v := range m.header {
		h[k] = v
	}
	if head {
		w.WriteHeader(http.StatusOK)
		return result{status: http.StatusOK, outcome: OutcomeHit}
	}
	n, err := w.Write(m.body)
	return result{http.StatusOK, int64(n), OutcomeHit, err}
}

// AccessLine is the message of a line of the access log.
const AccessLine = "request"

// access writes the access log: one line per request.
func (r *Registry) access(req *http.Request, q request, res result, start time.Time) {
	took := time.Since(start)
	level := slog.LevelInfo
	f, failed := errors.AsType[*failure](res.err)
	if res.status >= 500 || res.err != nil && res.status < 400 {
		level = slog.LevelWarn
	}
	ctx := req.Context()
	if !r.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("method", req.Method), slog.String("kind", q.kind.String()),
		slog.String("repository", q.name), slog.String("reference", q.ref), slog.Int("status", res.status),
		slog.String("cache", string(res.outcome)), slog.Int64("bytes", res.sent), slog.Float64("took_ms", float64(took.Round(time.Microsecond))/1e6),
		slog.String("client", req.RemoteAddr))
	if failed {
		attrs = append(attrs, slog.String("error", f.Error()))
	} else if res.err != nil {
		attrs = append(attrs, slog.String("error", res.err.Error()))
	}
	// As LogAttrs does it, without a look at the stack and another one at the clock.
	line := slog.NewRecord(start.Add(took), level, AccessLine, 0)
	line.AddAttrs(attrs...)
	r.log.Handler().Handle(ctx, line)
}
