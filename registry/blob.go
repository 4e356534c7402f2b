package registry

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// octets is the media type of every blob: only its manifest says what it really is.
const octets = "application/octet-stream"

// send answers with an object.
func send(w http.ResponseWriter, req *http.Request, o content.Object, from content.Sender) result {
	status, sent, err := o.Send(w, req, from)
	if errors.Is(err, content.ErrRange) {
		err = &failure{status: http.StatusRequestedRangeNotSatisfiable, code: errcode.ErrorCodeRangeInvalid, detail: "the blob ends before it begins"}
	}
	return result{status: status, sent: sent, outcome: Outcome(o.Cache), err: err}
}

// blobRequest is a GET or HEAD of a blob.
type blobRequest struct {
	*repo
	digest  digest.Digest
	w       http.ResponseWriter
	req     *http.Request
	peer    bool         // another node asks: it gets what is here or under way, and fetches all else by itself
	ahead   *fetch.Ahead // nil: the blob was not read ahead
	fetched Outcome      // how the request took part in a flight that ended before it could read along; "": it didn't
}

// send answers with the blob.
func (q *blobRequest) send(size int64, o Outcome, from content.Sender) result {
	return send(q.w, q.req, content.Object{Digest: string(q.digest), MediaType: octets, Size: size, Cache: string(o)}, from)
}

// parts returns which parts of the blob, of size bytes, the client asks for, or nil if it wants it
// whole, or from some byte on.
func (q *blobRequest) parts(size int64) []storage.Span {
	return content.RangesOf(q.req, string(q.digest), size).Parts(size)
}

// serve answers the request, and finds out whether what was sent had been read ahead for it.
func (q *blobRequest) serve() result {
	q.m.sending.Add(1)
	defer q.m.sending.Add(-1)
	res := q.answer()
	if q.ahead != nil && isHit(res.outcome) {
		res.aheadSent, res.ahead = q.ahead.Sent(res.sent)
	}
	return res
}

