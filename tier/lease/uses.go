package lease

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Use is when something was last used.
type Use struct {
	Name string
	At   time.Time // to the second
}

// Use says when something was last used. A later use that is known stays; with onlyNew, whatever is known.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Use(ctx context.Context, onlyNew bool, all ...Use) error {
	if len(all) == 0 {
		return nil
	}
	z := redis.ZAddArgs{GT: !onlyNew, NX: onlyNew}
	for _, u := range all {
		z.Members = append(z.Members, redis.Z{Score: float64(u.At.Unix()), Member: u.Name})
	}
	return r.call(ctx, func(ctx context.Context) error { return r.client.ZAddArgs(ctx, r.uses, z).Err() })
}

// Oldest returns the n uses that were the longest ago, the oldest first.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Oldest(ctx context.Context, n int) (all []Use, err error) {
	err = r.call(ctx, func(ctx context.Context) error {
		found, err := r.client.ZRangeWithScores(ctx, r.uses, 0, int64(n)-1).Result()
		for _, z := range found {
			if name, ok := z.Member.(string); ok {
				all = append(all, Use{name, time.Unix(int64(z.Score), 0)})
			}
		}
		return err
	})
	return all, err
}

// Forget forgets uses.
// Errors: that Redis is unwell, ctx's cause.
func (r *Redis) Forget(ctx context.Context, names ...string) error {
	members := make([]any, len(names))
	for i, name := range names {
		members[i] = name
	}
	return r.call(ctx, func(ctx context.Context) error { return r.client.ZRem(ctx, r.uses, members...).Err() })
}
