// Package content sends the bytes of manifests and blobs to clients: conditional requests,
// ranges (RFC 9110), files by sendfile, and files that are still growing.
//
// It knows nothing of registries. What is sent is an Object; a Sender says where its bytes
// come from.
package content

import (
	"crypto/rand"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/hubcache/hubcache/storage"
)

// Object is what is sent: its headers and its size.
type Object struct {
	Digest    string // "sha256:…"; the ETag is made of it
	MediaType string
	Size      int64  // bytes; -1 when unknown
	Cache     string // the value of X-Hubcache
	Whole     bool   // no ranges can be sent: the whole object is, whatever is asked for
}

// Sender writes n bytes to w, beginning at offset off of the object, and returns how many it
// has written. With n -1 it writes all bytes that come. An error means that fewer bytes were
// written than the headers promise.
type Sender func(w http.ResponseWriter, off, n int64) (int64, error)

// ErrRange says that a range begins behind the end of the object. Nothing has been written
// but the Content-Range header; the answer to send is 416.
var ErrRange = errors.New("the range begins behind the end of the blob")

// Send answers a GET or HEAD with o: conditions and ranges as RFC 9110 has them, whether the bytes
// are cached, on their way, or passed through. Several ranges get a body of several parts, one for
// each, in the order asked for. Ranges that are malformed, too many, or overlap get the whole
// object, as the RFC allows.
//
// It returns the status and the number of bytes of the object that were sent. After an error with a
// status other than 0 the connection must be cut.
// Errors: ErrRange, with status 0; what send returns.
func (o *Object) Send(w http.ResponseWriter, req *http.Request, send Sender) (status int, sent int64, err error) {
	h := w.Header()
	h["Content-Type"] = []string{o.MediaType}
	h["Docker-Content-Digest"] = []string{o.Digest}
	h["Etag"] = []string{`"` + o.Digest + `"`}
	h["X-Hubcache"] = []string{o.Cache}
	h["Accept-Ranges"] = []string{"bytes"}
	if etagMatches(req.Header.Get("If-None-Match"), o.Digest) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified, 0, nil
	}
	status = http.StatusOK
	from, n := int64(0), o.Size
	switch r := o.ranges(req); {
	case r.Kind == RangeBeyond:
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(o.Size, 10))
		return 0, 0, ErrRange
	case len(r.Spans) == 1:
		status = http.StatusPartialContent
		from, n = r.Spans[0].From, r.Spans[0].To-r.Spans[0].From
		h.Set("Content-Range", o.contentRange(r.Spans[0]))
	case len(r.Spans) > 1:
		sent, err = o.sendParts(w, r.Spans, send)
		return http.StatusPartialContent, sent, err
	}
	if n >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(n, 10)}
	}
	w.WriteHeader(status)
	if req.Method == http.MethodHead {
		return status, 0, nil
	}
	sent, err = send(w, from, n)
	return status, sent, err
}

func (o *Object) ranges(req *http.Request) Ranges {
	if o.Whole {
		return Ranges{}
	}
	return RangesOf(req, o.Digest, o.Size)
}

// contentRange is the value of a Content-Range field.
func (o *Object) contentRange(s storage.Span) string {
	return "bytes " + strconv.FormatInt(s.From, 10) + "-" + strconv.FormatInt(s.To-1, 10) + "/" + strconv.FormatInt(o.Size, 10)
}

// sendParts sends several ranges as multipart/byteranges (RFC 9110 §14.6).
func (o *Object) sendParts(w http.ResponseWriter, spans []storage.Span, send Sender) (sent int64, err error) {
	boundary := rand.Text()
	head := func(s storage.Span) string {
		return "\r\n--" + boundary + "\r\nContent-Type: " + o.MediaType + "\r\nContent-Range: " + o.contentRange(s) + "\r\n\r\n"
	}
	end := "\r\n--" + boundary + "--\r\n"
	length := int64(len(end))
	for _, s := range spans {
		length += int64(len(head(s))) + s.To - s.From
	}
	h := w.Header()
	h["Content-Type"] = []string{"multipart/byteranges; boundary=" + boundary}
	h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	w.WriteHeader(http.StatusPartialContent)
	for _, s := range spans {
		if _, err := Write(w, []byte(head(s))); err != nil {
			return sent, err
		}
		n, err := send(w, s.From, s.To-s.From)
		sent += n
		if err != nil {
			return sent, err
		}
	}
	_, err = Write(w, []byte(end))
	return sent, err
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
