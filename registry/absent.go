package registry

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/upstream"
)

// absentMost is how long a no is remembered at most, but for a tag: whoever is refused, or
// pushes what was asked for too early, is served seconds later.
const absentMost = 10 * time.Second

// listKind is what absent remembers lists under, beside fetch's kinds.
const listKind fetch.Kind = "lists"

// absent remembers for a short time what the upstream has just said that it hasn't got, or
// that it refuses. Every question to the upstream goes through it, or through absentSource.
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
	return u, ok && (u.Cause == upstream.NotFound || u.Cause == upstream.Denied)
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

// absentSource is a source that isn't asked for what absent remembers.
type absentSource struct {
	fetch.Source
	absent *absent
}

func (s absentSource) Resolve(ctx context.Context, repository string, k fetch.Kind, reference string) (fetch.Descriptor, error) {
	if err := s.absent.get(k, repository, reference); err != nil {
		return fetch.Descriptor{}, err
	}
	d, err := s.Source.Resolve(ctx, repository, k, reference)
	s.absent.note(k, repository, reference, err)
	if err == nil && d.Digest != "" {
		s.absent.note(k, repository, string(d.Digest), nil) // a tag that names it says that it is there
	}
	return d, err
}

func (s absentSource) Manifest(ctx context.Context, repository, reference string) (fetch.Manifest, error) {
	if err := s.absent.get(fetch.Manifests, repository, reference); err != nil {
		return fetch.Manifest{}, err
	}
	m, err := s.Source.Manifest(ctx, repository, reference)
	s.absent.note(fetch.Manifests, repository, reference, err)
	return m, err
}

func (s absentSource) Confirm(ctx context.Context, repository string, k fetch.Kind, d digest.Digest) error {
	if err := s.absent.get(k, repository, string(d)); err != nil {
		return err
	}
	err := s.Source.Confirm(ctx, repository, k, d)
	s.absent.note(k, repository, string(d), err)
	return err
}

func (s absentSource) Blob(repository string, d digest.Digest) fetch.BlobSource {
	return absentBlob{s.Source.Blob(repository, d), s.absent, repository, string(d)}
}

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

// absentError makes a no of the upstream one that package fetch knows.
type absentError struct{ error }

func (e absentError) Unwrap() []error { return []error{e.error, fetch.ErrAbsent} }
