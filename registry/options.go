package registry

import (
	"log/slog"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// Options is what New needs. Store and Upstreams must be set; the zero value of everything
// else means what its comment says.
type Options struct {
	Store     *storage.Store
	Upstreams []Upstream // the first answers requests that name no registry
	Policy    Policy
	Log       *slog.Logger // nil: slog.Default()
}

// Upstream is a registry that is cached.
type Upstream struct {
	upstream.Options // a nil Log is Options.Log

	// Source puts something in front of the registry, from which tags, manifests and blobs
	// then come. It is given the registry itself as a source. nil: nothing.
	Source func(fetch.Source) fetch.Source
}

// Policy is what an operator may change while the server runs (Registry.SetPolicy).
type Policy struct {
	Tags         []TagRule // first match wins; see TagRule
	TagTTL       *time.Duration
	MaxStale     time.Duration // how long a tag may be served while upstream fails; 0: never
	NegativeTTL  time.Duration // how long an upstream 404 is remembered
	KeepGone     bool          // serve a tag that upstream has deleted
	Allow, Deny  []string      // repository globs; empty Allow: all; Deny wins
	Private      []string      // repository globs served although they are private
	QuotaReserve float64       // share of the quota (0…1) below which no tag is refreshed in the background
	Limits       fetch.Limits
	ReadAhead    bool
}

// TagRule overrides the tag settings for references that match, e.g. "library/*:*-alpine".
// In a pattern * crosses no slash. A nil field keeps the general setting.
type TagRule struct {
	Match    string
	TTL      *time.Duration
	MaxStale *time.Duration
	Refresh  bool // check the tag in the background before its TTL ends, while it is in use
}
