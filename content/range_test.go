package content

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"
)

var wellFormed = regexp.MustCompile(`^bytes=[0-9]*-[0-9]*$`)

// FuzzParseRange holds a Range field against what net/http makes of it, where that is one
// range; and whatever it is, nothing lies outside the blob.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=5-9", "bytes=-1", "bytes=-0", "bytes=0-999999999999999999999", "bytes=0--1", "bytes=5-1,9-10", "bytes=9-5", "items=0-1", "bytes= 1-2", "bytes=1-2 ", "bytes=99999-", "bytes=+1-2", "bytes=1-2-3"} {
		f.Add(s, uint16(100))
	}
	f.Fuzz(func(t *testing.T, field string, n uint16) {
		size := int64(n)
		from, length, v := ParseRange(field, size)
		if v == RangePart && (from < 0 || length <= 0 || from+length > size) {
			t.Fatalf("%q of %d: %d bytes from %d", field, size, length, from)
		}
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(i)
		}
		w := httptest.NewRecorder()
		req := &http.Request{Method: "GET", Header: http.Header{"Range": {field}}}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
		// net/http takes signs and spaces among digits, and sends nothing as the last no bytes.
		if w.Code == http.StatusPartialContent && wellFormed.MatchString(field) && w.Body.Len() > 0 {
			if v != RangePart || !bytes.Equal(w.Body.Bytes(), body[from:from+length]) {
				t.Errorf("%q of %d: %v, %d bytes from %d, net/http has %s", field, size, v, length, from, w.Header().Get("Content-Range"))
			}
		}
		if v == RangePart && w.Code == http.StatusOK && size > 0 {
			t.Errorf("%q of %d: a part, net/http has all of it", field, size)
		}
	})
}
