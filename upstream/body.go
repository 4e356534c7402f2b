package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/auth"
)

// maxBreaks is how many failures in a row are followed by a retry. A failure is a break of the
// body or an attempt to connect; a byte sets the count back.
const maxBreaks = 2

// retryPauses are the pauses before a retry, by the number of failures in a row, from 1.
var retryPauses = [maxBreaks + 1]time.Duration{1: 100 * time.Millisecond, 2: time.Second}

// shortPause is the longest pause after a 429 that a blob waits for. Its clients wait for its
// headers meanwhile.
const shortPause = 2 * time.Second

// locationAge is how long a signed CDN URL is used for the ranges of one blob. Such URLs
// are good for minutes; after a break the registry is asked for a new one anyway.
const locationAge = time.Minute

// Blob is a blob of an upstream: where it is, and what its bodies have learned of that.
// All methods are safe for concurrent use.
type Blob struct {
	client     *Client
	repository string
	digest     digest.Digest

	mu       sync.Mutex // guards what follows
	location *url.URL   // the URL that answered last; nil: ask the registry. Kept in memory only, never logged
	until    time.Time  // location is not used after this
}

// Blob returns a blob of the repository. It makes no request.
func (c *Client) Blob(repository string, d digest.Digest) *Blob {
	return &Blob{client: c, repository: repository, digest: d}
}

// where returns the URL to ask.
func (b *Blob) where() (*url.URL, limit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.location == nil || time.Now().After(b.until) {
		return b.client.url(b.repository + "/blobs/" + string(b.digest)), plain
	}
	return b.location, cdn
}

// found remembers the URL that answered, unless it is the registry's own.
func (b *Blob) found(at *url.URL) {
	if *at == *b.client.url(b.repository + "/blobs/" + string(b.digest)) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.location == nil || *b.location != *at {
		b.location, b.until = at, time.Now().Add(locationAge)
	}
}

// lost forgets location, so that the next request asks the registry.
func (b *Blob) lost() {
	b.mu.Lock()
	b.location = nil
	b.mu.Unlock()
}

// Part says which bytes of a blob to read. For the whole blob set To and Size to -1; the zero
// value is of no use. A To behind the blob's end means its end. With Claim, a part that begins
// behind the blob's end means the whole blob.
type Part struct {
	From, To int64 // To is exclusive; -1: to the blob's end, wherever that is
	Size     int64 // of the blob; -1: unknown
	Claim    bool  // Size is what a manifest claims: the upstream's own length decides
	Whole    bool  // if the upstream ignores ranges, don't stop at To: the other bytes come anyway
}

// Body reads a part of a blob. A body that breaks or stalls is continued by Range.
// Not safe for concurrent use; Close it.
type Body struct {
	blob    *Blob
	ctx     context.Context
	at, end int64 // what is left to read; end is -1 while nobody knows where the blob ends
	size    int64 // of the blob; -1 until known
	claimed int64 // what a manifest claims of size, while nothing else tells; -1: nothing
	other   int64 // the length that the last answer stated in place of claimed; -1: none
	ranged  bool  // the last answer was a 206
	offers  bool  // the last answer was the whole blob, as asked for, and says that there are ranges
	whole   bool  // as in Part

	body    io.ReadCloser
	cancel  context.CancelCauseFunc // of the body's request
	stall   *time.Timer             // calls cancel; runs during a read
	reading bool                    // Open has returned, and at moves on
	exact   bool                    // the body ends by itself where it should
	ended   int64                   // where the last body ended cleanly, before claimed; -1: none did
	breaks  int                     // in a row, without a byte
	failure error                   // final
}

// errStalled wraps DeadlineExceeded, so that classify makes it a Timeout.
var errStalled = fmt.Errorf("no byte for %s: %w", stallDeadline, context.DeadlineExceeded)

