package registry

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// doubtWithin: a client that asks for the same whole blob again so soon may not have
	// liked what it got.
	doubtWithin = time.Minute

	// trustFor is how long a blob that was found right, coming in or later, isn't looked at
	// again. Hosts that share an address ask twice for good reasons.
	trustFor = 10 * time.Minute
)

// doubt has a cached blob hashed in the background, one at a time, when a client gets all
// of it for the second time within a minute. One whose bytes have changed is dropped, so
// that the third time is right.
func (r *Registry) doubt(req *http.Request, d digest.Digest) {
	host, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		host = req.RemoteAddr
	}
	key := host + " " + string(d)
	if !r.got.has(key) {
		r.got.add(key, doubtWithin)
		return
	}
	if r.trusted.has(string(d)) || !r.doubting.CompareAndSwap(false, true) {
		return
	}
	r.trusted.add(string(d), trustFor)
	r.background(func(ctx context.Context) {
		defer r.doubting.Store(false)
		if err := r.store.Verify(ctx, d); err != nil {
			r.trusted.forget(string(d))
		}
	})
}
