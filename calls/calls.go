// Package calls runs a piece of work once for all who want it at the same time, and ends it
// when none of them waits for it any more.
package calls

import (
	"context"
	"errors"
	"sync"
)

// ErrNobody is the cause with which the context of work is cancelled that nobody waits for.
var ErrNobody = errors.New("nobody waits for it any more")

// Group has the work under way, by key. The zero value is ready. All methods are safe for
// concurrent use.
type Group[T any] struct {
	mu      sync.Mutex // guards running, and the waiting of its calls
	running map[string]*call[T]
}

// call is work under way.
type call[T any] struct {
	waiting int
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when value and err are there
	value   T
	err     error
}

// Do runs f, unless it runs already for another caller with the same key, and returns what it
// returns. f's context has the values of the first caller's, and no deadline. It is cancelled
// when all callers have left. A caller that comes then runs f anew, and doesn't wait for the
// end of the old one.
// Errors: those of f, the cause of ctx.
func (g *Group[T]) Do(ctx context.Context, key string, f func(context.Context) (T, error)) (T, error) {
	c := g.join(ctx, key, f)
	defer g.leave(key, c)
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

func (g *Group[T]) join(ctx context.Context, key string, f func(context.Context) (T, error)) *call[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.running[key]; c != nil {
		c.waiting++
		return c
	}
	if g.running == nil {
		g.running = map[string]*call[T]{}
	}
	c := &call[T]{waiting: 1, done: make(chan struct{})}
	g.running[key] = c
	ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		c.value, c.err = f(ctx)
		g.mu.Lock()
		g.forget(key, c)
		g.mu.Unlock()
		close(c.done)
		c.cancel(nil)
	}()
	return c
}

// leave says that a caller waits no more.
func (g *Group[T]) leave(key string, c *call[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.waiting--; c.waiting == 0 {
		g.forget(key, c)
		c.cancel(ErrNobody) // changes nothing if the work has ended
	}
}

// forget lets nobody join the call any more. mu is held.
func (g *Group[T]) forget(key string, c *call[T]) {
	if g.running[key] == c {
		delete(g.running, key)
	}
}
