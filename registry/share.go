package registry

import (
	"context"

	"golang.org/x/sync/singleflight"
)

// share runs f once for all who ask under one key at the same time. f goes on when its
// askers leave; each waits with its own context.
func share[T any](ctx context.Context, g *singleflight.Group, key string, f func(context.Context) (T, error)) (T, error) {
	ch := g.DoChan(key, func() (any, error) { return f(context.WithoutCancel(ctx)) })
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
