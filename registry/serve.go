package registry

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/hubcache/hubcache/storage"
)

const (
	// piece is how much is sent between two moves of the write deadline, and pieceWithin
	// what a client may take for it: 4 KiB/s, less than any that is alive.
	piece       = 2 << 20
	pieceWithin = piece / (4 << 10) * time.Second

	// copyPiece is the buffer for a growing file; whole files go by sendfile.
	copyPiece = 128 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// object is what is served: its headers and its size, -1 when unknown.
type object struct {
	digest    string
	mediaType string
	size      int64
	outcome   Outcome
}

// sender writes bytes from off on to w, n of them or, if n is -1, all that come, and
// returns how many went out.
type sender func(w http.ResponseWriter, off, n int64) (int64, error)

// send answers a GET or HEAD with o: conditions and a single range as RFC 9110 has them,
// alike for what is cached, what is on its way and what passes by. A range that can't be
// understood, or several, get everything, as the RFC allows.
//
// It returns the status and the body bytes sent. An error means that the connection must
// be cut, or, when nothing was sent and it is a *failure, answered.
func (o *object) send(w http.ResponseWriter, req *http.Request, s sender) (status int, sent int64, err error) {
	h := w.Header()
	h["Content-Type"] = []string{o.mediaType}
	h["Docker-Content-Digest"] = []string{o.digest}
	h["Etag"] = []string{`"` + o.digest + `"`}
	h["X-Hubcache"] = []string{string(o.outcome)}
	h["Accept-Ranges"] = []string{"bytes"}
	if etagMatches(req.Header.Get("If-None-Match"), o.digest) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified, 0, nil
	}
	status = http.StatusOK
	from, n := int64(0), o.size
	if r := req.Header.Get("Range"); r != "" && o.size >= 0 && req.Method == http.MethodGet && o.ifRange(req) {
		var verdict rangeVerdict
		switch from, n, verdict = parseRange(r, o.size); verdict {
		case rangeWhole:
			from, n = 0, o.size
		case rangeBeyond:
			h.Set("Content-Range", "bytes */"+strconv.FormatInt(o.size, 10))
			return 0, 0, &failure{status: http.StatusRequestedRangeNotSatisfiable, code: errcode.ErrorCodeRangeInvalid, detail: "the blob ends before it begins"}
		case rangePart:
			status = http.StatusPartialContent
			h.Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(from+n-1, 10)+"/"+strconv.FormatInt(o.size, 10))
		}
	}
	if n >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(n, 10)}
	}
	w.WriteHeader(status)
	if req.Method == http.MethodHead {
		return status, 0, nil
	}
	sent, err = s(w, from, n)
	return status, sent, err
}

func (o *object) ifRange(req *http.Request) bool {
	v := req.Header.Get("If-Range")
	return v == "" || v == `"`+o.digest+`"`
}

// etagMatches reads an If-None-Match field (RFC 9110 §13.1.2); weak tags match too.
func etagMatches(field, digest string) bool {
	if field == "" {
		return false
	}
	for tag := range strings.SplitSeq(field, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || len(tag) == len(digest)+2 && tag[0] == '"' && tag[len(tag)-1] == '"' && tag[1:len(tag)-1] == digest {
			return true
		}
	}
	return false
}

type rangeVerdict uint8

const (
	rangeWhole  rangeVerdict = iota // no range that can be understood: everything
	rangePart                       // these bytes
	rangeBeyond                     // 416
)

// parseRange reads a Range field (RFC 9110 §14.1.2) for a representation of size bytes.
func parseRange(field string, size int64) (from, n int64, v rangeVerdict) {
	spec, ok := strings.CutPrefix(field, "bytes=")
	first, last, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !dash || strings.ContainsRune(spec, ',') {
		return 0, 0, rangeWhole
	}
	if first == "" {
		n, ok := decimal(last)
		switch {
		case !ok:
			return 0, 0, rangeWhole
		case n == 0 || size == 0:
			return 0, 0, rangeBeyond
		}
		n = min(n, size)
		return size - n, n, rangePart
	}
	from, ok = decimal(first)
	end := size - 1
	if last != "" {
		var ok2 bool
		end, ok2 = decimal(last)
		ok = ok && ok2
	}
	switch {
	case !ok || last != "" && end < from:
		return 0, 0, rangeWhole
	case from >= size:
		return 0, 0, rangeBeyond
	}
	return from, min(end, size-1) - from + 1, rangePart
}

// decimal reads digits only; what is too large to be a size is the largest one.
func decimal(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}

// sendBytes is a sender for what is in memory.
func sendBytes(b []byte) sender {
	return func(w http.ResponseWriter, off, n int64) (int64, error) {
		m, err := w.Write(b[off : off+n])
		return int64(m), err
	}
}

// step is how much of a growing file a client that has caught up with it is sent at a time:
// to be woken for less costs more than the sending. What comes slower doesn't wait for it
// (storage.BatchDelay).
const step = 512 << 10

// fresh is for how long the kernel has bytes in memory: none go before they are on the disk,
// which takes it seconds to begin with. What comes to light because a gap before it is filled
// may be older; the first call that waits for a disk ends the belief.
const fresh = time.Second

// sendGrowing is a sender for a blob on its way in, by sendfile as far as it has come.
// Where net/http can't do that (TLS, an unknown length) a large buffer is better than its own.
func sendGrowing(req *http.Request, rd *storage.Reader) sender {
	ctx := req.Context()
	read := func(p []byte, off int64) (int, error) { return rd.ReadAt(ctx, p, off) }
	return func(w http.ResponseWriter, off, n int64) (sent int64, err error) {
		if req.TLS != nil || n < 0 {
			return pump(w, off, n, read)
		}
		http.NewResponseController(w).Flush() // the headers are news already
		for since := (time.Time{}); sent < n; {
			want := int64(step)
			if sent == 0 {
				want = 1
			}
			end, err := rd.Available(ctx, off+sent, min(want, n-sent))
			if err != nil {
				return sent, err
			}
			now := time.Now() // all that is new has come since the last time
			m, err := sendStretch(w, rd.File(), off+sent, min(end-off-sent, n-sent), now.Sub(since) < fresh && !rd.Resumed())
			since = now
			sent += m
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return sent, err // it isn't waited for twice
			}
			if err != nil {
				// The client or the disk: reading tells which.
				more, err := pump(w, off+sent, n-sent, read)
				return sent + more, err
			}
		}
		return sent, nil
	}
}

// pump sends what read returns, waiting for it, until n bytes or io.EOF.
func pump(w http.ResponseWriter, off, n int64, read func(p []byte, off int64) (int, error)) (sent int64, err error) {
	control := http.NewResponseController(w)
	control.Flush() // the headers are news already
	buf := copyBuffers.Get().(*[copyPiece]byte)
	defer copyBuffers.Put(buf)
	due := int64(0)
	defer control.SetWriteDeadline(time.Time{})
	for n < 0 || sent < n {
		p := buf[:]
		if n >= 0 {
			p = p[:min(copyPiece, n-sent)]
		}
		m, err := read(p, off+sent)
		if m > 0 {
			if sent >= due {
				control.SetWriteDeadline(time.Now().Add(pieceWithin))
				due = sent + piece
			}
			k, werr := w.Write(p[:m])
			sent += int64(k)
			if werr != nil {
				return sent, werr
			}
			control.Flush()
		}
		if err == io.EOF && n < 0 {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
