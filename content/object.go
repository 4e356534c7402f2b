// Package content sends the bytes of manifests and blobs to clients: conditional requests,
// ranges (RFC 9110), files by sendfile, and files that are still growing.
//
// It knows nothing of registries. What is sent is an Object; a Sender says where its bytes
// come from.
package content

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
)

// Object is what is sent: its headers and its size.
type Object struct {
	Digest    string // "sha256:…"; the ETag is made of it
	MediaType string
	Size      int64  // bytes; -1 when unknown
	Cache     string // the value of X-Hubcache
}

// Sender writes n bytes to w, beginning at offset off of the object, and returns how many it
// has written. With n -1 it writes all bytes that come. An error means that fewer bytes were
// written than the headers promise.
type Sender func(w http.ResponseWriter, off, n int64) (int64, error)

// ErrRange says that a range begins behind the end of the object. Nothing has been written
// but the Content-Range header; the answer to send is 416.
var ErrRange = errors.New("the range begins behind the end of the blob")

// Send answers a GET or HEAD with o: conditions and a single range as RFC 9110 has them,
// whether the bytes are cached, on their way, or passed through. A range that is malformed,
// and several ranges, get the whole object, as the RFC allows.
//
// It returns the status and the number of body bytes sent. After an error with a status
// other than 0 the connection must be cut.
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
	if r := req.Header.Get("Range"); r != "" && o.Size >= 0 && req.Method == http.MethodGet && o.ifRange(req) {
		var kind RangeKind
		switch from, n, kind = ParseRange(r, o.Size); kind {
		case RangeWhole:
			from, n = 0, o.Size
		case RangeBeyond:
			h.Set("Content-Range", "bytes */"+strconv.FormatInt(o.Size, 10))
			return 0, 0, ErrRange
		case RangePart:
			status = http.StatusPartialContent
			h.Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(from+n-1, 10)+"/"+strconv.FormatInt(o.Size, 10))
		}
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

func (o *Object) ifRange(req *http.Request) bool {
	v := req.Header.Get("If-Range")
	return v == "" || v == `"`+o.Digest+`"`
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
