package registry

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
)

// maxStrikes is how many times in a row a body may break without having brought a byte.
const maxStrikes = 2

// pauses before a broken body is asked for again: at once-ish, then with some patience.
var pauses = [maxStrikes + 1]time.Duration{0, 100 * time.Millisecond, time.Second}

// locationAge is how long a signed CDN URL is used for the ranges of one blob. They are
// good for minutes; a break asks for a new one anyway.
const locationAge = time.Minute

// source is a blob upstream: where it is, and what its taps have learned.
type source struct {
	up      *upstream
	resumes func() // counts
	name    string
	digest  digest.Digest

	mu       sync.Mutex // guards what follows
	location *url.URL   // that answered last; nil: ask the registry. Never stored or logged.
	until    time.Time
}

func (s *source) where() (*url.URL, limit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.location == nil || time.Now().After(s.until) {
		return s.up.url(s.name + "/blobs/" + string(s.digest)), plain
	}
	return s.location, cdn
}

func (s *source) found(at *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.location == nil || *s.location != *at {
		s.location, s.until = at, time.Now().Add(locationAge)
	}
}

func (s *source) lost() {
	s.mu.Lock()
	s.location = nil
	s.mu.Unlock()
}

// tap reads the bytes from at up to end of a blob from upstream. It resumes by Range what
// breaks or stalls. Not safe for concurrent use; close it.
type tap struct {
	*source
	ctx     context.Context
	at, end int64 // end -1: to the blob's end, wherever that is
	size    int64 // of the blob; -1 until known
	ranged  bool  // upstream honours ranges
	whole   bool  // where it doesn't, this tap takes the whole blob

	body    io.ReadCloser
	cancel  context.CancelCauseFunc // of the body's request
	stall   *time.Timer             // calls cancel; runs during a read
	exact   bool                    // the body ends by itself where it should
	strikes int
	err     error // final
}

var errStalled = fmt.Errorf("no byte for %s: %w", stallAfter, context.DeadlineExceeded)

// connect opens the body, trying again as often as a break allows, before deadline.
func (t *tap) connect(deadline time.Duration) error {
	start := time.Now()
	for {
		err := t.open()
		if err == nil {
			return nil
		}
		t.strikes++
		if t.fatal(err) || t.strikes > maxStrikes || time.Since(start)+pauses[t.strikes] > deadline {
			return err
		}
		if err := t.pause(); err != nil {
			return err
		}
	}
}

