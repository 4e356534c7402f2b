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

	// recheckRate is how many bytes are hashed in a second, and recheckBusyRate while a client gets a
	// blob: what hubcache is there for comes first. Where a CPU hashes slowly, it rests recheckShare
	// times as long as it has hashed, or recheckBusyShare times.
	recheckRate      = 256 << 20
	recheckBusyRate  = 32 << 20
	recheckShare     = 4
	recheckBusyShare = 16
)

// rechecks has cached blobs hashed in the background, one at a time, when a client gets all
// of a blob for the second time within a minute. A blob whose bytes have changed is removed,
// so that the third time is right. The hashing has a small share of one CPU. All methods are safe for concurrent use.
type rechecks struct {
	store *storage.Store
	tasks *tasks

	sent    cooldown.Memory // whole blobs that clients have just got from the store
	trusted cooldown.Memory // blobs that were hashed lately
	busy    atomic.Bool     // one is being hashed
	sending *atomic.Int64   // requests of blobs that are being answered
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
		if err := r.store.Verify(ctx, d, r.slowly(ctx)); err != nil {
			r.trusted.Forget(string(d))
		}
	})
}

// slowly returns a function that is called after each piece that was hashed, and waits before the
// next one. Its errors: ctx's cause.
func (r *rechecks) slowly(ctx context.Context) func(bytes int) error {
	var p pace
	began := time.Now()
	return func(bytes int) error {
		rate, share := recheckRate, time.Duration(recheckShare)
		if r.sending.Load() > 0 {
			rate, share = recheckBusyRate, recheckBusyShare
		}
		took := time.Since(began)
		if slow := time.Duration(bytes) * time.Second / time.Duration(rate); took*share > slow {
			rate = int(time.Duration(bytes) * time.Second / (took * share))
		}
		err := p.wait(ctx, bytes, max(rate, 1))
		began = time.Now()
		return err
	}
}
