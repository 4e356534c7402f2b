package registry

import (
	"context"
	"errors"
	"sync"

	"github.com/hubcache/hubcache/calls"
	"github.com/hubcache/hubcache/upstream"
)

// errStopping is what requests get that come while the server stops.
var errStopping = &upstream.Error{Cause: upstream.Unreachable, Host: "hubcache", Err: errors.New("the server is stopping")}

// tasks are what goes on in the background. They end with the server, and not with the
// request that began them. All methods are safe for concurrent use.
type tasks struct {
	closing context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex // guards closed, and is held while running is added to
	closed  bool
	running sync.WaitGroup
}

func newTasks() *tasks {
	t := &tasks{}
	t.closing, t.cancel = context.WithCancel(context.Background())
	return t
}

// enter says that something begins which close has to wait for, and which leave ends.
// ok is false when the server is stopping.
func (t *tasks) enter() (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false
	}
	t.running.Add(1)
	return t.running.Done, true
}

// background runs what no client waits for. Its context ends when the server stops.
func (t *tasks) background(f func(context.Context)) {
	if leave, ok := t.enter(); ok {
		go func() { defer leave(); f(t.closing) }()
	}
}

// detached returns a context with ctx's values that ends with the server and not with ctx.
func (t *tasks) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return t.untilStop(context.WithoutCancel(ctx))
}

// untilStop returns a context that ends with ctx, and with the server.
func (t *tasks) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.closing, func() { cancel(errStopping) })
	return ctx, func() { stop(); cancel(nil) }
}

// stop ends all tasks and lets no more begin.
func (t *tasks) stop() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
}

// wait waits for the tasks, or for ctx and returns its cause. Call it after stop.
func (t *tasks) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { t.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// share runs f once for all who ask under one key of c at the same time; each caller waits with
// its own context. f's context ends with the server, and when none of the callers waits any more.
func share[T any](ctx context.Context, t *tasks, c *calls.Group[any], key string, f func(context.Context) (T, error)) (T, error) {
	if err := clientIn(ctx).enter(); err != nil {
		var none T
		return none, err
	}
	v, err := c.Do(ctx, key, func(ctx context.Context) (any, error) {
		leave, ok := t.enter()
		if !ok {
			return nil, errStopping
		}
		defer leave()
		ctx, cancel := t.untilStop(ctx)
		defer cancel()
		return f(ctx)
	})
	if err != nil {
		var none T
		return none, err
	}
	return v.(T), nil
}
