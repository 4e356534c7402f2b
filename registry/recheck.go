package registry

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/cooldown"
	"github.com/hubcache/hubcache/storage"
)

const (
	// recheckWithin: a client that asks for the same whole blob again so soon may have got
	// bytes that it refused.
	recheckWithin = time.Minute

	// trustFor is how long a blob that was found right, when it came in or later, isn't hashed
	// again. Hosts that share an address ask twice for good reasons.
	trustFor = 10 * time.Minute
)

// rechecks has cached blobs hashed in the background, one at a time, when a client gets all
// of a blob for the second time within a minute. A blob whose bytes have changed is removed,
// so that the third time is right. All methods are safe for concurrent use.
type rechecks struct {
	store *storage.Store
	tasks *tasks

	sent    cooldown.Memory // whole blobs that clients have just got from the store
	trusted cooldown.Memory // blobs that were hashed lately
	busy    atomic.Bool     // one is being hashed
}

// trust says that the blob has just been hashed.
func (r *rechecks) trust(d digest.Digest) { r.trusted.Add(string(d), trustFor, nil) }

// blobSent says that the client gets all of a blob of the store.
func (r *rechecks) blobSent(req *http.Request, d digest.Digest) {
	host, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		host = req.RemoteAddr
	}
	key := host + " " + string(d)
	if !r.sent.Has(key) {
		r.sent.Add(key, recheckWithin, nil)
		return
	}
	if r.trusted.Has(string(d)) || !r.busy.CompareAndSwap(false, true) {
		return
	}
	r.trust(d)
	r.tasks.background(func(ctx context.Context) {
		defer r.busy.Store(false)
		if err := r.store.Verify(ctx, d); err != nil {
			r.trusted.Forget(string(d))
		}
	})
}
