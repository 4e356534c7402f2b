package main

import (
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/registry"
)

// checkPolicies finds what the registry and the prune refuse.
func checkPolicies(s *settings.Settings) error {
	if err := registry.CheckPolicy(registryPolicy(s)); err != nil {
		return err
	}
	return dockerhost.Check(s)
}

// registryPolicy is the part of the settings that the registry follows, and that may
// change while it runs.
func registryPolicy(s *settings.Settings) registry.Policy {
	l := s.Limits
	p := registry.Policy{
		TagTTL: s.Tags.TTL.D, MaxStale: time.Duration(s.Tags.MaxStale), NegativeTTL: time.Duration(s.Tags.NegativeTTL),
		KeepGone: s.Tags.OnGone == settings.KeepGone, Allow: s.Allow, Deny: s.Deny, Private: s.Upstream.Private,
		QuotaReserve: float64(s.Quota.Reserve), ReadAhead: bool(s.ReadAhead),
		Limits: fetch.Limits{Transfers: int(l.Transfers), Orphans: int(l.Orphans), Ranges: int(l.Ranges), Bypass: int(l.Bypass)},
	}
	for _, r := range s.Tags.Rules {
		p.Tags = append(p.Tags, registry.TagRule{Match: string(r.Match), TTL: r.TTL.D, MaxStale: r.MaxStale.D, Refresh: bool(r.Refresh)})
	}
	return p
}