// Open asks for a part of the blob, again if need be, and returns when the upstream has
// answered. ctx ends the request and all reading.
// Errors: *Error, which wraps ctx's cause if ctx has ended, or ctx's cause.
func (b *Blob) Open(ctx context.Context, p Part) (*Body, error) {
	body := &Body{blob: b, ctx: ctx, at: p.From, end: p.To, size: p.Size, claimed: -1, other: -1, ended: -1, whole: p.Whole}
	if p.Claim {
		body.size, body.claimed = -1, p.Size
	}
	if err := body.connect(); err != nil {
		body.Close()
		return nil, err
	}
	body.reading = true
	return body, nil
}

// Span returns which bytes are left to read; to is exclusive, and -1 while nobody knows
// where the blob ends.
func (b *Body) Span() (from, to int64) { return b.at, b.end }

// Size returns the size of the whole blob in bytes, -1 when it isn't known yet.
func (b *Body) Size() int64 { return b.size }

// Ranged reports whether the upstream has answered with a range, or says that it would.
func (b *Body) Ranged() bool { return b.ranged || b.offers }

// connect opens the body, and tries again as often as a break allows. No attempt begins after
// openDeadline, or goes on for longer.
func (b *Body) connect() error {
	start, asked := time.Now(), false
	for {
		err := b.request(min(headersDeadline, openDeadline-time.Since(start)))
		if err == nil || errors.Is(err, errAtEnd) {
			return nil
		}
		u, ok := errors.AsType[*Error](err)
		refusal := ok && u.notAsked
		asked = asked || !refusal
		b.breaks++
		if b.breaks > maxBreaks || b.final(err) {
			return err
		}
		wait := b.retryIn(err, refusal)
		// A registry that has been down for longer keeps nobody waiting.
		if waited := time.Since(start); waited+wait >= openDeadline || !asked && waited+wait > probeFirst+retryPauses[maxBreaks] {
			return err
		}
		if err := b.pause(wait); err != nil {
			return err
		}
	}
}

// retryIn returns how long to wait before the next attempt. The first retry doesn't fall into
// the pause of the circuit breaker that the attempt has opened. When another request was faster
// to use the breaker's probe up, its answer is near.
func (b *Body) retryIn(err error, refusal bool) time.Duration {
	if errors.Is(err, errAskAgain) {
		return 0
	}
	wait := retryPauses[b.breaks]
	if u, ok := errors.AsType[*Error](err); ok && u.Cause == Throttled {
		return max(wait, u.RetryAfter)
	}
	if refusal && b.breaks > 1 {
		return wait
	}
	return max(wait, b.blob.client.health.probeIn())
}

func (b *Body) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// final reports whether asking again now can't help.
func (b *Body) final(err error) bool {
	if b.ctx.Err() != nil {
		return true
	}
	u, ok := errors.AsType[*Error](err)
	return ok && (u.Cause == NotFound || u.Cause == Denied || u.Cause == Refused || u.Cause == Throttled && u.RetryAfter > shortPause)
}

