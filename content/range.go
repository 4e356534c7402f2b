package content

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hubcache/hubcache/storage"
)

// RangeKind says what a Range field asks for.
type RangeKind uint8

// The kinds of ranges.
const (
	RangeWhole  RangeKind = iota // no range, a malformed one, too many, or such that overlap: the whole object
	RangePart                    // one range inside the object, or several
	RangeBeyond                  // all ranges begin behind the end: 416
)

// maxRanges is how many ranges of one request are answered as ranges. Podman asks for at most as
// many of a layer.
const maxRanges = 1024

// Ranges are the ranges of a request, for an object of a known size.
type Ranges struct {
	Kind  RangeKind
	Spans []storage.Span // of RangePart: in the order asked for, inside the object and not empty
	Open  bool           // one of them has no end: it ends where the object does
}

// RangesOf returns the ranges that a GET asks for of an object with that digest. size is -1 if it
// is unknown: then the answer is the whole object, whatever is asked for.
func RangesOf(req *http.Request, digest string, size int64) Ranges {
	field := req.Header.Get("Range")
	if field == "" || size < 0 || req.Method != http.MethodGet {
		return Ranges{}
	}
	if v := req.Header.Get("If-Range"); v != "" && v != `"`+digest+`"` {
		return Ranges{}
	}
	return ParseRange(field, size)
}

// Parts returns the ranges if they are parts for which the digest of the object, of size bytes, says
// nothing: closed ranges and such that count from the end. It returns nil for the whole object,
// however it is asked for, and where a range has no end: a client that resumes holds what it
// has then against the digest.
func (r Ranges) Parts(size int64) []storage.Span {
	if r.Kind != RangePart || r.Open || len(r.Spans) == 1 && r.Spans[0] == (storage.Span{From: 0, To: size}) {
		return nil
	}
	return r.Spans
}

// ParseRange reads a Range field (RFC 9110 §14.1.2) for an object of size bytes. Ranges that begin
// behind its end are left out.
func ParseRange(field string, size int64) Ranges {
	list, ok := strings.CutPrefix(field, "bytes=")
	if !ok || strings.Count(list, ",") >= maxRanges {
		return Ranges{}
	}
	r := Ranges{Kind: RangeBeyond}
	for spec := range strings.SplitSeq(list, ",") {
		s, open, ok := parseSpec(strings.TrimSpace(spec), size)
		if !ok {
			return Ranges{}
		}
		if s.From < s.To {
			r.Kind, r.Spans, r.Open = RangePart, append(r.Spans, s), r.Open || open
		}
	}
	if overlap(r.Spans) {
		return Ranges{}
	}
	return r
}

// parseSpec reads one range. It is empty when it begins behind the end of the object; ok is false
// when it is malformed.
func parseSpec(spec string, size int64) (s storage.Span, open, ok bool) {
	first, last, dash := strings.Cut(spec, "-")
	if !dash {
		return s, false, false
	}
	if first == "" {
		n, ok := decimal(last)
		return storage.Span{From: size - min(n, size), To: size}, false, ok
	}
	from, ok := decimal(first)
	if last == "" {
		return storage.Span{From: from, To: size}, true, ok
	}
	end, ok2 := decimal(last)
	if !ok || !ok2 || end < from {
		return s, false, false
	}
	return storage.Span{From: from, To: min(end, size-1) + 1}, false, true
}

// overlap reports whether any two spans have a byte in common.
func overlap(spans []storage.Span) bool {
	if len(spans) < 2 {
		return false
	}
	sorted := slices.SortedFunc(slices.Values(spans), func(a, b storage.Span) int { return cmp.Compare(a.From, b.From) })
	for i, s := range sorted[1:] {
		if s.From < sorted[i].To {
			return true
		}
	}
	return false
}

// decimal reads a number of digits only. A number that is too large counts as the largest.
func decimal(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return math.MaxInt64, s != ""
	}
	return n, true
}
