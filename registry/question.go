package registry

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/slots"
	"github.com/hubcache/hubcache/upstream"
)

// absentMost is how long a no is remembered at most, but for a tag: whoever is refused, or
// pushes what was asked for too early, is served seconds later.
const absentMost = 10 * time.Second

// listKind is what absent remembers lists under, beside fetch's kinds.
const listKind fetch.Kind = "lists"

// absent remembers for a short time what the upstream has just said that it hasn't got, or
// that it refuses. Every question to the upstream goes through it.
// A no to one question says nothing about another one: about another reference, or about the
// same digest as a manifest and as a blob. All methods are safe for concurrent use.
type absent struct {
	m      *mirror
	memory cooldown.Memory
}

var errRemembered = errors.New("remembered from a moment ago")

func absentKey(k fetch.Kind, repository, reference string) string {
	return string(k) + " " + repository + " " + reference
}

// ttl is how long a no of this kind is remembered under the policy of now.
func (a *absent) ttl(k fetch.Kind, reference string, c upstream.Cause) time.Duration {
	ttl := a.m.policy.Load().NegativeTTL
	if k == fetch.Manifests && !name.ValidDigest(reference) && c == upstream.NotFound {
		return ttl // a tag, for which the operator chooses
	}
	return min(ttl, absentMost)
}

// get returns the no that is remembered, or nil. What a cached manifest of the repository
// names is always asked for: it must be there, and whoever says otherwise may be wrong.
// Errors: *upstream.Error.
func (a *absent) get(k fetch.Kind, repository, reference string) error {
	err, ok := a.memory.Get(absentKey(k, repository, reference))
	if !ok || a.m.policy.Load().NegativeTTL == 0 || k != listKind && a.named(repository, reference) {
		return nil
	}
	return err
}

// named reports whether the reference is a digest that a cached manifest of the repository
// names, or that the upstream has confirmed.
func (a *absent) named(repository, reference string) bool {
	if !name.ValidDigest(reference) {
		return false
	}
	_, err := a.m.store.Link(a.m.name+"/"+repository, digest.Digest(reference))
	return err == nil
}

// note takes note of an answer of the upstream. A refusal counts only once it is known that
// the repository is public, or may be served although it is private: before that, it may be
// about anything.
func (a *absent) note(k fetch.Kind, repository, reference string, err error) {
	if err == nil {
		a.memory.Forget(absentKey(k, repository, reference))
		return
	}
	u, ok := noOf(err)
	if !ok || u.Cause == upstream.Denied && !a.settled(repository) {
		return
	}
	again := &upstream.Error{Cause: u.Cause, Host: u.Host, Status: u.Status, Err: errRemembered}
	a.memory.Add(absentKey(k, repository, reference), a.ttl(k, reference, u.Cause), again)
}

// noOf returns the upstream's no, if err is one, and no failure.
func noOf(err error) (u *upstream.Error, ok bool) {
	u, ok = errors.AsType[*upstream.Error](err)
	return u, ok && !u.Down()
}

// settled reports whether the visibility of the repository is known.
func (a *absent) settled(repository string) bool {
	m := a.m
	if !m.client.HasCredential() || m.policy.Load().private.match(repository) {
		return true
	}
	_, err := m.store.Visibility(m.name + "/" + repository)
	return err == nil
}

const (
	// questions is how many questions the upstream is asked at one time, and visibilities how
	// many about who may read a repository, which other questions may wait for: together 64, and
	// at 50 ms for each, a thousand in a second.
	questions    = 40
	visibilities = 16

	// tagLists is how many tag lists the upstream is asked for at one time. They take long, and
	// must not keep pulls waiting. longLists is the same for those that are too large for memory:
	// they take as long as their clients do.
	tagLists  = 5
	longLists = 3

	// maxWaiting is how many more of each may wait, and questionPatience how long, which leaves
	// a manifest's answerDeadline some time for the question itself.
	maxWaiting       = 512
	questionPatience = 2 * time.Second
)

// errBusy is what those get whose questions can't be asked in time. It is wrapped with an
// *upstream.Error, so that what is cached is served stale.
var errBusy = errors.New("too many questions wait for the upstream")

// errClientLimit says that one client has asked for too much.
var errClientLimit = errors.New("limits.client")

// clientOf returns the client with this RemoteAddr: its address, or of IPv6 its network, in
// which it has as many addresses as it likes. The zero Addr is every client on this machine:
// there may be a proxy among them, through which all others come.
func clientOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	ip := ap.Addr().Unmap().WithZone("")
	if err != nil || ip.IsLoopback() {
		return netip.Addr{}
	}
	if ip.Is6() {
		network, _ := ip.Prefix(64)
		return network.Addr()
	}
	return ip
}

// ask waits until the upstream may be asked a question, which takes a slot of s. The context
// for it ends after the deadline, or lasts with 0 as long as ctx; done ends it and lets the next one be asked. Questions
// that the server has by itself are asked for the client "".
// Errors: errBusy with an *upstream.Error, the cause of ctx.
func (m *mirror) ask(ctx context.Context, s *slots.Slots, deadline time.Duration) (asking context.Context, done func(), err error) {
	client := clientIn(ctx).name()
	wait, cancel := context.WithTimeout(ctx, questionPatience)
	defer cancel()
	if s.Acquire(wait, client, slots.Urgent) != nil {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, errors.Join(errBusy, &upstream.Error{Cause: upstream.Throttled, Host: m.client.Host(), RetryAfter: retrySoon})
	}
	var end context.CancelFunc
	if deadline > 0 {
		asking, end = context.WithTimeout(ctx, deadline)
	} else {
		asking, end = context.WithCancel(ctx)
	}
	return asking, func() { end(); s.Release(client) }, nil
}

