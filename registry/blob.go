package registry

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/storage"
)

// octets is the media type of every blob: what it really is, its manifest says.
const octets = "application/octet-stream"

// result is how a request ended, for log and counters.
type result struct {
	status  int
	sent    int64 // body bytes
	outcome Outcome
	err     error
}

// send answers with an object.
func send(w http.ResponseWriter, req *http.Request, o content.Object, from content.Sender) result {
	status, sent, err := o.Send(w, req, from)
	if errors.Is(err, content.ErrRange) {
		err = &failure{status: http.StatusRequestedRangeNotSatisfiable, code: errcode.ErrorCodeRangeInvalid, detail: "the blob ends before it begins"}
	}
	return result{status, sent, Outcome(o.Cache), err}
}

// serveBlob answers a GET or HEAD of a blob.
func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, q request) result {
	ctx := req.Context()
	if err := r.admit(ctx, q.name); err != nil {
		return result{err: err}
	}
	if req.Method == http.MethodGet {
		r.ahead.asked(q.digest)
	}
	// A blob may land, or be evicted, between two looks, or be asked for where it is not.
	for range 5 {
		b, err := r.store.Open(q.digest)
		if err == nil {
			return r.serveHit(w, req, q, b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			r.log.Error("a cached blob can't be read", "digest", q.digest, "error", err)
			size, ok := r.store.Has(q.digest)
			if !ok {
				size = -1
			}
			return r.serveBypass(w, req, q, size)
		}
		res := r.serveFlight(w, req, q)
		if !errors.Is(res.err, errLanded) {
			return res
		}
	}
	return r.serveBypass(w, req, q, -1) // whatever goes on there
}

// serveHit sends a blob of the store, once the repository is known to have it.
func (r *Registry) serveHit(w http.ResponseWriter, req *http.Request, q request, b *storage.Blob) result {
	defer b.Close()
	ok, err := r.linked(q.name, q.digest, b.Private)
	if err == nil && !ok {
		err = r.confirm(req.Context(), q, b.Size)
	}
	if err != nil {
		return result{err: err}
	}
	if req.Method == http.MethodGet {
		r.store.Touch(q.digest)
	}
	return send(w, req, content.Object{Digest: string(q.digest), MediaType: octets, Size: b.Size, Cache: string(OutcomeHit)}, func(w http.ResponseWriter, off, n int64) (int64, error) {
		if n == b.Size {
			r.doubt(req, q.digest)
		}
		sent, err := content.SendFile(w, b.File, off, n, false)
		if errors.Is(err, syscall.EIO) || errors.Is(err, io.ErrUnexpectedEOF) { // a bad sector, or the file was truncated meanwhile
			r.log.Error("a cached blob can't be read to its end and will be fetched again", "digest", q.digest, "error", err)
			r.store.Remove(q.digest)
			more, err := r.passOn(req.Context(), w, q.name, q.digest, b.Size, storage.Fallback{Hash: q.digest.Algorithm().Hash()}, off+sent, n-sent)
			return sent + more, err
		}
		return sent, err
	})
}

// serveFlight sends a blob while it arrives, or passes it by.
func (r *Registry) serveFlight(w http.ResponseWriter, req *http.Request, q request) result {
	ctx := req.Context()
	link, err := r.store.Link(r.full(q.name), q.digest)
	if err != nil {
		link.Size = -1
	}
	if r.aboard(q.digest) == nil {
		if v, ok := r.failed.get(q.name + "@" + q.ref); ok {
			return result{err: v.err}
		}
		if req.Method == http.MethodHead {
			return r.headBlob(w, req, q, link)
		}
	}
	if req.Method == http.MethodGet {
		r.readAhead(q)
	}
	f, first := r.join(q.name, q.digest, link.Size, seat{take: true, takeOff: req.Method == http.MethodGet})
	if f == nil {
		return result{err: errLanded}
	}
	defer f.leave()
	if f.ctx.Err() != nil { // it was cancelled because nobody read it: not with us
		select {
		case <-f.landed:
			return result{err: errLanded}
		case <-ctx.Done():
			return result{err: context.Cause(ctx)}
		}
	}
	if f.name != q.name {
		if ok, err := r.linked(q.name, q.digest, f.origin.Private); err != nil || !ok {
			if err := r.confirm(ctx, q, link.Size); err != nil {
				return result{err: err}
			}
		}
	}
	outcome := OutcomeShared
	if first {
		outcome = OutcomeMiss
	}
	rd, err := f.board(ctx)
	if errors.Is(err, errBypass) || unkept(err) {
		return r.serveBypass(w, req, q, link.Size)
	}
	if u, ok := errors.AsType[*upstreamError](err); ok && f.name != q.name && (u.cause == gone || u.cause == denied) {
		return result{err: errLanded} // that repository hasn't got it; ours may
	}
	if err != nil {
		return result{err: err}
	}
	defer rd.Close()
	size := f.in.Size()
	if size < 0 && (!req.ProtoAtLeast(1, 1) || req.Header.Get("Range") != "") {
		// In HTTP/1.0 a body without a length ends like one that broke off; and of a range
		// nobody can say yet what it is.
		err := f.in.Wait(ctx)
		if unkept(err) {
			return r.serveBypass(w, req, q, link.Size)
		}
		if err != nil {
			return result{err: err}
		}
		size = f.in.Size()
	}
	grow := content.Growing(req, rd)
	return send(w, req, content.Object{Digest: string(q.digest), MediaType: octets, Size: size, Cache: string(outcome)}, func(w http.ResponseWriter, off, n int64) (int64, error) {
		sent, err := grow(w, off, n)
		if unkept(err) {
			more, err := r.spill(ctx, w, f, off+sent, max(n-sent, -1))
			return sent + more, err
		}
		return sent, err
	})
}

// unkept reports whether err says that the store can't keep a blob.
func unkept(err error) bool {
	return errors.Is(err, storage.ErrNoRoom) || errors.Is(err, storage.ErrDisk)
}

// headBlob is one upstream HEAD. What a manifest said of the size saves the way to the CDN.
func (r *Registry) headBlob(w http.ResponseWriter, req *http.Request, q request, link storage.Link) result {
	ctx, cancel := context.WithTimeout(req.Context(), manifestDeadline)
	defer cancel()
	size := link.Size
	if size < 0 {
		resp, host, err := r.up.follow(ctx, http.MethodHead, r.up.url(q.name+"/blobs/"+q.ref), http.Header{}, plain)
		if err != nil {
			return result{err: err}
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return result{err: &upstreamError{cause: broken, host: host.Host, status: resp.StatusCode}}
		}
		size = resp.ContentLength
	} else if err := r.confirm(ctx, q, size); err != nil {
		return result{err: err}
	}
	return send(w, req, content.Object{Digest: string(q.digest), MediaType: octets, Size: size, Cache: string(OutcomeMiss)}, nil)
}

// source returns the blob upstream.
func (r *Registry) source(name string, d digest.Digest) *source {
	return &source{up: r.up, name: name, digest: d, resumes: func() { r.resumes.Add(1) }}
}

// serveBypass passes a blob by: too large for the budget, or the disk fails. Each reader
// has an upstream request of its own.
func (r *Registry) serveBypass(w http.ResponseWriter, req *http.Request, q request, size int64) result {
	ctx := req.Context()
	if req.Method == http.MethodHead {
		return r.headBlob(w, req, q, storage.Link{Size: size})
	}
	slots := r.bypasses.Load()
	if err := takeSlot(ctx, func(ctx context.Context) error { return slots.Acquire(ctx, 1) }); err != nil {
		return result{err: err}
	}
	defer slots.Release(1)
	t := &tap{source: r.source(q.name, q.digest), ctx: ctx, end: size, size: size}
	defer t.Close()
	// A closed range that ends before the blob does is asked for as it is; anything
	// else from the start, so that its digest can be known by the end.
	part := false
	if field := req.Header.Get("Range"); field != "" && size >= 0 {
		from, n, v := content.ParseRange(field, size)
		if part = v == content.RangePart && from+n < size; part {
			t.at, t.end = from, from+n
		}
	}
	if err := t.connect(firstDeadline); err != nil {
		return result{err: err}
	}
	if t.size < 0 && !req.ProtoAtLeast(1, 1) {
		return result{err: &upstreamError{cause: broken, host: r.up.base.Host, err: errors.New("a blob of unknown length for a client of HTTP/1.0")}}
	}
	res := send(w, req, content.Object{Digest: string(q.digest), MediaType: octets, Size: t.size, Cache: string(OutcomeBypass)}, func(w http.ResponseWriter, off, n int64) (int64, error) {
		if part {
			return content.Copy(w, off, n, func(p []byte, _ int64) (int, error) { return t.Read(p) })
		}
		c := &checked{tap: t, hash: q.digest.Algorithm().Hash(), digest: q.digest}
		return c.send(w, off, n)
	})
	if errors.Is(res.err, storage.ErrDigest) {
		r.mismatches.Add(1)
	}
	return res
}

// spill goes on for a reader whose flight has failed on the disk: what the file still has,
// and then from upstream, with the digest of what went before.
func (r *Registry) spill(ctx context.Context, w http.ResponseWriter, f *flight, off, n int64) (int64, error) {
	s, ok := f.in.Fallback()
	if !ok || off < s.At { // what is there can't be used: all of it once more
		s = storage.Fallback{Hash: f.digest.Algorithm().Hash()}
	}
	return r.passOn(ctx, w, f.name, f.digest, f.in.Size(), s, off, n)
}

// passOn goes on from upstream for a client that has the bytes before off.
func (r *Registry) passOn(ctx context.Context, w http.ResponseWriter, name string, d digest.Digest, size int64, s storage.Fallback, off, n int64) (int64, error) {
	slots := r.bypasses.Load()
	if err := takeSlot(ctx, func(ctx context.Context) error { return slots.Acquire(ctx, 1) }); err != nil {
		return 0, err
	}
	defer slots.Release(1)
	t := &tap{source: r.source(name, d), ctx: ctx, at: s.At, end: size, size: size}
	defer t.Close()
	if err := t.connect(firstDeadline); err != nil {
		return 0, err
	}
	c := &checked{tap: t, hash: s.Hash, digest: d}
	return c.send(w, off, n)
}
