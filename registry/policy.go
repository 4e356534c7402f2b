package registry

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/name"
)

// Policy is what an operator may change while the server runs (Registry.Configure).
type Policy struct {
	Tags         []TagRule // first match wins; see TagRule
	TagTTL       *time.Duration
	MaxStale     time.Duration // how long a tag may be served while upstream fails; 0: never
	NegativeTTL  time.Duration // how long an upstream 404 is remembered
	KeepGone     bool          // serve a tag that upstream has deleted
	Allow, Deny  []string      // repository globs; empty Allow: all; Deny wins
	Private      []string      // repository globs served although they are private
	QuotaReserve float64       // share of the quota (0…1) below which only what a client waits for, and no cached tag's new image, is fetched
	Limits       fetch.Limits
	ClientLimit  int // requests of one client that may want something from upstream at one time; 0: any number
	ReadAhead    bool

	// DenyDigests are manifests and blobs that no client gets, by whatever name.
	DenyDigests []digest.Digest
}

// TagRule overrides the tag settings for references that match, e.g. "library/*:*-alpine".
// In a pattern * crosses no slash. A nil field keeps the general setting.
type TagRule struct {
	Match    string
	TTL      *time.Duration
	MaxStale *time.Duration
	// Quarantine is how long a digest must have been known before the tag is answered with it; 0: no time.
	Quarantine time.Duration
	Refresh    bool // check the tag in the background before its TTL ends, while it is in use; see refresher
}

// defaultTTL is the TTL of official images, which are rebuilt a few times a month. All
// others are asked for every time: people push and deploy at once.
const defaultTTL = time.Minute

// policy is a checked Policy of one upstream.
type policy struct {
	Policy
	private, allow, deny globs
	tagRules             []TagRule // with normalized patterns
	denied               map[digest.Digest]bool
	hub                  bool
}

// PatternError is the error for what is no pattern.
type PatternError struct {
	Setting string // where it is: "private", "allow", "deny" or "tags.rules"
	Pattern string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("%s: %q is not a pattern", e.Setting, e.Pattern)
}

// newPolicy returns the policy of the upstream with that name.
// Errors: *PatternError.
func newPolicy(p Policy, registry string) (*policy, error) {
	q := &policy{Policy: p, hub: registry == hub, denied: map[digest.Digest]bool{}}
	for _, d := range p.DenyDigests {
		q.denied[d] = true
	}
	normal := name.NormalizePattern
	if !q.hub {
		normal = func(pattern string) string { return strings.TrimPrefix(pattern, registry+"/") }
	}
	for _, g := range []struct {
		name string
		from []string
		to   *globs
	}{{"private", p.Private, &q.private}, {"allow", p.Allow, &q.allow}, {"deny", p.Deny, &q.deny}} {
		for _, pattern := range g.from {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, &PatternError{g.name, pattern}
			}
			*g.to = append(*g.to, normal(pattern))
		}
	}
	for _, rule := range p.Tags {
		if _, err := path.Match(rule.Match, ""); err != nil {
			return nil, &PatternError{"tags.rules", rule.Match}
		}
		rule.Match = normal(rule.Match)
		q.tagRules = append(q.tagRules, rule)
	}
	return q, nil
}

// globs are patterns for repositories in which * crosses no slash; "*" alone and a
// trailing "/**" match everything below.
type globs []string

func (g globs) match(name string) bool {
	for _, pattern := range g {
		if glob(pattern, name) {
			return true
		}
	}
	return false
}

func glob(pattern, s string) bool {
	if pattern == "*" || pattern == "**" {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(s, prefix+"/")
	}
	ok, _ := path.Match(pattern, s)
	return ok
}

// allowed reports whether the operator lets the repository through at all.
func (p *policy) allowed(name string) bool {
	return !p.deny.match(name) && (len(p.allow) == 0 || p.allow.match(name))
}

// tagSettings are what holds for one tag.
type tagSettings struct {
	ttl, maxStale time.Duration
	refresh       bool
	quarantine    time.Duration
}

// refreshAt is the age at which a tag that is in use is checked in the background.
func (s tagSettings) refreshAt() time.Duration { return s.ttl * 4 / 5 }

// askAt is the age from which the hot manifests don't answer for the tag, so that a request
// finds it due.
func (s tagSettings) askAt() time.Duration {
	if s.refresh {
		return s.refreshAt()
	}
	return s.ttl
}

func (p *policy) tag(repository, tag string) tagSettings {
	s := tagSettings{maxStale: p.MaxStale}
	if p.TagTTL != nil {
		s.ttl = *p.TagTTL
	} else if p.hub && strings.HasPrefix(repository, "library/") {
		s.ttl = defaultTTL
	}
	for _, rule := range p.tagRules {
		if ok, _ := path.Match(rule.Match, repository+":"+tag); !ok {
			continue
		}
		if rule.TTL != nil {
			s.ttl = *rule.TTL
		}
		if rule.MaxStale != nil {
			s.maxStale = *rule.MaxStale
		}
		s.refresh, s.quarantine = rule.Refresh, rule.Quarantine
		break
	}
	return s
}

// CheckPolicy returns what New and Configure would say of the policy of an upstream.
// Errors: *PatternError.
func CheckPolicy(p Policy) error {
	_, err := newPolicy(p, hub)
	return err
}