// questionSource is a source that is asked only what the mirror lets through: not what absent
// remembers, and not more than questions at a time. The bodies of blobs have limits of their own.
type questionSource struct {
	fetch.Source
	m *mirror
}

func (s questionSource) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (d fetch.Descriptor, err error) {
	err = s.question(ctx, k, repository, reference, func(ctx context.Context) error {
		d, err = s.Source.Resolve(ctx, repository, k, reference)
		return err
	})
	if err == nil && d.Digest != "" {
		s.m.absent.note(k, repository, string(d.Digest), nil) // a tag that names it says that it is there
	}
	return d, err
}

func (s questionSource) Manifest(ctx context.Context, repository, reference string) (m fetch.Manifest, err error) {
	err = s.question(ctx, fetch.Manifests, repository, reference, func(ctx context.Context) error {
		m, err = s.Source.Manifest(ctx, repository, reference)
		return err
	})
	return m, err
}

func (s questionSource) Confirm(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	return s.question(ctx, k, repository, string(d), func(ctx context.Context) error {
		return s.Source.Confirm(ctx, repository, k, d)
	})
}

// question asks one question, unless a no is remembered, and remembers a no.
func (s questionSource) question(ctx context.Context, k fetch.Kind, repository, reference string, f func(context.Context) error) error {
	if err := s.m.absent.get(k, repository, reference); err != nil {
		return err
	}
	ctx, done, err := s.m.ask(ctx, s.m.questions, requestDeadline)
	if err != nil {
		return err
	}
	defer done()
	err = f(ctx)
	s.m.absent.note(k, repository, reference, err)
	return err
}

func (s questionSource) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return absentBlob{s.Source.Blob(repository, d), s.m.absent, repository, string(d)}
}

// absentBlob is a blob that isn't asked for while absent remembers that it isn't there.
type absentBlob struct {
	fetch.BlobSource
	absent             *absent
	repository, digest string
}

// Open opens a part of the blob. A no wraps fetch.ErrAbsent.
func (b absentBlob) Open(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	if err := b.absent.get(fetch.Blobs, b.repository, b.digest); err != nil {
		return nil, absentError{err}
	}
	body, err := b.BlobSource.Open(ctx, p)
	b.absent.note(fetch.Blobs, b.repository, b.digest, err)
	if _, no := noOf(err); no {
		err = absentError{err}
	}
	return body, err
}

// Ended tells the source how a download ended, if it wants to know.
func (b absentBlob) Ended(err error) {
	if e, ok := b.BlobSource.(fetch.Ender); ok {
		e.Ended(err)
	}
}

// absentError makes a no of the upstream one that package fetch knows.
type absentError struct{ error }

func (e absentError) Unwrap() []error { return []error{e.error, fetch.ErrAbsent} }

// askers count the requests of each client that want something from an upstream. All methods
// are safe for concurrent use.
type askers struct {
	mu sync.Mutex // guards n
	n  map[netip.Addr]int
}

// asker is the client of one request. All methods are safe for concurrent use.
type asker struct {
	client netip.Addr // see clientOf
	all    *askers
	most   int // requests of the client that may want something from an upstream; 0: any number

	mu      sync.Mutex // guards what follows; held while that of all is taken
	counted bool
	left    bool
}

// thisMachine is the asker of requests whose clients have no limits of their own.
var thisMachine = &asker{}

// asker returns the client of a request with this RemoteAddr. Call leave at the end of the request.
func (c *askers) asker(remote string, most int) *asker {
	client := clientOf(remote)
	if !client.IsValid() {
		return thisMachine
	}
	return &asker{client: client, all: c, most: most}
}

// name is the client's name in slots.Slots; "" is who has no limit.
func (a *asker) name() string {
	if a == nil || !a.client.IsValid() {
		return ""
	}
	return a.client.String()
}

// enter says that the request wants something from the upstream. It counts once, and not
// when the request has ended.
// Errors: errBusy with an *upstream.Error, when too many requests of the client do.
func (a *asker) enter() error {
	if a == nil || a.most == 0 || !a.client.IsValid() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counted || a.left {
		return nil
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.all.n[a.client] >= a.most {
		return fmt.Errorf("%w: %w", errClientLimit, errors.Join(errBusy, &upstream.Error{Cause: upstream.Throttled, Host: "hubcache", RetryAfter: retrySoon}))
	}
	if a.all.n == nil {
		a.all.n = map[netip.Addr]int{}
	}
	a.all.n[a.client]++
	a.counted = true
	return nil
}

// leave says that the request has ended.
func (a *asker) leave() {
	if a == thisMachine {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = true
	if !a.counted {
		return
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.all.n[a.client]--; a.all.n[a.client] == 0 {
		delete(a.all.n, a.client)
	}
}

// clientKey is the key of a context's asker.
type clientKey struct{}

// withClient returns a context whose questions are asked for a client.
func withClient(ctx context.Context, a *asker) context.Context {
	return context.WithValue(ctx, clientKey{}, a)
}

// clientIn returns the asker that a context's questions are for, or nil.
func clientIn(ctx context.Context) *asker {
	a, _ := ctx.Value(clientKey{}).(*asker)
	return a
}
