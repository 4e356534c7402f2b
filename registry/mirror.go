package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/hubcache/hubcache/calls"
	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// mirror is the cache of one upstream registry. Whatever exists once per upstream is a field
// here, so that no key of one can be taken for a key of another; whatever exists once per
// process is in shared. All methods are safe for concurrent use.
type mirror struct {
	name    string            // "docker.io": in the keys of the store, and in answers
	options *upstream.Options // what the client was made of
	hub     bool              // it is Docker Hub, for which some rules hold alone
	client  *upstream.Client  // health, quota, visibility and lists
	source  fetch.Source      // tags, manifests and blobs
	recall  recaller          // nil: source has none
	judge   judge             // the same
	behind  bool              // the upstream is behind a source that may have what it lacks while it is down
	policy  atomic.Pointer[policy]

	hot       *hot             // manifests that are answered from memory
	catalogue catalogue        // the repositories that are cached
	lists     *lists           // tag lists and referrers
	ahead     *readAhead       // which layers to fetch ahead of a client
	questions *slots.Slots     // how many questions the upstream is asked at one time; see ask
	judging   *slots.Slots     // the same for visibilities, which questions may wait for
	listing   *slots.Slots     // the same for tag lists
	streaming *slots.Slots     // the same for lists that are too large for memory
	longLists cooldown.Memory  // those, by listKey
	absent    *absent          // what the upstream has just said that it hasn't got
	renewed   cooldown.Memory  // repositories whose visibility has just been asked for again
	looked    cooldown.Memory  // repositories of which the other nodes have just been asked
	overdue   overdue          // repositories whose visibility is too old
	calls     calls.Group[any] // visibilities, confirmations, heads, manifests, lists
	checks    tagChecks        // checks of cached tags that are under way
	refresher *refresher       // checks of tags that no client waits for

	*shared
}

// shared is what all mirrors of a process share.
type shared struct {
	store    *storage.Store
	pool     *fetch.Pool
	tasks    *tasks
	rechecks *rechecks
	counters *counters
	askers   *askers
	reading  *semaphore.Weighted // one large manifest at a time is read into memory

	quarantine *quarantine.Book
	log        *slog.Logger

	sending   atomic.Int64 // blobs that clients are getting
	verifying atomic.Bool
}

// newMirror returns the mirror of an upstream, which has the counters of its name. It makes no
// request.
// Errors: those of upstream.New, a name with a slash.
func newMirror(u Upstream, s *shared, counts func(name string) *upstream.Counters) (*mirror, error) {
	m := &mirror{
		shared: s, hot: newHot(), lists: newLists(), ahead: newReadAhead(), checks: tagChecks{running: map[string]*tagCheck{}},
		questions: slots.New(questions, maxWaiting), judging: slots.New(visibilities, maxWaiting), listing: slots.New(tagLists, maxWaiting), streaming: slots.New(longLists, maxWaiting),
	}
	o := *u.Options
	o.Log, o.Public, o.Counters = cmp.Or(o.Log, s.log), m.knownPublic, counts(cmp.Or(o.Name, hub))
	client, err := upstream.New(o)
	if err != nil {
		return nil, err
	}
	if strings.Contains(client.Name(), "/") { // one upstream's keys would be another's
		return nil, fmt.Errorf("an upstream's name can't be %q", client.Name())
	}
	m.name, m.options, m.client, m.source = client.Name(), u.Options, client, registrySource{client, m}
	m.hub = m.name == hub
	if u.Source != nil {
		m.source, m.behind = u.Source(m.source), true
		m.recall, _ = m.source.(recaller)
		m.judge, _ = m.source.(judge)
	}
	m.absent, m.refresher = &absent{m: m}, newRefresher(m)
	m.source = questionSource{m.source, m}
	return m, nil
}

// setPolicy replaces the policy for the requests that come after it.
func (m *mirror) setPolicy(p *policy) {
	m.policy.Store(p)
	m.hot.clear() // these answers were given under the old one
}