func (t *tap) pause() error {
	select {
	case <-time.After(pauses[t.strikes]):
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// fatal reports whether asking again can't help.
func (t *tap) fatal(err error) bool {
	if t.ctx.Err() != nil {
		return true
	}
	u, ok := errors.AsType[*upstreamError](err)
	return ok && (u.cause == gone || u.cause == denied || u.cause == throttled || u.cause == refused)
}

// open sends one request for what is left and checks the headers of the answer.
func (t *tap) open() error {
	ctx, cancel := context.WithCancelCause(t.ctx)
	slow := time.AfterFunc(headersDeadline, func() { cancel(context.DeadlineExceeded) })
	header := http.Header{}
	if t.at > 0 || t.end >= 0 && t.end != t.size {
		header.Set("Range", rangeField(t.at, t.end))
	}
	to, m := t.where()
	resp, at, err := t.up.follow(ctx, http.MethodGet, to, header, m)
	if !slow.Stop() && err == nil {
		resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err == nil {
		if err = t.accept(resp, at); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && t.ctx.Err() == nil {
			err = cause
		}
		cancel(nil)
		t.lost()
		return classify(to.Host, err)
	}
	t.found(at)
	t.body, t.cancel = counted{resp.Body, &t.up.fetched}, cancel
	t.stall = time.AfterFunc(stallAfter, func() { cancel(errStalled) })
	t.stall.Stop()
	return t.skip(resp.StatusCode)
}

// rangeField asks for the bytes from at up to end, -1 for the rest.
func rangeField(at, end int64) string {
	s := "bytes=" + strconv.FormatInt(at, 10) + "-"
	if end >= 0 {
		s += strconv.FormatInt(end-1, 10)
	}
	return s
}

// accept checks what an answer says of itself against what is known of the blob.
func (t *tap) accept(resp *http.Response, at *url.URL) error {
	bad := func(format string, args ...any) error {
		return &upstreamError{cause: broken, host: at.Host, status: resp.StatusCode, err: fmt.Errorf(format, args...)}
	}
	total := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		from, to, size, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || from != t.at || t.end >= 0 && to > t.end || resp.ContentLength >= 0 && resp.ContentLength != to-from {
			return bad("asked for %s, got %q", rangeField(t.at, t.end), resp.Header.Get("Content-Range"))
		}
		total = size
	default:
		return bad("neither the blob nor a part of it")
	}
	if total >= 0 && t.size >= 0 && total != t.size {
		return bad("a body for a blob of %d bytes that should have %d", total, t.size)
	}
	if t.size < 0 {
		t.size = total
	}
	t.ranged = resp.StatusCode == http.StatusPartialContent
	if t.end < 0 || t.end > t.size || t.whole && !t.ranged {
		t.end = t.size
	}
	t.exact = resp.ContentLength >= 0 && (t.ranged || t.end == t.size)
	return nil
}

// skip reads over what a server without ranges sends again.
func (t *tap) skip(status int) error {
	if status != http.StatusOK || t.at == 0 {
		return nil
	}
	left := t.at
	buf := make([]byte, min(left, 128<<10))
	for left > 0 {
		n, err := t.read(buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		if err != nil && left > 0 {
			return t.broke(err)
		}
	}
	return nil
}

// parseContentRange reads "bytes 0-99/1000" (RFC 9110 §14.4); to is exclusive, and a size
// of * isn't accepted: upstream knows it.
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

// broke closes a body that failed, and says why.
func (t *tap) broke(err error) error {
	if t.stall != nil {
		t.stall.Stop()
	}
	if t.body == nil {
		return err
	}
	t.cancel(nil)
	t.body.Close()
	t.body = nil
	t.lost()
	return err
}

// read reads from the body. The stall timer runs while we wait for upstream, and not while
// upstream waits for us.
func (t *tap) read(p []byte) (int, error) {
	t.stall.Reset(stallAfter)
	n, err := t.body.Read(p)
	if !t.stall.Stop() && err != nil && err != io.EOF && t.ctx.Err() == nil {
		err = errStalled
	}
	return n, err
}

// Read reads the next bytes. At end it returns io.EOF; any other error is final.
func (t *tap) Read(p []byte) (int, error) {
	for t.err == nil {
		if t.end >= 0 && t.at == t.end {
			t.err = t.atEnd()
			break
		}
		if t.body == nil {
			t.resumes()
			if t.err = t.connect(firstDeadline); t.err != nil {
				break
			}
		}
		if t.end >= 0 {
			p = p[:min(int64(len(p)), t.end-t.at)]
		}
		n, err := t.read(p)
		if n > 0 {
			t.at += int64(n)
			t.strikes = 0
		}
		if err == io.EOF && t.end < 0 { // of unknown length, and cleanly ended
			t.size, t.end = t.at, t.at
		} else if err != nil && t.at != t.end {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			t.interrupted(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, t.err
}

// interrupted decides whether to go on after a break.
func (t *tap) interrupted(err error) {
	err = t.broke(classify(t.up.base.Host, err))
	t.strikes++
	if t.fatal(err) || t.strikes > maxStrikes {
		t.err = err
		return
	}
	if perr := t.pause(); perr != nil {
		t.err = perr
	}
}

// atEnd is io.EOF, unless a body that did not announce its length goes on.
func (t *tap) atEnd() error {
	if t.body == nil || t.exact || t.end != t.size {
		return io.EOF
	}
	var more [1]byte
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = t.read(more[:])
	}
	if n > 0 {
		return &upstreamError{cause: broken, host: t.up.base.Host, err: fmt.Errorf("more than the %d bytes of the blob", t.size)}
	}
	return io.EOF
}

// Close ends the reading. A body that was read to its end leaves its connection usable.
func (t *tap) Close() {
	if t.stall != nil {
		t.stall.Stop()
	}
	if t.body == nil {
		return
	}
	if t.at != t.end {
		t.cancel(nil)
	} else if t.exact {
		var eof [1]byte
		t.read(eof[:]) // lets net/http see the end, and keep the connection
	}
	t.body.Close()
	t.cancel(nil)
	t.body = nil
}