// request sends one request for what is left and checks the headers of the answer, for which it
// waits so long.
func (b *Body) request(patience time.Duration) error {
	ctx, cancel := context.WithCancelCause(auth.WithScope(b.ctx, b.blob.repository))
	slow := time.AfterFunc(patience, func() { cancel(context.DeadlineExceeded) })
	header := http.Header{}
	if b.at > 0 || b.end >= 0 && b.end != b.size && b.end != b.claimed {
		header.Set("Range", rangeField(b.at, b.end))
	}
	to, l := b.blob.where()
	resp, at, err := b.blob.client.follow(ctx, http.MethodGet, to, header, l)
	if !slow.Stop() && err == nil {
		resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err == nil {
		if err = b.accept(resp, at); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && b.ctx.Err() == nil {
			err = cause
		}
		cancel(nil)
		b.blob.lost()
		return classify(to.Host, err)
	}
	b.blob.found(at)
	b.body, b.cancel = counted{resp.Body, &b.blob.client.blobBytes}, cancel
	b.stall = time.AfterFunc(stallDeadline, func() { cancel(errStalled) })
	b.stall.Stop()
	return b.skip(resp.StatusCode)
}

// rangeField asks for the bytes from at up to end, -1 for the rest.
func rangeField(at, end int64) string {
	s := "bytes=" + strconv.FormatInt(at, 10) + "-"
	if end >= 0 {
		s += strconv.FormatInt(end-1, 10)
	}
	return s
}

// accept checks what an answer says of itself against what is known of the blob, and takes over
// its size and end.
// Errors: errAtEnd, when nothing is left to read; *Error, with errAskAgain when the next answer
// will tell.
func (b *Body) accept(resp *http.Response, at *url.URL) error {
	bad := func(format string, args ...any) error {
		return &Error{Cause: Broken, Host: at.Host, Status: resp.StatusCode, Err: fmt.Errorf(format, args...)}
	}
	total := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		from, to, size, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || from != b.at || b.end >= 0 && to > b.end || resp.ContentLength >= 0 && resp.ContentLength != to-from {
			return bad("asked for %s, got %q", rangeField(b.at, b.end), resp.Header.Get("Content-Range"))
		}
		total = size
	case http.StatusRequestedRangeNotSatisfiable:
		switch {
		case b.size >= 0: // and more than b.at
		case b.reading: // all that came before was the blob
			b.size, b.end, b.claimed = b.at, b.at, -1
			return errAtEnd
		case b.claimed >= 0: // and less than that
			return b.askForWhole(at.Host)
		}
		fallthrough
	default:
		return bad("neither the blob nor a part of it")
	}
	switch {
	case total < 0:
	case b.size >= 0 && total != b.size:
		return bad("a body for a blob of %d bytes that should have %d", total, b.size)
	case b.claimed >= 0 && total != b.claimed && total != b.other:
		// It may be an error page. Two answers that agree outweigh a claim.
		b.other = total
		return bad("a body for a blob of %d bytes that should have %d: %w", total, b.claimed, errAskAgain)
	case b.claimed >= 0 && !b.reading && b.at > 0 && b.at >= total:
		return b.askForWhole(at.Host)
	case total < b.at:
		return bad("a body for a blob of %d bytes of which %d have come", total, b.at)
	default:
		b.size, b.claimed = total, -1
	}
	b.ranged = resp.StatusCode == http.StatusPartialContent
	b.offers = !b.ranged && b.at == 0 && (b.end < 0 || b.end == total) && strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes")
	if b.end < 0 || b.size >= 0 && b.end > b.size || b.whole && !b.ranged {
		b.end = b.size
	}
	b.exact = resp.ContentLength >= 0 && (b.ranged || b.end == b.size)
	return nil
}

// askForWhole makes the next request one for the whole blob, since it ends before the part begins:
// its size was only claimed. It returns the error of the last one. No byte may have been read.
func (b *Body) askForWhole(host string) error {
	b.at, b.end, b.size, b.claimed = 0, -1, -1, -1
	return &Error{Cause: Broken, Host: host, Err: fmt.Errorf("the blob is shorter than claimed: %w", errAskAgain)}
}

var (
	errAskAgain = errors.New("asking again")
	errAtEnd    = errors.New("the blob has no more bytes")
)

