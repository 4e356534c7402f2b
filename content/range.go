package content

import (
	"math"
	"strconv"
	"strings"
)

// RangeKind says what a Range field asks for.
type RangeKind uint8

// The kinds of ranges.
const (
	RangeWhole  RangeKind = iota // no range, a malformed one, or several: the whole object
	RangePart                    // one range inside the object
	RangeBeyond                  // a range that begins behind the end: 416
)

// ParseRange reads a Range field (RFC 9110 §14.1.2) for an object of size bytes. With
// RangePart the range is n bytes, beginning at from, and lies inside the object.
func ParseRange(field string, size int64) (from, n int64, kind RangeKind) {
	spec, ok := strings.CutPrefix(field, "bytes=")
	first, last, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !dash || strings.ContainsRune(spec, ',') {
		return 0, 0, RangeWhole
	}
	if first == "" {
		n, ok := decimal(last)
		switch {
		case !ok:
			return 0, 0, RangeWhole
		case n == 0 || size == 0:
			return 0, 0, RangeBeyond
		}
		n = min(n, size)
		return size - n, n, RangePart
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
		return 0, 0, RangeWhole
	case from >= size:
		return 0, 0, RangeBeyond
	}
	return from, min(end, size-1) - from + 1, RangePart
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
