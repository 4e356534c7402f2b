package tier

import (
	"context"
	"crypto/subtle"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/tier/lease"
)

const (
	// leaseTime is how long a lease lasts that isn't extended: so long nobody else fetches what a
	// dead node was fetching and nobody has found dead.
	leaseTime = 10 * time.Second

	// extendEvery is how often a lease is extended.
	extendEvery = leaseTime / 3

	// idleTime is how long a lease is kept by a node that isn't reading the blob and doesn't
	// say that it has it.
	idleTime = 10 * time.Second

	// afterUpload is how long a lease is kept when the bucket has the blob: another node may have asked
	// the bucket before that, and be about to take the lease.
	afterUpload = 2 * time.Second

	// keptTime is how long the lease of a blob is kept after it has come in, at most: until the
	// bucket has it, others read it from this node.
	keptTime = time.Minute
)

// holds are the leases of this node. All methods are safe for concurrent use.
type holds struct {
	t      *Tier
	leases Leases      // nil: none
	mine   lease.Lease // the same for all blobs, and another one after a restart

	mu     sync.Mutex // guards what follows, and what is in held
	held   map[digest.Digest]*hold
	taking map[digest.Digest]int // how often a lease is being asked for
}

// hold is the lease of one blob.
type hold struct {
	open  int           // bodies of the upstream that are open
	until time.Time     // when to give it back; pushed on while bodies are open
	over  chan struct{} // closed when it is given back
}

// take takes the lease of a blob, unless another node has it, whose lease is returned with mine
// false. dead is the lease of a node that was found dead, or zero. An error says that there is no
// telling, and the caller fetches without a lease.
func (h *holds) take(ctx context.Context, d digest.Digest, dead lease.Lease) (other lease.Lease, mine bool, err error) {
	if h.leases == nil || !h.t.leaseHealth.ask() {
		return other, false, errUnasked
	}
	if h.isHeld(d) {
		return other, true, nil
	}
	// Another node may be told that this one has the lease before this one is.
	h.ask(d, 1)
	defer h.ask(d, -1)
	var got lease.Lease
	if dead == (lease.Lease{}) {
		got, err = h.leases.Take(ctx, string(d), h.mine, leaseTime)
	} else {
		got, err = h.leases.Replace(ctx, string(d), dead, h.mine, leaseTime)
	}
	if err == nil && got != h.mine && got.Holder == h.mine.Holder { // from before a restart
		got, err = h.leases.Replace(ctx, string(d), got, h.mine, leaseTime)
	}
	h.t.leaseHealth.note(ctx, err)
	if err != nil {
		return other, false, err
	}
	if got == h.mine {
		h.add(d)
		return other, true, nil
	}
	return got, false, nil
}

// ask counts how often the lease of a blob is being asked for.
func (h *holds) ask(d digest.Digest, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taking[d] += n; h.taking[d] == 0 {
		delete(h.taking, d)
	}
}

func (h *holds) isHeld(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[d] != nil
}

// add begins to keep a lease.
func (h *holds) add(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[d] != nil {
		return // another connection of the same download has it
	}
	k := &hold{until: time.Now().Add(idleTime), over: make(chan struct{})}
	h.held[d] = k
	h.t.background(func(context.Context) { h.keep(d, k) })
}

// keep extends a lease until it is given back or lost.
func (h *holds) keep(d digest.Digest, k *hold) {
	every := time.NewTicker(extendEvery)
	defer every.Stop()
	for {
		select {
		case <-k.over:
			return
		case <-h.t.ctx.Done():
			return
		case <-every.C:
		}
		if h.expired(k) {
			h.release(d)
			return
		}
		ok, err := h.leases.Extend(h.t.ctx, string(d), h.mine, leaseTime)
		h.t.leaseHealth.note(h.t.ctx, err)
		if err == nil && !ok { // another node has it now
			h.forget(d, k)
			return
		}
	}
}

func (h *holds) expired(k *hold) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return k.open == 0 && time.Now().After(k.until)
}

// forget removes a lease that has gone by itself.
func (h *holds) forget(d digest.Digest, k *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[d] == k {
		delete(h.held, d)
	}
}

// opened counts a body of the upstream. The returned function, to be called once, ends it.
func (h *holds) opened(d digest.Digest) (closed func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.held[d]
	if k == nil {
		return func() {}
	}
	k.open++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		k.open--
		if until := time.Now().Add(idleTime); until.After(k.until) {
			k.until = until
		}
	}
}

// arrived says that the blob is here, whole: others can read it from here for a while.
func (h *holds) arrived(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.held[d]; k != nil {
		k.until = time.Now().Add(keptTime)
	}
}

// uploaded says that the bucket has the blob: the lease is given back soon.
func (h *holds) uploaded(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.held[d]; k != nil {
		k.until = time.Now().Add(afterUpload)
	}
}

// release gives a lease back.
func (h *holds) release(d digest.Digest) {
	h.mu.Lock()
	k := h.held[d]
	delete(h.held, d)
	h.mu.Unlock()
	if k == nil {
		return
	}
	close(k.over)
	h.giveBack(d)
}

// giveBack tells the others. If that fails, the lease ends by itself.
func (h *holds) giveBack(d digest.Digest) {
	if !h.t.leaseHealth.ask() {
		return
	}
	ctx := context.WithoutCancel(h.t.ctx) // Close gives leases back too; it has a deadline of its own
	h.t.leaseHealth.note(ctx, h.leases.Release(ctx, string(d), h.mine))
}

// giveBackIn is how long Close gives back leases; the others end by themselves.
const giveBackIn = time.Second

// releaseAll gives back all leases.
func (h *holds) releaseAll() {
	end := time.Now().Add(giveBackIn)
	h.mu.Lock()
	held := h.held
	h.held = map[digest.Digest]*hold{}
	h.mu.Unlock()
	for d := range held {
		if time.Now().After(end) {
			return
		}
		h.giveBack(d)
	}
}

// isToken reports whether this node has the lease of d with that token, or is about to have it.
func (h *holds) isToken(token string, d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return (h.held[d] != nil || h.taking[d] > 0) && subtle.ConstantTimeCompare([]byte(h.mine.Token), []byte(token)) == 1
}

func (h *holds) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}