// skip reads over what a server without ranges sends again.
func (b *Body) skip(status int) error {
	if status != http.StatusOK || b.at == 0 {
		return nil
	}
	left := b.at
	buf := make([]byte, min(left, 128<<10))
	for left > 0 {
		n, err := b.read(buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		if err == io.EOF && left > 0 && b.claimed >= 0 && !b.reading {
			return b.broke(b.askForWhole(b.blob.client.base.Host))
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // what is wanted lies behind
		}
		if err != nil && left > 0 {
			return b.broke(classify(b.blob.client.base.Host, err))
		}
	}
	return nil
}

// parseContentRange reads "bytes 0-99/1000" (RFC 9110 §14.4); to is exclusive. A size of *
// isn't accepted: a registry or CDN that has the blob knows its size.
func parseContentRange(s string) (from, to, size int64, ok bool) {
	spec, found := strings.CutPrefix(s, "bytes ")
	span, total, found2 := strings.Cut(spec, "/")
	first, last, found3 := strings.Cut(span, "-")
	number := func(s string) (n int64) {
		u, err := strconv.ParseUint(s, 10, 63) // digits only
		ok = ok && err == nil
		return int64(u)
	}
	ok = found && found2 && found3
	from, to, size = number(first), number(last), number(total)
	return from, to + 1, size, ok && from <= to && to < size
}

// broke closes a body that failed, and returns err.
func (b *Body) broke(err error) error {
	if b.stall != nil {
		b.stall.Stop()
	}
	if b.body == nil {
		return err
	}
	b.cancel(nil)
	b.body.Close()
	b.body = nil
	b.blob.lost()
	return err
}

// read reads from the body. The stall timer runs while we wait for the upstream, and not
// while the upstream waits for us.
func (b *Body) read(p []byte) (int, error) {
	b.stall.Reset(stallDeadline)
	n, err := b.body.Read(p)
	if !b.stall.Stop() && err != nil && err != io.EOF && b.ctx.Err() == nil {
		err = errStalled
	}
	return n, err
}

// Read reads the next bytes. At the end of the part it returns io.EOF.
// Errors are final: *Error, the cause of the context, http.ErrBodyReadAfterClose.
func (b *Body) Read(p []byte) (int, error) {
	for b.failure == nil {
		if b.end >= 0 && b.at == b.end {
			b.failure = b.atEnd()
			break
		}
		if b.body == nil {
			b.blob.client.resumes.Add(1)
			if b.failure = b.connect(); b.failure != nil || b.body == nil {
				continue // it has failed, or there is nothing left to read
			}
		}
		if b.end >= 0 {
			p = p[:min(int64(len(p)), b.end-b.at)]
		}
		n, err := b.read(p)
		if n > 0 {
			b.at += int64(n)
			b.breaks = 0
		}
		// Of unknown length, and cleanly ended: where it may, or twice at the same place.
		if err == io.EOF && b.size < 0 && (b.end < 0 && b.at >= b.claimed || b.at == b.ended) {
			b.size, b.end = b.at, b.at
		} else if err != nil && b.at != b.end {
			if err == io.EOF {
				b.ended, err = b.at, io.ErrUnexpectedEOF
			}
			b.interrupted(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.failure
}

// interrupted decides whether to go on after a break.
func (b *Body) interrupted(err error) {
	err = b.broke(classify(b.blob.client.base.Host, err))
	b.breaks++
	if b.final(err) || b.breaks > maxBreaks {
		b.failure = err
		return
	}
	if perr := b.pause(retryPauses[b.breaks]); perr != nil {
		b.failure = perr
	}
}

// atEnd is io.EOF, unless a body that did not announce its length goes on.
func (b *Body) atEnd() error {
	if b.body == nil || b.exact || b.end != b.size {
		return io.EOF
	}
	var more [1]byte
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = b.read(more[:])
	}
	if n > 0 {
		return &Error{Cause: Broken, Host: b.blob.client.base.Host, Err: fmt.Errorf("more than the %d bytes of the blob", b.size)}
	}
	return io.EOF
}

// Close ends the reading. The connection of a body that was read to its end is used again.
// It returns no error.
func (b *Body) Close() error {
	if b.failure == nil {
		b.failure = http.ErrBodyReadAfterClose
	}
	if b.stall != nil {
		b.stall.Stop()
	}
	if b.body == nil {
		return nil
	}
	if b.at != b.end {
		b.cancel(nil)
	} else if b.exact {
		var eof [1]byte
		b.read(eof[:]) // lets net/http see the end, and keep the connection
	}
	b.body.Close()
	b.cancel(nil)
	b.body = nil
	return nil
}
