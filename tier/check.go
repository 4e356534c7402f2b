package tier

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

// checkDeadline is how long Check waits for each of the two.
const checkDeadline = 10 * time.Second

// Check writes, reads and deletes an object of its own in the bucket, and takes, extends and gives back a
// lease of its own, whether they are unwell or not. The results are Off, Well, or what is wrong.
func (t *Tier) Check(ctx context.Context) (bucketIs, leaseIs string) {
	bucketIs, leaseIs = Off, Off
	if t.bucket != nil {
		bucketIs = tried(ctx, t.checkBucket)
	}
	if t.holds.leases != nil {
		leaseIs = tried(ctx, t.checkLease)
	}
	return bucketIs, leaseIs
}

func tried(ctx context.Context, check func(context.Context) error) string {
	ctx, cancel := context.WithTimeout(ctx, checkDeadline)
	defer cancel()
	if err := check(ctx); err != nil {
		return err.Error()
	}
	return Well
}

// checkBucket leaves nothing behind, unless the bucket refuses to delete.
func (t *Tier) checkBucket(ctx context.Context) (err error) {
	content := []byte(rand.Text())
	name := version + "checks/" + string(content)
	o := bucket.Object{Size: int64(len(content)), MediaType: "text/plain"}
	if err := t.bucket.Put(ctx, name, o, bytes.NewReader(content), digest.FromBytes(content).Encoded()); err != nil {
		return fmt.Errorf("it can't be written to: %w", err)
	}
	defer func() {
		if deleteErr := t.bucket.Delete(ctx, name); deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("nothing can be deleted from it: %w", deleteErr))
		}
	}()
	body, err := t.bucket.Open(ctx, name, 0, -1)
	if err != nil {
		return fmt.Errorf("it can't be read: %w", err)
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, 2*o.Size))
	if err == nil && !bytes.Equal(got, content) {
		err = errors.New("bucket: what was just written has other bytes")
	}
	if err != nil {
		return fmt.Errorf("it can't be read: %w", err)
	}
	return nil
}

func (t *Tier) checkLease(ctx context.Context) error {
	mine := lease.Of(t.holds.mine.Holder)
	key := "check:" + mine.Token
	got, err := t.holds.leases.Take(ctx, key, mine, checkDeadline)
	if err == nil && got != mine {
		err = errors.New("redis: a key that nobody else has is taken")
	}
	if err != nil {
		return fmt.Errorf("no lease can be taken: %w", err)
	}
	ok, err := t.holds.leases.Extend(ctx, key, mine, checkDeadline)
	if err == nil && !ok {
		err = errors.New("redis: the lease that was just taken is gone")
	}
	if err != nil {
		return fmt.Errorf("a lease can't be extended: %w", err)
	}
	if err := t.holds.leases.Release(ctx, key, mine); err != nil {
		return fmt.Errorf("a lease can't be given back: %w", err)
	}
	return nil
}
