package bucket

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// Stat returns what the bucket knows of an object.
// Errors: ErrAbsent; that the bucket is unwell; ctx's cause.
func (b *Bucket) Stat(ctx context.Context, name string) (Object, error) {
	return answer(ctx, b.waits.answer, func(ctx context.Context) (Object, error) {
		info, err := b.core.StatObject(ctx, b.name, b.full(name), minio.StatObjectOptions{})
		if err != nil {
			return Object{}, classify(ctx, "looking for", name, err)
		}
		return objectOf(info), nil
	}, nil)
}

func objectOf(info minio.ObjectInfo) Object {
	return Object{Size: info.Size, MediaType: info.ContentType, Private: info.UserMetadata[privateKey] != ""}
}

// Body is a part of an object on its way. Read ends with io.EOF at To, and with ErrStalled when no
// byte has come for some seconds. Not safe for concurrent use; close it.
type Body struct {
	io.ReadCloser
	Object
	From, To int64 // To is exclusive
}

// Open returns a part of an object. to is exclusive; -1: to the end. The context ends all
// reading too.
// Errors: ErrAbsent; ErrRange; that the bucket is unwell; ctx's cause.
func (b *Bucket) Open(ctx context.Context, name string, from, to int64) (*Body, error) {
	reading, cancel := context.WithCancelCause(ctx)
	body, err := answer(ctx, b.waits.answer, func(context.Context) (*Body, error) {
		return b.open(reading, name, from, to)
	}, func(late *Body) { late.Close() })
	if err != nil {
		cancel(nil)
		return nil, err
	}
	body.ReadCloser = watched{body.ReadCloser, newWatch(reading, cancel, b.waits.read)}
	return body, nil
}

func (b *Bucket) open(ctx context.Context, name string, from, to int64) (*Body, error) {
	var o minio.GetObjectOptions
	ranged := from > 0 || to >= 0
	if ranged {
		value := "bytes=" + strconv.FormatInt(from, 10) + "-"
		if to >= 0 {
			value += strconv.FormatInt(to-1, 10)
		}
		o.Set("Range", value)
	}
	rc, info, header, err := b.core.GetObject(ctx, b.name, b.full(name), o)
	if err != nil {
		return nil, classify(ctx, "reading", name, err)
	}
	body := &Body{ReadCloser: rc, Object: objectOf(info), To: info.Size}
	if ranged {
		if body.From, body.To, body.Size, err = contentRange(header); err == nil && (body.From != from || to >= 0 && body.To > to) {
			err = fmt.Errorf("it has sent %d-%d", body.From, body.To)
		}
	}
	if err != nil {
		rc.Close()
		return nil, fmt.Errorf("bucket: reading %s from %d: %w", name, from, err)
	}
	return body, nil
}

// contentRange reads the header of an answer to a request for a range. to is exclusive.
func contentRange(h http.Header) (from, to, size int64, err error) {
	value, ok := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	span, length, cut := strings.Cut(value, "/")
	first, last, dash := strings.Cut(span, "-")
	if !ok || !cut || !dash {
		return 0, 0, 0, fmt.Errorf("it has not sent the range: Content-Range is %q", h.Get("Content-Range"))
	}
	for _, n := range []struct {
		s  string
		to *int64
	}{{first, &from}, {last, &to}, {length, &size}} {
		v, err := strconv.ParseUint(n.s, 10, 62)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("Content-Range is %q", h.Get("Content-Range"))
		}
		*n.to = int64(v)
	}
	if to++; from >= to || to > size {
		return 0, 0, 0, fmt.Errorf("Content-Range is %q", h.Get("Content-Range"))
	}
	return from, to, size, nil
}

// answer calls f, and returns errSlow if it takes longer than patience. That is done by another
// goroutine because f may wait for credentials, which no context ends. What comes late goes to
// drop.
func answer[T any](ctx context.Context, patience time.Duration, f func(context.Context) (T, error), drop func(T)) (none T, err error) {
	waiting, cancel := context.WithTimeoutCause(ctx, patience, errSlow)
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f(waiting)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		cancel()
		return r.value, r.err
	case <-waiting.Done():
		err = fmt.Errorf("bucket: %w", context.Cause(waiting))
		cancel()
		go func() {
			if r := <-done; r.err == nil && drop != nil {
				drop(r.value)
			}
		}()
		return none, err
	}
}

// watch ends a transfer that moves no byte.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func newWatch(ctx context.Context, cancel context.CancelCauseFunc, stall time.Duration) *watch {
	w := &watch{ctx: ctx, cancel: cancel, stall: stall}
	w.timer = time.AfterFunc(stall, func() { cancel(ErrStalled) })
	return w
}

// moves says that something moves.
func (w *watch) moves() { w.timer.Reset(w.stall) }

// rests says that nothing need move: the other side has the time it wants.
func (w *watch) rests() { w.timer.Stop() }

// watched is a body whose bytes must come.
type watched struct {
	io.ReadCloser
	w *watch
}

func (r watched) Read(p []byte) (int, error) {
	r.w.moves()
	n, err := r.ReadCloser.Read(p)
	r.w.rests()
	if err != nil && err != io.EOF {
		if cause := context.Cause(r.w.ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("bucket: %w", err)
	}
	return n, err
}

func (r watched) Close() error {
	r.w.rests()
	r.w.cancel(nil)
	return r.ReadCloser.Close()
}