// answer answers the request from the store, from a flight, or past both.
func (q *blobRequest) answer() result {
	if q.policy.denies(q.digest) {
		return result{err: deniedDigest}
	}
	if err := q.admission.wait(q.req.Context()); err != nil {
		return result{err: err}
	}
	q.ahead = q.m.pool.Asked(q.digest, q.req.Method == http.MethodGet)
	// Between two looks a flight may end, or a blob be evicted; and a blob that one repository
	// hasn't got, another one may have.
	for range 5 {
		b, err := q.m.store.Open(q.digest)
		if err == nil {
			return q.serveHit(b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			q.m.log.Error("a cached blob can't be read", "digest", q.digest, "error", err)
			size, ok := q.m.store.Has(q.digest)
			if !ok {
				size = -1
			}
			return q.serveBypass(size)
		}
		res := q.serveFlight()
		if !errors.Is(res.err, fetch.ErrEnded) {
			return res
		}
	}
	return q.serveBypass(-1) // whatever goes on there
}

// serveHit sends a blob of the store, once the repository is known to have it.
func (q *blobRequest) serveHit(b *storage.Blob) result {
	defer b.Close()
	ctx := q.req.Context()
	ok, err := q.linked(q.digest, b.Private)
	if err == nil && !ok {
		err = q.confirm(ctx, fetch.Blobs, q.digest, b.Size)
	}
	if err != nil {
		return result{err: err}
	}
	outcome := q.fetched
	if outcome == "" { // a blob that has just come in for this request is neither a hit nor used again
		outcome = OutcomeHit
		if q.req.Method == http.MethodGet {
			q.m.store.Touch(q.digest)
		}
	}
	return q.send(b.Size, outcome, func(w http.ResponseWriter, off, n int64) (int64, error) {
		if n == b.Size {
			q.m.rechecks.blobSent(q.req, q.digest)
		}
		sent, err := content.SendFile(w, b.Recipient(), b.File, off, n)
		if errors.Is(err, syscall.EIO) || errors.Is(err, io.ErrUnexpectedEOF) { // a bad sector, or the file was truncated meanwhile
			q.m.log.Error("a cached blob can't be read to its end and will be fetched again", "digest", q.digest, "error", err)
			q.m.store.Remove(q.digest)
			b.Close() // what is left of it takes no room while the rest is passed on
			from := storage.Fallback{Hash: q.digest.Algorithm().Hash()}
			more, err := q.m.pool.PassThrough(ctx, w, q.blob(q.digest, b.Size), from, off+sent, n-sent)
			return sent + more, err
		}
		return sent, err
	})
}

// serveFlight streams a blob while it is downloaded, or passes it through uncached.
// fetch.ErrEnded: look again.
func (q *blobRequest) serveFlight() result {
	if err := q.client.enter(); err != nil {
		return result{err: err}
	}
	ctx := q.req.Context()
	// Reading along needs nothing of the index, so that it goes on while the index is slow.
	outcome := OutcomeShared
	f, err := q.m.pool.Join(ctx, q.digest)
	if errors.Is(err, fetch.ErrNoFlight) {
		if q.peer {
			return result{err: notForPeers}
		}
		if err := q.m.pool.Failed(q.full, q.digest); err != nil {
			return result{err: err}
		}
		if q.req.Method == http.MethodHead {
			return q.serveHead()
		}
		b := q.blob(q.digest, q.claimedSize(q.digest))
		b.Origin = q.origin()
		b.Part = q.parts(b.Size) != nil
		var first bool
		if f, first, err = q.m.pool.Start(ctx, b); first {
			outcome = OutcomeMiss
			if errors.Is(err, fetch.ErrEnded) {
				q.fetched = outcome
			}
		}
		q.readAhead()
	} else if err == nil && q.req.Method == http.MethodGet {
		q.readAhead()
	}
	if err != nil {
		return result{err: err}
	}
	defer f.Leave()
	if a := f.Ahead(); a != nil {
		q.ahead = a
	}
	ours := f.Origin().Repository == q.full
	if !ours {
		if ok, err := q.linked(q.digest, f.Origin().Private); err != nil || !ok {
			if err := q.confirm(ctx, fetch.Blobs, q.digest, -1); err != nil {
				return result{err: err}
			}
		}
	}
	rd, err := f.Reader(ctx, q.parts)
	if fetch.NotKept(err) {
		return q.serveBypass(f.Stated())
	}
	if err != nil && !ours && ctx.Err() == nil && !errors.Is(err, fetch.ErrBusy) && !errors.Is(err, fetch.ErrTimeout) {
		return result{err: fetch.ErrEnded} // nothing that another repository meets is our client's fate
	}
	if errors.Is(err, fetch.ErrEnded) {
		q.fetched = outcome
	}
	if err != nil {
		return result{err: err}
	}
	defer rd.Close()
	return q.sendFlight(f, rd, outcome)
}

// sendFlight sends what a flight brings.
func (q *blobRequest) sendFlight(f *fetch.Flight, rd *storage.Reader, o Outcome) result {
	ctx := q.req.Context()
	size := f.Size()
	if size < 0 && (!q.req.ProtoAtLeast(1, 1) || q.req.Header.Get("Range") != "") {
		// In HTTP/1.0 a body without a length ends like one that broke off; and what a range
		// means, nobody can say yet.
		err := f.Verified(ctx)
		if fetch.NotKept(err) {
			return q.serveBypass(f.Stated())
		}
		if err != nil {
			return result{err: err}
		}
		size = f.Size()
	}
	grow := content.Growing(q.req, rd)
	return q.send(size, o, func(w http.ResponseWriter, off, n int64) (int64, error) {
		sent, err := grow(w, off, n)
		if fetch.NotKept(err) {
			more, err := f.Continue(ctx, w, q.blob(q.digest, -1), rd, off+sent, max(n-sent, -1))
			return sent + more, err
		}
		if _, ok := errors.AsType[*upstream.Error](err); ok && f.Origin().Repository != q.full {
			more, err := q.readOn(w, f, rd, off+sent, max(n-sent, -1))
			return sent + more, err
		}
		return sent, err
	})
}

// readOn goes on for a client that read along with a flight of another repository, which couldn't
// get the rest: with a flight of its own, or, where that isn't possible, by itself. old is its
// reader of the flight that failed; it is closed, so that it takes no room meanwhile.
func (q *blobRequest) readOn(w http.ResponseWriter, failed *fetch.Flight, old *storage.Reader, off, n int64) (int64, error) {
	ctx := q.req.Context()
	b := q.blob(q.digest, q.claimedSize(q.digest))
	b.Origin = q.origin()
	if f, _, err := q.m.pool.Start(ctx, b); err == nil {
		defer f.Leave()
		if rd, err := f.Reader(ctx, q.parts); err == nil && f.Size() == failed.Size() {
			defer rd.Close()
			old.Close()
			if sent, err := content.Growing(q.req, rd)(w, off, n); err == nil || sent > 0 || errors.Is(err, storage.ErrSlow) {
				return sent, err
			}
		}
	}
	return failed.Continue(ctx, w, b, old, off, n)
}

// serveHead asks upstream for the headers. A length that only a manifest claims isn't told to
// clients. If the CDN, or what stands before it, tells none, or refuses a HEAD, none is told.
func (q *blobRequest) serveHead() result {
	if err := q.client.enter(); err != nil {
		return result{err: err}
	}
	ctx := withClient(q.req.Context(), q.client)
	d, err := q.m.source.Resolve(ctx, q.name, fetch.Blobs, string(q.digest))
	if u, ok := errors.AsType[*upstream.Error](err); ok && u.Cause == upstream.Broken && u.Status != 0 {
		d.Size, err = -1, q.m.source.Confirm(ctx, q.name, fetch.Blobs, q.digest)
	}
	if err != nil {
		return result{err: err}
	}
	return q.send(d.Size, OutcomeMiss, nil)
}

// serveBypass passes a blob through: it is too large for the budget, or the disk fails. Each
// reader has an upstream request of its own. stated is the size that upstream has stated, or -1.
func (q *blobRequest) serveBypass(stated int64) result {
	if q.peer {
		return result{err: notForPeers}
	}
	if q.req.Method == http.MethodHead {
		return q.serveHead()
	}
	if err := q.client.enter(); err != nil {
		return result{err: err}
	}
	blob := q.blob(q.digest, stated)
	if blob.Stated = stated >= 0; !blob.Stated {
		blob.Size = q.claimedSize(q.digest)
	}
	b, parts, err := q.openBypass(blob)
	if err != nil {
		return result{err: err}
	}
	defer b.Close()
	if b.Size() < 0 && !q.req.ProtoAtLeast(1, 1) {
		return result{err: &upstream.Error{Cause: upstream.Broken, Host: q.m.client.Host(), Err: errors.New("a blob of unknown length for a client of HTTP/1.0")}}
	}
	o := content.Object{Digest: string(q.digest), MediaType: octets, Size: b.Size(), Cache: string(OutcomeBypass)}
	o.Whole = len(q.parts(b.Size())) > 1 && parts == nil
	return send(q.w, q.req, o, b.Send)
}

// openBypass opens a blob of which nothing is kept. Parts of it are asked for as they are, one after
// the other; anything else from the start, so that its digest can be known by the end. parts is nil
// if it is opened from the start. So it is when several parts are wanted of a source that knows no
// ranges, and would send the blob for each.
func (q *blobRequest) openBypass(blob fetch.Blob) (b *fetch.Bypass, parts []storage.Span, err error) {
	ctx := q.req.Context()
	for range 2 {
		if parts = q.parts(blob.Size); parts == nil {
			break
		}
		b, err = q.m.pool.Bypass(ctx, blob, fetch.Part{From: parts[0].From, To: parts[0].To})
		if err != nil || b.Size() == blob.Size && (len(parts) == 1 || b.Ranged()) {
			return b, parts, err
		}
		b.Close() // its size is another one than claimed, or the source knows no ranges
		if b.Size() == blob.Size {
			break
		}
		blob.Size, blob.Stated = b.Size(), b.Size() >= 0
	}
	b, err = q.m.pool.Bypass(ctx, blob, fetch.Part{To: -1})
	return b, nil, err
}

// readAhead fetches the other layers of the image that the blob belongs to, and its config.
func (q *blobRequest) readAhead() {
	if !q.policy.ReadAhead {
		return
	}
	layers := q.m.ahead.take(q.name, q.digest)
	if len(layers) == 0 {
		return
	}
	blobs := make([]fetch.Blob, 0, len(layers))
	for _, l := range layers {
		b := q.blob(l.Digest, l.Size)
		b.Client = "" // no client waits for it
		blobs = append(blobs, b)
	}
	origin := func() storage.Origin { // it goes on after the request, under the policy of its time
		now := *q.repo
		now.policy = q.m.policy.Load()
		return now.origin()
	}
	q.m.pool.ReadAhead(q.digest, blobs, origin, q.m.client.Down)
}