// retire ends what the mirror does by itself, because no request comes any more. What has begun
// goes on.
func (m *mirror) retire() {
	m.refresher.stop()
	m.client.CloseIdle()
}

// learn asks the upstream in the background how it wants to be authenticated to.
func (m *mirror) learn() {
	m.tasks.background(func(context.Context) {
		if err := m.client.Learn(); err != nil {
			m.log.Debug("upstream doesn't answer yet", "error", err)
		}
	})
}

const (
	// visibilityAge is how long a visibility counts. After that it is overdue.
	visibilityAge = 24 * time.Hour

	// renewAge is when it is asked for again, so that it isn't overdue in a repository that is
	// in use.
	renewAge = visibilityAge - time.Hour

	// privateAge is the same for a private repository: a token service in trouble may have
	// refused for a moment what is public, and a repository may just have been made public.
	privateAge = time.Minute

	// renewPause is how long after a question the next one is asked, whatever came of it.
	renewPause = time.Minute
)

// admission is the decision whether a repository may be served to a request. It may have to
// wait for the upstream.
type admission struct {
	decided chan struct{} // closed once err is final; nil: err is final already
	err     error
}

// Decisions that need no waiting.
var (
	admitted = &admission{}
	refused  = &admission{err: notAllowed}
	hidden   = &admission{err: privateRepository}
)

// mayBlock reports whether wait may have to wait for the upstream.
func (a *admission) mayBlock() bool { return a.decided != nil }

