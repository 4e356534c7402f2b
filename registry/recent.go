package registry

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// Failure is what clients have asked for lately and didn't get: requests of one repository that
// failed for the same reason. Nothing in it is a secret, but repositories may be private.
type Failure struct {
	Cause      string // whose fault it is: client, policy, upstream or disk, as in Errors
	Reason     string // one of the Reason constants
	Registry   string // its name; "" when the client named one that isn't configured
	Repository string // without the registry
	Reference  string // of the last request: a tag or a digest; "" for a list of tags
	Detail     string // what the last client was told
	Count      int64
	First      time.Time
	Last       time.Time
}

// The reasons of a Failure.
const (
	ReasonAbsent      = "absent"      // it doesn't exist, or isn't public: upstream doesn't tell them apart
	ReasonPrivate     = "private"     // it is private, and not in the list of private repositories
	ReasonRequest     = "request"     // the request makes no sense
	ReasonSettings    = "settings"    // allow, deny, or a registry that isn't configured
	ReasonBusy        = "busy"        // a limit of this cache
	ReasonUnsupported = "unsupported" // a manifest that this cache doesn't serve
	ReasonCredential  = "credential"  // upstream refuses our credential, or its file can't be read
	ReasonThrottled   = "throttled"   // upstream limits requests
	ReasonTimeout     = "timeout"     // upstream doesn't answer in time
	ReasonUnreachable = "unreachable" // there is no connection to upstream
	ReasonCertificate = "certificate" // upstream's certificate isn't trusted
	ReasonBroken      = "broken"      // upstream answers with an error, or with what makes no sense
	ReasonCorrupt     = "corrupt"     // upstream sends other bytes than the digest says
	ReasonVisibility  = "visibility"  // nobody can tell whether the repository is public
	ReasonDisk        = "disk"        // what is cached can't be read
)

// recentMost is how many failures are kept of each cause. Clients can invent names, and must not
// push out by them what is the fault of others.
const recentMost = 16

// recent has the last failures by cause. It takes no other lock.
type recent struct {
	mu       sync.Mutex // guards failures
	failures [causes][]Failure
}

// add counts a failure. The oldest one of its cause goes when there are too many.
func (r *recent) add(c cause, f Failure, now time.Time) {
	f.Cause, f.Count, f.First, f.Last = [causes]string{"client", "policy", "upstream", "disk"}[c], 1, now, now
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.failures[c]
	same := func(o Failure) bool {
		return o.Reason == f.Reason && o.Registry == f.Registry && o.Repository == f.Repository
	}
	if at := slices.IndexFunc(list, same); at >= 0 {
		f.Count, f.First = list[at].Count+1, list[at].First
		list = slices.Delete(list, at, at+1)
	} else if len(list) == recentMost {
		list = slices.Delete(list, 0, 1)
	}
	r.failures[c] = append(list, f)
}

// list returns all failures, the newest first.
func (r *recent) list() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Concat(r.failures[:]...)
	slices.SortStableFunc(all, func(a, b Failure) int { return b.Last.Compare(a.Last) })
	return all
}

// noteFailure keeps a request that has failed for its client. One whose client has left hasn't, and
// one that names no repository tells nobody anything.
func (r *Registry) noteFailure(registry string, q *request, res *result, now time.Time) {
	if res.err == nil || res.status == statusClientGone || q.name == "" {
		return
	}
	c := res.cause
	if res.outcome != OutcomeError { // the body broke off, or the client has left
		if _, ok := errors.AsType[*upstream.Error](res.err); !ok && !errors.Is(res.err, storage.ErrDigest) {
			return
		}
		c = byUpstream
	}
	f := Failure{Reason: reasonOf(res.err), Registry: registry, Repository: q.name, Reference: q.ref, Detail: fail(q.kind, res.err).detail}
	r.recent.add(c, f, now)
}

// reasonOf returns the Reason of an error that a client was answered with.
func reasonOf(err error) string {
	if f, ok := errors.AsType[*failure](err); ok && f.err == nil {
		switch {
		case f.policy:
			return ReasonSettings
		case f == privateRepository:
			return ReasonPrivate
		case f == impossibleName:
			return ReasonAbsent
		}
		return ReasonRequest
	}
	for _, own := range []error{errClientLimit, errBusy, fetch.ErrBusy, fetch.ErrEnded, errStopping} {
		if errors.Is(err, own) {
			return ReasonBusy
		}
	}
	if u, ok := errors.AsType[*upstream.Error](err); ok {
		return upstreamReason(u)
	}
	_, network := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, storage.ErrDigest):
		return ReasonCorrupt
	case errors.Is(err, context.DeadlineExceeded):
		return ReasonTimeout
	case network:
		return ReasonUnreachable
	}
	return ReasonDisk
}

// upstreamReason returns the Reason of a failure of an upstream.
func upstreamReason(u *upstream.Error) string {
	switch {
	case u.WithoutToken():
		return ReasonCredential
	case u.Untrusted():
		return ReasonCertificate
	}
	return cmp.Or(map[upstream.Cause]string{
		upstream.NotFound: ReasonAbsent, upstream.Denied: ReasonAbsent, upstream.Unsupported: ReasonUnsupported,
		upstream.Refused: ReasonCredential, upstream.Throttled: ReasonThrottled, upstream.Timeout: ReasonTimeout,
		upstream.Unreachable: ReasonUnreachable, upstream.NoVisibility: ReasonVisibility,
	}[u.Cause], ReasonBroken)
}
