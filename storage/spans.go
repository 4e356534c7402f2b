package storage

import "slices"

// Span is the bytes from From up to, not including, To.
type Span struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// spans is a set of bytes: sorted, disjoint, not touching.
type spans []Span

// add puts s into the set.
func (ss spans) add(s Span) spans {
	if s.To <= s.From {
		return ss
	}
	// The ones from i up to j overlap or touch s.
	i, _ := slices.BinarySearchFunc(ss, s.From, func(e Span, at int64) int {
		if e.To < at {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(ss) && ss[j].From <= s.To; j++ {
		s.From, s.To = min(s.From, ss[j].From), max(s.To, ss[j].To)
	}
	return slices.Replace(ss, i, j, s)
}

// end returns how far the set reaches from at without a gap: at itself when that byte isn't
// there.
func (ss spans) end(at int64) int64 {
	for _, s := range ss {
		if s.From <= at && at < s.To {
			return s.To
		}
	}
	return at
}

// hasPiece reports whether there is a whole Piece from at on, or all up to size. To hash
// fewer bytes at a time would cost more in waking up than in hashing.
func (ss spans) hasPiece(at, size int64) bool {
	end := ss.end(at)
	return end-at >= Piece || end == size
}

// missing returns what the set lacks of the first size bytes.
func (ss spans) missing(size int64) (gaps []Span) {
	at := int64(0)
	for _, s := range ss {
		if s.From >= size {
			break
		}
		if s.From > at {
			gaps = append(gaps, Span{at, s.From})
		}
		at = s.To
	}
	if at < size {
		gaps = append(gaps, Span{at, size})
	}
	return gaps
}

// missingIn returns what the set lacks of s.
func (ss spans) missingIn(s Span) (gaps []Span) {
	for _, g := range ss.missing(s.To) {
		if g.To > s.From {
			gaps = append(gaps, Span{max(g.From, s.From), g.To})
		}
	}
	return gaps
}

// bytes returns the number of bytes in the set.
func (ss spans) bytes() (n int64) {
	for _, s := range ss {
		n += s.To - s.From
	}
	return n
}

// valid reports whether ss, which comes from a file, is sorted, disjoint and within size.
func (ss spans) valid(size int64) bool {
	last := int64(-1)
	for _, s := range ss {
		if s.From <= last || s.To <= s.From || s.To > size {
			return false
		}
		last = s.To
	}
	return true
}
