package bucket

import (
	"context"
	"time"

	"github.com/minio/minio-go/v7"
)

// Listed is an object in a list.
type Listed struct {
	Name    string // relative to the prefix
	Size    int64  // bytes
	Written time.Time
}

// pageTime is how long one page of a list may take.
const pageTime = 30 * time.Second

// Each calls f with pages of the objects whose names begin with under, in the order of their names. The list
// is no snapshot: what is written or deleted meanwhile may be in it or not. An error of f ends it.
// Errors: that of f; that the bucket is unwell; ctx's cause.
func (b *Bucket) Each(ctx context.Context, under string, f func([]Listed) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slow := time.AfterFunc(pageTime, func() { cancel(errSlow) })
	defer slow.Stop()
	page := make([]Listed, 0, 1000)
	hand := func() error {
		if len(page) == 0 {
			return nil
		}
		slow.Stop() // f has the time it wants
		err := f(page)
		slow.Reset(pageTime)
		page = page[:0]
		return err
	}
	for o := range b.core.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.full(under) + "/", Recursive: true}) {
		if o.Err != nil {
			return classify(ctx, "listing", under, o.Err)
		}
		page = append(page, Listed{Name: b.relative(o.Key), Size: o.Size, Written: o.LastModified})
		if len(page) == cap(page) {
			if err := hand(); err != nil {
				return err
			}
		}
	}
	return hand()
}

// relative is the reverse of full.
func (b *Bucket) relative(full string) string {
	if b.prefix == "" {
		return full
	}
	return full[min(len(b.prefix)+1, len(full)):]
}

// AbortOld forgets the uploads in parts under a name that began before a time, and returns how many.
// Errors: that the bucket is unwell, ctx's cause.
func (b *Bucket) AbortOld(ctx context.Context, under string, before time.Time) (n int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*pageTime, errSlow)
	defer cancel()
	for u := range b.core.ListIncompleteUploads(ctx, b.name, b.full(under)+"/", true) {
		switch {
		case u.Err != nil:
			return n, classify(ctx, "listing uploads of", under, u.Err)
		case u.Initiated.Before(before):
			if err := b.Abort(ctx, b.relative(u.Key), u.UploadID); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}
