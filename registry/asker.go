package registry

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/hubcache/hubcache/upstream"
)

// askers count the requests of each client that want something from an upstream. All methods
// are safe for concurrent use.
type askers struct {
	mu sync.Mutex // guards n
	n  map[netip.Addr]int
}

// asker is the client of one request. All methods are safe for concurrent use.
type asker struct {
	client netip.Addr // see clientOf
	all    *askers
	most   int // requests of the client that may want something from an upstream; 0: any number

	mu      sync.Mutex // guards what follows; held while that of all is taken
	counted bool
	left    bool
}

// thisMachine is the asker of requests whose clients have no limits of their own.
var thisMachine = &asker{}

// asker returns the client of a request with this RemoteAddr. Call leave at the end of the request.
func (c *askers) asker(remote string, most int) *asker {
	client := clientOf(remote)
	if !client.IsValid() {
		return thisMachine
	}
	return &asker{client: client, all: c, most: most}
}

// name is the client's name in slots.Slots; "" is who has no limit.
func (a *asker) name() string {
	if a == nil || !a.client.IsValid() {
		return ""
	}
	return a.client.String()
}

// enter says that the request wants something from the upstream. It counts once, and not
// when the request has ended.
// Errors: errBusy with an *upstream.Error, when too many requests of the client do.
func (a *asker) enter() error {
	if a == nil || a.most == 0 || !a.client.IsValid() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counted || a.left {
		return nil
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.all.n[a.client] >= a.most {
		return fmt.Errorf("limits.client: %w", errors.Join(errBusy, &upstream.Error{Cause: upstream.Throttled, Host: "hubcache", RetryAfter: retrySoon}))
	}
	if a.all.n == nil {
		a.all.n = map[netip.Addr]int{}
	}
	a.all.n[a.client]++
	a.counted = true
	return nil
}

// leave says that the request has ended.
func (a *asker) leave() {
	if a == thisMachine {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = true
	if !a.counted {
		return
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.all.n[a.client]--; a.all.n[a.client] == 0 {
		delete(a.all.n, a.client)
	}
}

// clientKey is the key of a context's asker.
type clientKey struct{}

// withClient returns a context whose questions are asked for a client.
func withClient(ctx context.Context, a *asker) context.Context {
	return context.WithValue(ctx, clientKey{}, a)
}

// clientIn returns the asker that a context's questions are for, or nil.
func clientIn(ctx context.Context) *asker {
	a, _ := ctx.Value(clientKey{}).(*asker)
	return a
}