// wait returns nil if the repository may be served.
// Errors: *failure, *upstream.Error when nobody can tell, ctx's cause.
func (a *admission) wait(ctx context.Context) error {
	if a.decided != nil {
		select {
		case <-a.decided:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return a.err
}

// admit decides whether a repository may be served at all: the operator lets it, and it is
// public, or named in its list of private ones. Without a credential everything that the upstream
// serves is public.
//
// With one, the first request for a repository waits for its visibility. Later ones never
// do: an old visibility is renewed in the background, and the last one stays in force while
// none can be had. See requester for what is fetched meanwhile.
func (m *mirror) admit(ctx context.Context, r *repo) *admission {
	if !r.policy.allowed(r.name) {
		return refused
	}
	if !m.judges() || r.policy.private.match(r.name) {
		return admitted
	}
	if m.judge != nil && !m.looked.Has(r.name) {
		return m.decideLater(func() error {
			m.askOthers(ctx, r)
			return m.admitKnown(ctx, r).wait(ctx)
		})
	}
	return m.admitKnown(ctx, r)
}

// judges reports whether there may be repositories that clients of this node may not read, although the
// upstream serves them or what is cached of them.
func (m *mirror) judges() bool { return m.client.HasCredential() || m.judge != nil }

// admitKnown is admit by what this node knows, or the upstream.
func (m *mirror) admitKnown(ctx context.Context, r *repo) *admission {
	v, err := m.store.Visibility(r.full)
	if err != nil && !m.client.HasCredential() {
		return admitted // nobody has found it private
	}
	if err != nil {
		return m.decideLater(func() error { return m.admitUnknown(ctx, r) })
	}
	old := m.client.HasCredential() && age(v) > renewAge || !v.Public && age(v) > privateAge
	if old && !m.renewed.Has(r.name) {
		m.renewed.Add(r.name, renewPause, nil)
		m.tasks.background(func(ctx context.Context) { m.visibility(ctx, r) })
	}
	if !v.Public {
		return hidden
	}
	return admitted
}

// age returns how old a visibility is; one that lies ahead of the clock is as old as can be.
func age(v storage.Visibility) time.Duration {
	if age := time.Since(v.At); age >= 0 {
		return age
	}
	return math.MaxInt64
}

// admitUnknown is admit for a repository whose visibility isn't known.
func (m *mirror) admitUnknown(ctx context.Context, r *repo) error {
	v, err := m.visibility(ctx, r)
	if err == nil && !v.Public {
		err = privateRepository
	}
	return err
}

// decideLater returns an admission that is decided in the background, so that the caller can ask
// for the tag meanwhile.
func (m *mirror) decideLater(decide func() error) *admission {
	leave, ok := m.tasks.enter()
	if !ok {
		return &admission{err: errStopping}
	}
	a := &admission{decided: make(chan struct{})}
	go func() {
		defer leave()
		defer close(a.decided)
		a.err = decide()
	}()
	return a
}

// visibility asks the upstream whether the repository is public, once for all who wait, and
// keeps the answer.
func (m *mirror) visibility(ctx context.Context, r *repo) (storage.Visibility, error) {
	return share(ctx, m.tasks, &m.calls, "visibility "+r.name, func(ctx context.Context) (storage.Visibility, error) {
		ctx, done, err := m.ask(ctx, m.judging, requestDeadline)
		if err != nil {
			return storage.Visibility{}, err
		}
		defer done()
		public, err := m.client.Public(ctx, r.name)
		old, oldErr := m.store.Visibility(r.full)
		if err != nil {
			if cause := context.Cause(ctx); cause == nil || errors.Is(cause, context.DeadlineExceeded) {
				v, ok := m.told(ctx, r)
				if ok {
					old = v
				}
				m.unrenewed(r, old, err) // otherwise the caller has ended it
				if ok {
					return v, nil
				}
			}
			return storage.Visibility{}, err
		}
		v := storage.Visibility{Public: public, At: time.Now()}
		m.overdue.forget(r.name)
		m.store.SetVisibility(r.full, v)
		if m.judge != nil {
			m.judge.SetVisibility(r.name, public, v.At)
		}
		if oldErr == nil && old.Public != v.Public {
			m.hot.clear() // these answers were given under the old visibility
		}
		return v, nil
	})
}

// registrySource is the fetch.Source that is an upstream registry. It is here because fetch and
// upstream don't know each other; the values of their Kinds are the same, the folders of the
// API. Errors are *upstream.Error.
type registrySource struct {
	client *upstream.Client
	m      *mirror // knows who may ask
}

func (s registrySource) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	ctx = s.m.requester(ctx, repository)
	d, err := s.client.Resolve(ctx, repository, upstream.Kind(k), reference)
	return fetch.Descriptor{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size}, untold(ctx, err)
}

func (s registrySource) Manifest(ctx context.Context, repository, reference string) (fetch.Manifest, error) {
	ctx = s.m.requester(ctx, repository)
	m, err := s.client.Manifest(ctx, repository, reference)
	return fetch.Manifest(m), untold(ctx, err)
}

func (s registrySource) Confirm(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	ctx = s.m.requester(ctx, repository)
	return untold(ctx, s.client.Confirm(ctx, repository, upstream.Kind(k), d))
}

func (s registrySource) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return registryBlob{s.client.Blob(repository, d), repository, s.m}
}

type registryBlob struct {
	blob       *upstream.Blob
	repository string
	m          *mirror
}

func (b registryBlob) Open(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	ctx = b.m.requester(ctx, b.repository)
	body, err := b.blob.Open(ctx, upstream.Part(p))
	if err != nil {
		return nil, laterOf(untold(ctx, err))
	}
	from, to := body.Span()
	return &fetch.Body{ReadCloser: registryBody{body}, From: from, To: to, Size: body.Size(), Ranged: body.Ranged()}, nil
}

// registryBody is the body of a blob, whose errors package fetch knows.
type registryBody struct{ *upstream.Body }

func (b registryBody) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	if err != nil && err != io.EOF {
		err = laterOf(err)
	}
	return n, err
}

// laterOf makes err wrap fetch.ErrLater if it says nothing of the blob: package upstream
// remembers its pauses, and for how long a refused credential isn't tried.
func laterOf(err error) error {
	if u, ok := errors.AsType[*upstream.Error](err); ok && (u.Cause == upstream.Throttled || u.Cause == upstream.Refused || u.NotAsked()) {
		return laterError{err}
	}
	return err
}

type laterError struct{ error }

func (e laterError) Unwrap() []error { return []error{e.error, fetch.ErrLater} }
