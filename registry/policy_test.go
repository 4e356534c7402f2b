package registry_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// reload is a request during which the settings are reloaded.
type reload struct {
	name          string
	prepare       func(l *lab, img *hubtest.Image) // before the request, with known as its policy
	known         func(*registry.Policy)           // nil: the policy of every lab
	before, after func(*registry.Policy)           // the policies before and after the reload
	method        string                           // "": GET
	layer         int64                            // size of the image's two layers; 0: 64 KiB
	path          func(img *hubtest.Image) string
}

// reloads are requests and pairs of policies under which they do different things. A request
// that takes something from both policies does a third thing.
func reloads() []reload {
	const repository = "library/app"
	day, none := 24*time.Hour, time.Duration(0)
	private := func(p *registry.Policy) { p.Private = []string{repository} }
	deny := func(p *registry.Policy) { p.Deny = []string{repository} }
	layer := func(img *hubtest.Image) string { return blobPath(repository, img.Manifests[0].Layers[0].Digest) }
	byDigest := func(img *hubtest.Image) string { return "/v2/" + repository + "/manifests/" + string(img.Digest) }
	list := func(*hubtest.Image) string { return "/v2/" + repository + "/tags/list" }
	recheck := func(p *registry.Policy) { p.TagTTL = &none }
	// known makes the repository known as public, with another tag of it.
	known := func(l *lab, _ *hubtest.Image) { l.pull(l.smallImage(repository, "other")) }
	// With upstream.private naming the repository nobody asks whether it is public, so the
	// request that is tested has to.
	getManifest := func(l *lab, img *hubtest.Image) { l.get(byDigest(img)) }
	deleted := func(l *lab, img *hubtest.Image) {
		l.pull(img)
		l.hub.Untag(repository, img.Tag)
	}
	return []reload{
		{name: "uncached tag, allowed and then denied", prepare: known, before: recheck, after: deny, path: manifestPath},
		{name: "uncached tag, denied and then allowed", prepare: known, before: deny, after: recheck, path: manifestPath},
		{name: "HEAD of an uncached tag, allowed and then denied", prepare: known, before: recheck, after: deny, method: http.MethodHead, path: manifestPath},
		{name: "uncached tag of unknown visibility, allowed and then denied", before: recheck, after: deny, path: manifestPath},
		{name: "uncached tag, public and then in the private list", before: recheck, after: private, path: manifestPath},
		{name: "uncached digest, allowed and then denied", prepare: known, before: recheck, after: deny, path: byDigest},
		{name: "deleted tag, kept and then inside its TTL", prepare: deleted,
			before: func(p *registry.Policy) { p.TagTTL, p.KeepGone = &none, true },
			after:  func(p *registry.Policy) { p.TagTTL = &day }, path: manifestPath},
		{name: "deleted tag, dropped and then inside its TTL", prepare: deleted,
			before: recheck,
			after:  func(p *registry.Policy) { p.TagTTL, p.KeepGone = &day, true }, path: manifestPath},
		{name: "moved tag, checked and then denied",
			prepare: func(l *lab, img *hubtest.Image) {
				l.pull(img)
				l.hub.AddImage(repository, img.Tag, hubtest.ImageSpec{Layers: hubtest.Layers(1, 5000)})
			},
			before: recheck, after: deny, path: manifestPath},
		{name: "stale tag, served and then refused",
			prepare: func(l *lab, img *hubtest.Image) {
				l.pull(img)
				l.hub.Inject(hubtest.Match{Kind: "manifests"}, hubtest.Status(500, ""))
			},
			before: recheck,
			after:  func(p *registry.Policy) { p.TagTTL, p.MaxStale = &none, time.Nanosecond }, path: manifestPath},
		{name: "first layer, public and then denied, in the private list and with read-ahead",
			layer: 5 << 18, // small ones may be complete before they are sent, and hits
			known: private, prepare: getManifest, before: recheck,
			after: func(p *registry.Policy) { deny(p); private(p); p.ReadAhead = true }, path: layer},
		{name: "tag list, rechecked and then denied and inside its TTL",
			known:   private,
			prepare: func(l *lab, img *hubtest.Image) { l.get(list(img)) },
			before:  recheck,
			after:   func(p *registry.Policy) { deny(p); p.TagTTL = &day }, path: list},
	}
}

// TestRequestSeesOnePolicy: the settings are reloaded at each step of a request in turn. At
// whichever step that is, the request does in every respect what one of the two policies
// wants: what the client gets, what upstream is asked for and what is stored.
//
// A step is whatever can be seen from outside: a request to upstream begins or ends, the
// client's context or response is used, something is logged.
func TestRequestSeesOnePolicy(t *testing.T) {
	t.Parallel()
	for _, r := range reloads() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			before, _ := r.run(t, r.before, r.after, 0)
			after, _ := r.run(t, r.after, r.before, 0)
			if before == after {
				t.Fatalf("both policies have the same effect:\n%s", before)
			}
			mixed := map[string][]string{}
			for step := 1; ; step++ {
				got, where := r.run(t, r.before, r.after, step)
				if where == "" { // the request has fewer steps
					break
				}
				if got != before && got != after {
					mixed[got] = append(mixed[got], fmt.Sprintf("%d, %s", step, where))
				}
			}
			for got, steps := range mixed {
				t.Errorf("the request mixed the policies:\n%s\nbefore the reload:\n%s\nafter it:\n%s\nat %d steps:\n\t%s",
					got, before, after, len(steps), strings.Join(steps, "\n\t"))
			}
		})
	}
}

