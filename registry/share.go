package registry

import "context"

// share runs f once for all who ask under one key at the same time. f goes on when its
// askers leave, until the server stops; each waits with its own context.
func share[T any](ctx context.Context, r *Registry, key string, f func(context.Context) (T, error)) (T, error) {
	ch := r.once.DoChan(key, func() (any, error) {
		leave, ok := r.enter()
		if !ok {
			return nil, errStopping
		}
		defer leave()
		ctx, cancel := r.detached(ctx)
		defer cancel()
		return f(ctx)
	})
	var none T
	select {
	case res := <-ch:
		if res.Err != nil {
			return none, res.Err
		}
		return res.Val.(T), nil
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}
