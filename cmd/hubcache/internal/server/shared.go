package server

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
	"github.com/hubcache/hubcache/upstream"
)

// uploadsName is the folder of what isn't in the bucket yet.
const uploadsName = "uploads"

// openShared opens what is shared with other nodes, if anything is. It asks nothing of bucket or Redis.
func (srv *server) openShared() (err error) {
	s := &srv.settings.Shared
	if !s.On() {
		return nil
	}
	o := tier.Options{Store: srv.store, Dir: filepath.Join(string(srv.settings.DataDir), uploadsName), Advertise: string(s.Advertise), Budget: s.Budget.Bytes, Log: srv.log}
	if o.Bucket, err = openBucket(s); err != nil {
		return fmt.Errorf("shared.bucket: %w", err)
	}
	if srv.leases, err = openLeases(s, o.Bucket); err != nil {
		return fmt.Errorf("shared.lease: %w", err)
	}
	if srv.leases != nil {
		o.Leases, o.Notes, o.Uses = srv.leases, srv.leases, srv.leases
	}
	srv.tier, err = tier.New(o)
	return err
}

// openBucket returns nil without one.
func openBucket(s *settings.Shared) (*bucket.Bucket, error) {
	b := &s.Bucket
	if b.Endpoint == "" {
		return nil, nil
	}
	return bucket.New(bucket.Config{
		Endpoint: string(b.Endpoint), Name: string(b.Name), Prefix: string(b.Prefix), Region: string(b.Region),
		AccessKeyFile: string(b.AccessKeyFile), SecretKeyFile: string(b.SecretKeyFile), PathStyle: bool(b.PathStyle), CAFile: string(b.CAFile),
	})
}

// openLeases returns nil without any. Nodes with another bucket have other leases.
func openLeases(s *settings.Shared, b *bucket.Bucket) (*lease.Redis, error) {
	l := &s.Lease
	if l.Redis == "" {
		return nil, nil
	}
	c := lease.Config{Addr: string(l.Redis), Username: string(l.Username), PasswordFile: string(l.PasswordFile), TLS: bool(l.TLS), CAFile: string(l.CAFile)}
	if b != nil {
		c.Group = b.Name()
	}
	return lease.New(c)
}

// closeShared closes what openShared has opened.
func (srv *server) closeShared() {
	if srv.tier != nil {
		srv.tier.Close()
	}
	if srv.leases != nil {
		srv.leases.Close()
	}
}

// shared returns what puts the shared tier in front of a registry, nil without one.
func (srv *server) shared(u settings.Upstream) func(fetch.Source) fetch.Source {
	if srv.tier == nil {
		return nil
	}
	return func(next fetch.Source) fetch.Source {
		return srv.tier.Source(u.Name, tier.AccountOf(u.URL, u.Username), next)
	}
}

// others returns the other nodes that use the account of a registry, nil without any.
func (srv *server) others(u settings.Upstream) upstream.Others {
	if srv.leases == nil {
		return nil
	}
	return others{srv.tier, tier.AccountOf(u.URL, u.Username)}
}

// others makes of the shared tier what package upstream knows.
type others struct {
	tier    *tier.Tier
	account tier.Account
}

func (o others) Limits(ctx context.Context, whose string) upstream.Limits {
	return upstream.Limits(o.tier.Limits(ctx, o.account, whose))
}

func (o others) SetLimits(ctx context.Context, whose string, l upstream.Limits) {
	o.tier.SetLimits(ctx, o.account, whose, tier.Limits(l))
}

// peer returns what tells other nodes from clients, nil without other nodes.
func (srv *server) peer() func(string, digest.Digest) bool {
	if srv.leases == nil {
		return nil
	}
	return srv.tier.Peer
}

// checkShared returns what tries bucket and leases, nil without any.
func (srv *server) checkShared() func(context.Context) admin.SharedCheck {
	if srv.tier == nil {
		return nil
	}
	return func(ctx context.Context) (c admin.SharedCheck) {
		c.Bucket, c.Lease = srv.tier.Check(ctx)
		return c
	}
}

// sharedStats is what the stats say of the shared tier.
func (srv *server) sharedStats() admin.Shared {
	if srv.tier == nil {
		return admin.Shared{State: "off", Bucket: tier.Off, Lease: tier.Off, Eviction: tier.Off}
	}
	s := srv.tier.Stats()
	d := admin.Shared{State: "well", Bucket: s.Bucket, Lease: s.Lease, Hits: s.Hits, Bytes: s.Bytes, Mismatches: s.Mismatches, Recalls: s.Recalls, Uploads: s.Uploads, Leases: s.Holding,
		Eviction: s.Eviction, BudgetBytes: s.Budget, BucketBytes: s.Size, Evictions: s.Evicted, EvictedBytes: s.EvictedBytes}
	for _, engine := range []string{s.Bucket, s.Lease} {
		if engine != tier.Off && engine != tier.Well {
			d.State = "unwell"
		}
	}
	return d
}
