package tier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/tier/bucket"
	"github.com/hubcache/hubcache/tier/lease"
)

const (
	// distrustTime is how long a blob comes from the upstream alone when bucket or another node
	// had wrong bytes.
	distrustTime = 10 * time.Minute

	// maxHolders is how many nodes one blob is asked of: each has been found dead.
	maxHolders = 3
)

// blob is one blob under one repository. It is a fetch.BlobSource that wants to know how the download
// ended.
type blob struct {
	s          *source
	repository string
	digest     digest.Digest
	upstream   fetch.BlobSource

	mu       sync.Mutex // guards what follows
	noBucket bool       // the bucket hasn't got it, or failed
	noPeer   bool       // no other node has it for this one
	dead     lease.Lease
	holders  int  // that were asked
	allowed  bool // the repository has it
	from     struct{ bucket, peer, upstream bool }
}

// Open returns a part of the blob from the bucket, else from the node that fetches it, else from the
// upstream. A body of the first two goes on elsewhere when it breaks.
// Errors: those of the upstream, ctx's cause.
func (b *blob) Open(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	t := b.s.t
	if !t.distrusted.Has(string(b.digest)) {
		for _, leg := range []func(context.Context, fetch.Part) (*fetch.Body, error){b.fromBucket, b.fromPeer} {
			body, err := leg(ctx, p)
			if body != nil || err != nil {
				return body, err
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		}
	}
	return b.fromUpstream(ctx, p)
}

// fromBucket returns nil when the bucket has nothing for this blob.
// Errors: the upstream's, when it says that the repository hasn't got it.
func (b *blob) fromBucket(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	t := b.s.t
	if b.is(&b.noBucket) {
		return nil, nil
	}
	var body *bucket.Body
	err := t.ask(ctx, func() (err error) { body, err = t.bucket.Open(ctx, blobName(b.digest), p.From, p.To); return err })
	if err != nil {
		return nil, nil
	}
	if p.Size >= 0 && body.Size != p.Size { // one of them is wrong, and the upstream knows which
		body.Close()
		b.set(&b.noBucket)
		return nil, nil
	}
	if err := b.allow(ctx, body.Private); err != nil {
		body.Close()
		return nil, err
	}
	rc := io.ReadCloser(body)
	if body.Size <= storage.VerifyFirst {
		if rc = b.verifySmall(ctx, body); rc == nil {
			return nil, nil
		}
	}
	b.set(&b.from.bucket)
	t.evictor.use(blobName(b.digest))
	out := &fetch.Body{From: body.From, To: body.To, Size: body.Size, Ranged: true}
	out.ReadCloser = t.relay(ctx, b, rc, out, lease.Lease{})
	return out, nil
}

// verifySmall returns the whole bytes of a small blob, so that its client never notices that they are
// wrong, or nil.
func (b *blob) verifySmall(ctx context.Context, body *bucket.Body) io.ReadCloser {
	if body.From > 0 || body.To < body.Size { // the digest says nothing of a part
		return body
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	if err != nil {
		b.s.t.noteBucket(ctx, err)
		b.set(&b.noBucket)
		return nil
	}
	if b.digest.Algorithm().FromBytes(content) != b.digest {
		b.s.t.drop(blobName(b.digest), b.digest)
		b.set(&b.noBucket)
		return nil
	}
	return io.NopCloser(bytes.NewReader(content))
}

// allow returns nil if the repository has the blob. A blob that is public it has if one of its
// manifests names it; otherwise the upstream must have said so, to any node or now.
// Errors: those of the upstream, ctx's cause.
func (b *blob) allow(ctx context.Context, private bool) error {
	if b.is(&b.allowed) {
		return nil
	}
	if !b.s.named(b.repository, b.digest, private) {
		if err := b.s.Confirm(ctx, b.repository, fetch.Blobs, b.digest); err != nil {
			return err
		}
	}
	b.set(&b.allowed)
	return nil
}

// fromPeer returns nil when no other node fetches the blob for this one. This node may have the
// lease then.
func (b *blob) fromPeer(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	t := b.s.t
	for !b.is(&b.noPeer) && ctx.Err() == nil {
		other, mine, err := t.holds.take(ctx, b.digest, b.lastDead())
		if mine || err != nil {
			return nil, nil
		}
		body, err := t.openPeer(ctx, other, b.s.registry, b.repository, b.digest, p)
		switch {
		case errors.Is(err, errDead):
			b.died(other)
		case err != nil, p.Size >= 0 && !p.Claim && body.Size >= 0 && body.Size != p.Size:
			if body != nil {
				body.Close()
			}
			b.set(&b.noPeer)
		default:
			b.set(&b.from.peer)
			body.ReadCloser = t.relay(ctx, b, body.ReadCloser, body, other)
			return body, nil
		}
	}
	return nil, nil
}

// fromUpstream returns a part from the upstream, which goes on by itself.
func (b *blob) fromUpstream(ctx context.Context, p fetch.Part) (*fetch.Body, error) {
	closed := sync.OnceFunc(b.s.t.holds.opened(b.digest))
	body, err := b.upstream.Open(ctx, p)
	if err != nil {
		closed()
		return nil, err
	}
	b.set(&b.from.upstream)
	body.ReadCloser = heldBody{body.ReadCloser, closed}
	return body, nil
}

// heldBody is a body of the upstream while which the lease lasts.
type heldBody struct {
	io.ReadCloser
	closed func()
}

func (h heldBody) Close() error {
	h.closed()
	return h.ReadCloser.Close()
}

func (b *blob) is(flag *bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *flag
}

func (b *blob) set(flag *bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*flag = true
}

func (b *blob) lastDead() lease.Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead
}

// died notes that the holder of a lease is dead, as far as can be seen from here.
func (b *blob) died(holder lease.Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead == holder {
		return // another connection has noted it
	}
	b.dead = holder
	if b.holders++; b.holders >= maxHolders {
		b.noPeer = true
	}
}

// Ended says how the download of the blob ended: with nil it is in the store, and verified.
func (b *blob) Ended(err error) {
	t := b.s.t
	b.mu.Lock()
	from := b.from
	b.mu.Unlock()
	if err == nil {
		t.holds.arrived(b.digest)
		u := upload{Kind: fetch.Blobs, Repository: b.s.full(b.repository), Digest: b.digest}
		switch {
		case from.upstream:
			b.s.served(b.repository)
			t.uploads.add(u, 0)
		case from.peer:
			t.uploads.add(u, t.pace.byOthers)
		}
		return
	}
	if errors.Is(err, storage.ErrDigest) && (from.bucket || from.peer) {
		t.distrusted.Add(string(b.digest), distrustTime, nil)
		t.drop(blobName(b.digest), b.digest)
	}
	t.background(func(context.Context) { t.holds.release(b.digest) })
}

// relay is a body of bucket or node. When it breaks, it goes on where it was with what the blob
// opens next. Not safe for concurrent use.
type relay struct {
	t      *Tier
	ctx    context.Context
	b      *blob
	body   io.ReadCloser
	holder lease.Lease // zero: the bucket
	at, to int64       // to is -1 while nobody knows where the blob ends
	size   int64
	last   bool // body goes on by itself
}

func (t *Tier) relay(ctx context.Context, b *blob, rc io.ReadCloser, body *fetch.Body, holder lease.Lease) *relay {
	t.hits.Add(1)
	return &relay{t: t, ctx: ctx, b: b, body: rc, holder: holder, at: body.From, to: body.To, size: body.Size}
}

func (r *relay) Read(p []byte) (int, error) {
	for {
		if r.to >= 0 && r.at >= r.to {
			return 0, io.EOF
		}
		if r.to >= 0 {
			p = p[:min(int64(len(p)), r.to-r.at)]
		}
		n, err := r.body.Read(p)
		r.at += int64(n)
		if !r.last {
			r.t.bytes.Add(int64(n))
		}
		switch {
		case n > 0:
			return n, nil // the error comes again
		case err == nil:
			continue
		case r.to < 0 && err == io.EOF:
			return 0, io.EOF
		case r.last:
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		case r.ctx.Err() != nil:
			return 0, context.Cause(r.ctx)
		}
		if err := r.goOn(err); err != nil {
			return 0, err
		}
	}
}

// goOn opens the rest elsewhere.
func (r *relay) goOn(why error) error {
	r.body.Close()
	if r.holder == (lease.Lease{}) {
		r.t.noteBucket(r.ctx, why)
		r.b.set(&r.b.noBucket)
	} else {
		r.b.died(r.holder)
	}
	r.t.log.Debug("a body of the shared tier broke; going on elsewhere", "digest", r.b.digest, "at", r.at, "error", why)
	body, err := r.b.Open(r.ctx, fetch.Part{From: r.at, To: r.to, Size: r.size})
	if err != nil {
		r.body = http.NoBody
		return err
	}
	r.body, r.last = body.ReadCloser, true
	if body.From != r.at || r.size >= 0 && body.Size >= 0 && body.Size != r.size {
		return fmt.Errorf("the rest of the blob begins at %d of %d bytes, not at %d of %d", body.From, body.Size, r.at, r.size)
	}
	return nil
}

func (r *relay) Close() error { return r.body.Close() }
