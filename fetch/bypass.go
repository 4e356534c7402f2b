package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/storage"
)

// Bypass is a blob that is passed through to one reader without being kept: it is too large
// for the budget, or the disk fails. It has a slot until it is closed, and its client is cut when it
// reads slowly and others wait for one. Not safe for concurrent use; close it.
type Bypass struct {
	ctx  context.Context
	pool *Pool
	blob Blob
	body *Body
	size int64
	part bool // parts of it are read, which have no digest to be held against
	to   *storage.Recipient
	free func()
}

// Bypass opens the blob for one reader. A part is asked for as it is, and so are those that are sent
// after it. Everything else is read from the start, so that its digest can be known by the end: pass
// the Part from 0 to -1 for it. ctx ends all reading.
// Errors: ErrBusy, those of the Source, ctx's cause.
func (p *Pool) Bypass(ctx context.Context, b Blob, part Part) (*Bypass, error) {
	to, free, err := p.bounds.Load().bypass.acquire(ctx, &b)
	if err != nil {
		return nil, err
	}
	part.Size, part.Claim = b.Size, !b.Stated
	body, err := p.open(ctx, b.Source, part)
	if err == nil && body.Size < 0 && part.To >= 0 { // nobody could tell which part it is
		body.Close()
		part = Part{To: -1, Size: -1}
		body, err = p.open(ctx, b.Source, part)
	}
	if err != nil {
		free()
		return nil, err
	}
	isPart := body.From > 0 || body.To != body.Size
	return &Bypass{ctx: ctx, pool: p, blob: b, body: body, size: body.Size, part: isPart, to: to, free: free}, nil
}

// Ranged reports whether the source knows ranges.
func (b *Bypass) Ranged() bool { return b.body.Ranged }

// Size returns the size of the blob in bytes, -1 when the source doesn't say.
func (b *Bypass) Size() int64 { return b.size }

// Send is a content.Sender. What comes before off is only hashed.
// Errors: storage.ErrDigest before the last byte, or, of a small blob, before the first; those
// of the Source and of the connection; storage.ErrSlow.
func (b *Bypass) Send(w http.ResponseWriter, off, n int64) (int64, error) {
	if b.part {
		if err := b.moveTo(off, n); err != nil {
			return 0, err
		}
		return content.Copy(w, b.to, off, n, func(p []byte, _ int64) (int, error) { return b.body.Read(p) })
	}
	v := &verifier{body: b.body, hash: b.blob.Digest.Algorithm().Hash(), digest: b.blob.Digest}
	sent, err := v.send(w, b.to, off, n)
	if errors.Is(err, storage.ErrDigest) {
		b.pool.mismatches.Add(1)
	}
	return sent, err
}

// moveTo opens the part of n bytes from off on, unless it is the one that is open.
func (b *Bypass) moveTo(off, n int64) error {
	if b.body.From == off && b.body.To == off+n {
		return nil
	}
	b.body.Close()
	body, err := b.pool.open(b.ctx, b.blob.Source, Part{From: off, To: off + n, Size: b.size})
	if err != nil {
		return err
	}
	b.body = body
	return nil
}

// Close ends the reading.
func (b *Bypass) Close() {
	b.body.Close()
	b.free()
}

// PassThrough sends n bytes of the blob from off on to a client that has the bytes before
// off, from the source. from says which bytes need not be read again, and their digest so
// far. n is -1 for all that come.
// Errors: as Bypass and Bypass.Send.
func (p *Pool) PassThrough(ctx context.Context, w http.ResponseWriter, b Blob, from storage.Fallback, off, n int64) (int64, error) {
	to, free, err := p.bounds.Load().bypass.acquire(ctx, &b)
	if err != nil {
		return 0, err
	}
	defer free()
	body, err := p.open(ctx, b.Source, Part{From: from.At, To: b.Size, Size: b.Size})
	if err != nil {
		return 0, err
	}
	defer body.Close()
	v := &verifier{body: body, hash: from.Hash, digest: b.Digest, pending: from.Pending}
	return v.send(w, to, off, n)
}

// passPart sends n bytes of the blob from off on, a part for which no digest speaks, from the source.
// Errors: as Bypass and Bypass.Send.
func (p *Pool) passPart(ctx context.Context, w http.ResponseWriter, b Blob, off, n int64) (int64, error) {
	b.Stated = true
	by, err := p.Bypass(ctx, b, Part{From: off, To: off + n})
	if err != nil {
		return 0, err
	}
	defer by.Close()
	by.part = true
	return by.Send(w, off, n)
}

// verifier hashes what it passes on, and holds the last byte back until the digest is right;
// of a small blob, everything.
type verifier struct {
	body   *Body
	hash   hash.Hash // of the bytes before body.From
	digest digest.Digest

	pending []byte  // bytes right before body.From that are passed on first
	last    [1]byte // the newest byte, which may be the last
	held    int     // 1 when there is one
}

// send is a content.Sender. What comes before off is only hashed; off may not lie before
// what is pending.
func (v *verifier) send(w http.ResponseWriter, to *storage.Recipient, off, n int64) (int64, error) {
	skip := off - v.body.From + int64(len(v.pending))
	if n < 0 && v.body.Size >= 0 { // nobody knew it when the client was promised all
		n = v.body.Size - off
	}
	if size := v.body.Size; size >= 0 && size <= storage.VerifyFirst {
		b, err := io.ReadAll(v)
		if err != nil {
			return 0, err
		}
		small := bytes.NewReader(b[skip:][:n])
		return content.Copy(w, to, off, n, func(p []byte, _ int64) (int, error) { return small.Read(p) })
	}
	// The client waits while we read what it has already.
	if _, err := io.CopyN(io.Discard, v, skip); err != nil {
		return 0, err
	}
	return content.Copy(w, to, off, n, func(p []byte, _ int64) (int, error) { return v.Read(p) })
}

// Read is one byte behind the body.
func (v *verifier) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		m, err := copy(p, v.pending), error(nil)
		if v.pending = v.pending[m:]; m == 0 {
			m, err = v.body.Read(p)
			v.hash.Write(p[:m])
		}
		if m > 0 {
			newest := p[m-1]
			copy(p[v.held:], p[:m-1])
			n := copy(p, v.last[:v.held]) + m - 1
			v.last[0], v.held = newest, 1
			if n > 0 {
				return n, nil
			}
			continue
		}
		if err != io.EOF {
			return 0, err
		}
		if err := v.verify(); err != nil {
			return 0, err
		}
		n := copy(p, v.last[:v.held])
		v.held = 0
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
}

func (v *verifier) verify() error {
	if got := digest.NewDigest(v.digest.Algorithm(), v.hash); got != v.digest {
		return fmt.Errorf("%w: got %s for %s", storage.ErrDigest, got, v.digest)
	}
	return nil
}