// run makes the request with the policy before and reloads the settings at a step of it; 0 is
// never. It returns all that the request did, and where in it the step was: "" if it has
// fewer steps.
func (r reload) run(t *testing.T, before, after func(*registry.Policy), step int) (did, where string) {
	synctest.Test(t, func(t *testing.T) {
		s := &steps{}
		l := newLab(t, labOptions{hub: hubtest.Options{Latency: 10 * time.Millisecond, Bandwidth: 20e6}, policy: r.known,
			logger: slog.New(steppedLog{s}), intercept: s.roundTrip})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, cmp.Or(r.layer, 64<<10))})
		if r.prepare != nil {
			r.prepare(l, img)
			l.drain()
		}
		l.setPolicy(before)
		time.Sleep(time.Second)
		l.hub.ResetLedger()

		s.arm(step, func() { l.setPolicy(after) })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := httptest.NewRecorder()
		l.reg.ServeHTTP(steppedResponse{w, s}, httptest.NewRequest(cmp.Or(r.method, http.MethodGet), r.path(img), nil).WithContext(steppedContext{ctx, s}))
		cancel()
		time.Sleep(10 * time.Second) // what goes on in the background
		l.drain()
		where = s.disarm()

		did = fmt.Sprintf("\tanswer: %d %s, %d bytes\n", w.Code, w.Header().Get("X-Hubcache"), w.Body.Len())
		did += "\tupstream: " + strings.Join(asked(l.hub.Ledger()), ", ") + "\n"
		if tag, err := l.store.Tag("docker.io/library/app", img.Tag); err == nil {
			did += "\ttag: " + hubtest.Short(string(tag.Digest)) + "\n"
		}
		m := img.Manifests[0]
		for _, d := range []digest.Digest{img.Digest, m.Config.Digest, m.Layers[0].Digest, m.Layers[1].Digest} {
			if b, err := l.store.Open(d); err == nil {
				did += fmt.Sprintf("\tstored: %s, private=%v\n", hubtest.Short(string(d)), b.Private)
				b.Close()
			}
		}
	})
	return did, where
}

// asked lists what the registry and the CDN were asked for, each thing once, without the
// requests that had no token yet.
func asked(ledger hubtest.Ledger) []string {
	var all []string
	for _, e := range ledger {
		if e.Face != hubtest.Token && e.Status != http.StatusUnauthorized {
			all = append(all, fmt.Sprintf("%s %s %s", e.Face, e.Method, hubtest.Short(e.Reference)))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// steps counts the steps of a request and does something at one of them.
type steps struct {
	running atomic.Int32 // requests to upstream

	mu    sync.Mutex // guards what follows; not held in do
	armed bool
	seen  int
	at    int
	do    func()
	where string // the step that do was called at
}

// arm begins to count, and has do called at a step; 0 is never.
func (s *steps) arm(at int, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.at, s.do = true, at, do
}

// disarm ends counting and returns the step that do was called at, or "".
func (s *steps) disarm() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	return s.where
}

// pass is called at each step.
func (s *steps) pass(where string) {
	s.mu.Lock()
	if s.armed {
		s.seen++
	}
	now := s.armed && s.seen == s.at
	if now {
		s.where = where
	}
	s.mu.Unlock()
	if now {
		s.do()
	}
}

// roundTrip makes a step of the begin and of the end of each request to upstream.
func (s *steps) roundTrip(req *http.Request, next http.RoundTripper) (*http.Response, error) {
	s.pass("before " + req.Method + " " + req.URL.Path)
	s.running.Add(1)
	resp, err := next.RoundTrip(req)
	s.running.Add(-1)
	s.pass("after " + req.Method + " " + req.URL.Path)
	return resp, err
}

// steppedContext is a context each use of which is a step, except for those by net/http
// while it sends a request to upstream.
type steppedContext struct {
	context.Context
	*steps
}

func (c steppedContext) Done() <-chan struct{} { c.use(); return c.Context.Done() }

func (c steppedContext) Err() error { c.use(); return c.Context.Err() }

func (c steppedContext) Value(key any) any { c.use(); return c.Context.Value(key) }

func (c steppedContext) Deadline() (time.Time, bool) {
	c.use()
	return c.Context.Deadline()
}

func (c steppedContext) use() {
	if c.running.Load() == 0 {
		c.pass("context")
	}
}

// steppedResponse is a response each use of which is a step.
type steppedResponse struct {
	http.ResponseWriter
	*steps
}

func (w steppedResponse) Header() http.Header { w.pass("header"); return w.ResponseWriter.Header() }

func (w steppedResponse) WriteHeader(status int) {
	w.pass("status")
	w.ResponseWriter.WriteHeader(status)
}

func (w steppedResponse) Write(p []byte) (int, error) {
	w.pass("body")
	return w.ResponseWriter.Write(p)
}

// steppedLog is a log each record of which is a step. It writes nothing.
type steppedLog struct{ *steps }

func (s steppedLog) Enabled(context.Context, slog.Level) bool { return true }

func (s steppedLog) Handle(_ context.Context, r slog.Record) error {
	s.pass("log: " + r.Message)
	return nil
}

func (s steppedLog) WithAttrs([]slog.Attr) slog.Handler { return s }

func (s steppedLog) WithGroup(string) slog.Handler { return s }
