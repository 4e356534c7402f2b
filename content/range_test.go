package content

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/storage"
)

// FuzzParseRange holds a Range field against what net/http makes of it, wherever both send ranges;
// and whatever the field is, nothing lies outside the blob, and nothing is sent twice.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=5-9", "bytes=-1", "bytes=-0", "bytes=0-999999999999999999999", "bytes=0--1", "bytes=5-1,9-10", "bytes=9-5", "items=0-1", "bytes= 1-2", "bytes=1-2 ", "bytes=99999-", "bytes=+1-2", "bytes=1-2-3",
		"bytes=0-1,5-6", "bytes=5-6,0-1,-3", "bytes=0-5,5-6", "bytes=0-1,999999-,4-5", "bytes=999999-,888888-", "bytes=0-1,", "bytes=,", "bytes=0-,-1", "bytes=1-1,3-3,2-2", "bytes=-0,1-2"} {
		f.Add(s, uint16(100))
	}
	f.Fuzz(func(t *testing.T, field string, n uint16) {
		size := int64(n)
		r := ParseRange(field, size)
		total := int64(0)
		for _, s := range r.Spans {
			if s.From < 0 || s.From >= s.To || s.To > size {
				t.Fatalf("%q of %d: %v", field, size, s)
			}
			total += s.To - s.From
		}
		if total > size || (r.Kind == RangePart) != (len(r.Spans) > 0) {
			t.Fatalf("%q of %d: %+v", field, size, r)
		}
		body := make([]byte, size)
		rand.Read(body)
		answer := func(serve func(http.ResponseWriter, *http.Request)) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			serve(w, &http.Request{Method: "GET", Header: http.Header{"Range": {field}}})
			return w
		}
		ours := answer(func(w http.ResponseWriter, req *http.Request) {
			o := Object{MediaType: "text/plain", Size: size}
			if _, _, err := o.Send(w, req, Bytes(body)); err == ErrRange {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			}
		})
		theirs := answer(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
		})
		switch {
		case ours.Code == http.StatusPartialContent && theirs.Code == http.StatusPartialContent:
			a, b := parts(t, ours), slices.DeleteFunc(parts(t, theirs), noBytes) // net/http sends the last no bytes, too
			if !slices.Equal(a, b) && wellFormed.MatchString(field) {
				t.Errorf("%q of %d: %q, net/http has %q", field, size, a, b)
			}
		case ours.Code == http.StatusPartialContent && theirs.Code == http.StatusOK && size > 0 && total < size:
			t.Errorf("%q of %d: a part, net/http has all of it", field, size)
		case ours.Code == http.StatusOK && (theirs.Code != http.StatusPartialContent || !wellFormed.MatchString(field) || size == 0):
			if !bytes.Equal(ours.Body.Bytes(), body) {
				t.Errorf("%q of %d: 200 with %d bytes", field, size, ours.Body.Len())
			}
		case ours.Code == http.StatusOK && !overlap(httpSpans(t, theirs)) && strings.Count(field, ",") < maxRanges && !backwards(field):
			t.Errorf("%q of %d: all of it, net/http has parts", field, size)
		}
	})
}

// wellFormed are the fields in which net/http takes no signs and spaces that we don't.
var wellFormed = regexp.MustCompile(`^bytes=[0-9]*-[0-9]*(,[0-9]*-[0-9]*)*$`)

// parts returns the ranges of an answer, and their bytes.
func parts(t *testing.T, w *httptest.ResponseRecorder) (all []string) {
	kind, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return []string{w.Header().Get("Content-Range") + " " + w.Header().Get("Content-Type") + " " + w.Body.String()}
	}
	if n, err := strconv.Atoi(w.Header().Get("Content-Length")); err != nil || n != w.Body.Len() {
		t.Errorf("%d bytes, %v were announced", w.Body.Len(), w.Header()["Content-Length"])
	}
	for r := multipart.NewReader(bytes.NewReader(w.Body.Bytes()), params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p.Header.Get("Content-Range")+" "+p.Header.Get("Content-Type")+" "+string(b))
	}
}

// noBytes reports whether a part of parts has none: it ends before it begins.
func noBytes(part string) bool {
	var first, last int64
	_, err := fmt.Sscanf(part, "bytes %d-%d/", &first, &last)
	return err == nil && last < first
}

// backwards reports whether a range ends before it begins, which net/http doesn't see where it begins
// behind the end of the object.
func backwards(field string) bool {
	for spec := range strings.SplitSeq(strings.TrimPrefix(field, "bytes="), ",") {
		a, b, _ := strings.Cut(spec, "-")
		first, _ := decimal(a)
		last, _ := decimal(b)
		if a != "" && b != "" && last < first {
			return true
		}
	}
	return false
}

// httpSpans returns the ranges of an answer.
func httpSpans(t *testing.T, w *httptest.ResponseRecorder) (spans []storage.Span) {
	for _, p := range parts(t, w) {
		var s storage.Span
		var size int64
		if _, err := fmt.Sscanf(p, "bytes %d-%d/%d", &s.From, &s.To, &size); err == nil {
			s.To++
			spans = append(spans, s)
		}
	}
	return spans
}

// TestPartsOfSeveralRanges: one part for each range, in the order asked for, also where they touch;
// such that begin behind the end are left out; what can't be meant well gets the whole object.
func TestPartsOfSeveralRanges(t *testing.T) {
	many := "bytes=0-0" + strings.Repeat(",2-2", maxRanges)
	for field, want := range map[string][]storage.Span{
		"bytes=8-9,0-1":       {{From: 8, To: 10}, {From: 0, To: 2}},
		"bytes=0-1,2-3":       {{From: 0, To: 2}, {From: 2, To: 4}},
		"bytes=0-1, -2":       {{From: 0, To: 2}, {From: 98, To: 100}},
		"bytes=0-1,200-300":   {{From: 0, To: 2}},
		"bytes=0-1,1-2":       nil,
		"bytes=0-,5-6":        nil,
		"bytes=0-1,b":         nil,
		"bytes=0-1,,4-5":      nil,
		many:                  nil,
		"bytes=0-49,50-99":    {{From: 0, To: 50}, {From: 50, To: 100}},
		"bytes=90-,0-1":       {{From: 90, To: 100}, {From: 0, To: 2}},
		"bytes=0-99999999999": {{From: 0, To: 100}},
	} {
		if got := ParseRange(field, 100); !slices.Equal(got.Spans, want) {
			t.Errorf("%.40s: %v, want %v", field, got.Spans, want)
		}
	}
}

// TestPartsHaveNoDigest: whoever asks for the whole blob, or for all from some byte on, holds what
// it has against the digest.
func TestPartsHaveNoDigest(t *testing.T) {
	for field, part := range map[string]bool{
		"bytes=0-1": true, "bytes=-1": true, "bytes=98-99": true, "bytes=98-1000": true, "bytes=0-1,4-5": true,
		"bytes=0-": false, "bytes=98-": false, "bytes=0-99": false, "bytes=-100": false, "bytes=-1000": false, "bytes=0-1,98-": false, "bytes=": false, "bytes=200-": false,
	} {
		if got := ParseRange(field, 100).Parts(100); (got != nil) != part {
			t.Errorf("%s: %v", field, got)
		}
	}
}
