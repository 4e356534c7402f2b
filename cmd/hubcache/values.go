package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// value is one setting: what a flag, the environment and the file can set, and config
// show prints.
type value interface {
	Set(string) error
	String() string
}

// text is any string.
type text string

func (t *text) Set(s string) error { *t = text(s); return nil }
func (t *text) String() string     { return string(*t) }

// choice is one of some words.
type choice struct {
	word string
	of   []string
}

func (c *choice) Set(s string) error {
	for _, w := range c.of {
		if w == s {
			c.word = s
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(c.of, ", "))
}
func (c *choice) String() string { return c.word }

// truth is true or false.
type truth bool

func (b *truth) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	*b = truth(v)
	return nil
}
func (b *truth) String() string { return strconv.FormatBool(bool(*b)) }

// count is a whole number from 1.
type count int

func (c *count) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not a whole number from 1", s)
	}
	*c = count(n)
	return nil
}
func (c *count) String() string { return strconv.Itoa(int(*c)) }

// list is several strings: a list in the file, separated by commas elsewhere.
type list []string

func (l *list) Set(s string) error {
	*l = (*l)[:0:0]
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}
func (l *list) String() string { return strings.Join(*l, ",") }

// span is a duration: Go's units and d and w.
type span time.Duration

func (d *span) Set(s string) error {
	v, err := parseDuration(s)
	if err != nil {
		return err
	}
	*d = span(v)
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration like 90s, 10m, 24h, 7d or 2w", s)
	if s == "0" {
		return 0, nil
	}
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(s, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(s, "w"):
		unit = 7 * 24 * time.Hour
	}
	if unit != 0 {
		n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
		if err != nil || n < 0 || n > int64(math.MaxInt64/unit) {
			return 0, bad
		}
		return time.Duration(n) * unit, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

func (d *span) String() string {
	v := time.Duration(*d)
	if v > 0 && v%time.Hour == 0 {
		return strconv.Itoa(int(v/time.Hour)) + "h"
	}
	if v > 0 && v%time.Minute == 0 {
		return strconv.Itoa(int(v/time.Minute)) + "m"
	}
	return v.String()
}

// maybeSpan is a duration that may be unset.
type maybeSpan struct{ d *time.Duration }

func (m *maybeSpan) Set(s string) error {
	d, err := parseDuration(s)
	if err != nil {
		return err
	}
	m.d = &d
	return nil
}

func (m *maybeSpan) String() string {
	if m.d == nil {
		return ""
	}
	return (*span)(m.d).String()
}

// share is a percentage, kept as 0…1.
type share float64

func (p *share) Set(s string) error {
	n, ok := parseShare(s)
	if !ok {
		return fmt.Errorf("%q is not a percentage like 85%%", s)
	}
	*p = share(n)
	return nil
}

func parseShare(s string) (float64, bool) {
	digits, ok := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	return n / 100, ok && err == nil && n >= 0 && n <= 100
}

func (p *share) String() string { return strconv.FormatFloat(float64(*p)*100, 'g', 6, 64) + "%" }

// size is a number of bytes, or a share of the file system that the data is on.
type size struct {
	bytes int64
	share float64 // when not 0
	text  string  // as it was written
}

func (z *size) Set(s string) error {
	if p, ok := parseShare(s); ok && p > 0 {
		*z = size{share: p, text: s}
		return nil
	}
	n, err := parseBytes(s)
	if err != nil {
		return err
	}
	*z = size{bytes: n, text: s}
	return nil
}

func (z *size) String() string { return z.text }

// parseBytes reads 20GiB and 20GB as what they say: powers of 1024 and of 1000.
func parseBytes(s string) (int64, error) {
	parse := units.FromHumanSize
	if strings.Contains(strings.ToLower(s), "ib") {
		parse = units.RAMInBytes
	}
	n, err := parse(s)
	if err != nil || n < 0 || strings.HasPrefix(strings.TrimSpace(s), "-") {
		return 0, fmt.Errorf("%q is not a size like 20GiB, 20GB or 30%%", s)
	}
	return n, nil
}

// in returns the bytes, given the file system that path is on.
func (z *size) in(path string) (int64, error) {
	if z.share == 0 {
		return z.bytes, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("measuring the file system of %s: %w", path, err)
	}
	return int64(z.share * float64(st.Blocks) * float64(st.Bsize)), nil
}

// onlyBytes is a size that can't be a share.
type onlyBytes struct{ size }

func (z *onlyBytes) Set(s string) error {
	if err := z.size.Set(s); err != nil {
		return err
	}
	if z.share != 0 {
		return errors.New("a size in bytes is wanted, not a percentage")
	}
	return nil
}
