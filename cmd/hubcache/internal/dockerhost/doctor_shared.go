package dockerhost

import (
	"context"
	"net/http"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
)

// checkShared has the server try the bucket and the leases that it shares with other nodes: its keys
// and its network count, not those of this user.
func (d *Doctor) checkShared(ctx context.Context, shared admin.Shared) {
	if shared.State == "off" || shared.State == "" { // or an older server
		return
	}
	var c admin.SharedCheck
	if err := d.client.Do(ctx, http.MethodPost, "/api/v1/shared/check", nil, &c); err != nil {
		if status := adminclient.Status(err); status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
			return
		}
		d.note("shared", "this user can't have bucket and leases checked: "+err.Error(), "run doctor as root, or with --admin unix:/run/hubcache/admin.sock")
		return
	}
	switch c.Bucket {
	case "off":
	case "well":
		d.ok("bucket", "the shared bucket takes an object, gives it back and deletes it")
	default:
		d.broken("bucket", c.Bucket, "look at shared.bucket: its endpoint, the name, and the keys, which must be allowed to read, write, delete and list")
	}
	switch c.Lease {
	case "off":
	case "well":
		d.ok("lease", "a lease can be taken, extended and given back")
	default:
		d.broken("lease", c.Lease, "look at shared.lease: the address, the password, and whether it is Redis 7 or Valkey")
	}
}
