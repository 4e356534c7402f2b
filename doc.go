// Package hubcache is the root of the hubcache module: a pull-through cache for
// Docker Hub. The program is in cmd/hubcache; docs/design/overview.md is the floor plan.
package hubcache
