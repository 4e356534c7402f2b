package settings

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

// Value is one setting: what a flag, the environment and the file can set, and config
// show prints.
type Value interface {
	Set(string) error
	String() string
}

// text is any string.
type Text string

func (t *Text) Set(s string) error { *t = Text(s); return nil }
func (t *Text) String() string     { return string(*t) }

// choice is one of some words.
type Choice struct {
	Word string
	of   []string
}

func (c *Choice) Set(s string) error {
	for _, w := range c.of {
		if w == s {
			c.Word = s
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(c.of, ", "))
}
func (c *Choice) String() string { return c.Word }

// truth is true or false.
type Bool bool

func (b *Bool) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	*b = Bool(v)
	return nil
}
func (b *Bool) String() string { return strconv.FormatBool(bool(*b)) }

// count is a whole number from 1.
type Count int

func (c *Count) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not a whole number from 1", s)
	}
	*c = Count(n)
	return nil
}
func (c *Count) String() string { return strconv.Itoa(int(*c)) }

// list is several strings: a list in the file, separated by commas elsewhere.
type List []string

func (l *List) Set(s string) error {
	*l = (*l)[:0:0]
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}
func (l *List) String() string { return strings.Join(*l, ",") }

// span is a duration: Go's units and d and w.
type Duration time.Duration

func (d *Duration) Set(s string) error {
	v, err := parseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(v)
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

func (d *Duration) String() string {
	v := time.Duration(*d)
	if v > 0 && v%time.Hour == 0 {
		return strconv.Itoa(int(v/time.Hour)) + "h"
	}
	if v > 0 && v%time.Minute == 0 {
		return strconv.Itoa(int(v/time.Minute)) + "m"
	}
	return v.String()
}

// OptionalDuration is a duration that may be unset.
type OptionalDuration struct{ D *time.Duration }

func (m *OptionalDuration) Set(s string) error {
	d, err := parseDuration(s)
	if err != nil {
		return err
	}
	m.D = &d
	return nil
}

func (m *OptionalDuration) String() string {
	if m.D == nil {
		return ""
	}
	return (*Duration)(m.D).String()
}

// share is a percentage, kept as 0…1.
type Percent float64

func (p *Percent) Set(s string) error {
	n, ok := parseShare(s)
	if !ok {
		return fmt.Errorf("%q is not a percentage like 85%%", s)
	}
	*p = Percent(n)
	return nil
}

func parseShare(s string) (float64, bool) {
	digits, ok := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	return n / 100, ok && err == nil && n >= 0 && n <= 100
}

func (p *Percent) String() string { return strconv.FormatFloat(float64(*p)*100, 'g', 6, 64) + "%" }

// size is a number of bytes, or a share of the file system that the data is on.
type Size struct {
	Bytes int64
	Share float64 // when not 0
	text  string  // as it was written
}

func (z *Size) Set(s string) error {
	if p, ok := parseShare(s); ok && p > 0 {
		*z = Size{Share: p, text: s}
		return nil
	}
	n, err := parseBytes(s)
	if err != nil {
		return err
	}
	*z = Size{Bytes: n, text: s}
	return nil
}

func (z *Size) String() string { return z.text }

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

// In returns the bytes, given the file system that path is on.
func (z *Size) In(path string) (int64, error) {
	if z.Share == 0 {
		return z.Bytes, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("measuring the file system of %s: %w", path, err)
	}
	return int64(z.Share * float64(st.Blocks) * float64(st.Bsize)), nil
}

// ByteCount is a size that can't be a share.
type ByteCount struct{ Size }

func (z *ByteCount) Set(s string) error {
	if err := z.Size.Set(s); err != nil {
		return err
	}
	if z.Share != 0 {
		return errors.New("a size in bytes is wanted, not a percentage")
	}
	return nil
}
