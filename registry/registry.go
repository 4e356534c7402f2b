// Package registry answers the pull half of the OCI distribution API
// from a storage.Store, and fills the store from an upstream registry.
package registry

import (
	"context"
	"net/http"
)

// Registry is the pull API and the pull-through policy in one http.Handler.
// All methods are safe for concurrent use.
type Registry struct{}

// New returns a Registry that serves o.Store and fetches what it lacks from o.Upstream.
// It makes no request: a server starts whether or not its upstream can be reached.
func New(o Options) (*Registry, error) { return &Registry{}, nil }

// ServeHTTP answers one request of the pull API.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {}

// SetPolicy replaces the policy for the requests that come after it.
// An invalid pattern is an error, and then nothing changes.
func (r *Registry) SetPolicy(p Policy) error { return nil }

// Stats returns a snapshot of the counters.
func (r *Registry) Stats() Stats { return Stats{} }

// Close ends all fetches, keeping what has arrived for the next start, and waits for
// them until ctx is done. Call it when the HTTP servers have been shut down.
func (r *Registry) Close(ctx context.Context) error { return nil }
