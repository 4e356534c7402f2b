package settings

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"

	"github.com/hubcache/hubcache/disk"
)

// Value is what one setting holds. UnmarshalText takes what a flag, a variable or a
// scalar of the file says; for Records and Map, which only the file can set, it always fails.
// MarshalText is what config show prints; a file with it gives the same value, unless an item
// of a List has a comma. MarshalText never fails.
type Value interface {
	encoding.TextUnmarshaler
	encoding.TextMarshaler
	// Kind says in the help of a flag what belongs there: "duration".
	Kind() string
}

// nodeValue is a Value that may be more than a scalar in the file.
type nodeValue interface {
	Value
	// decode sets it from a node that is not null. key is the whole key, for faults.
	decode(d *decoder, n *yaml.Node, key string)
}

// textOf is the value as config show prints it.
func textOf(v Value) string {
	b, _ := v.MarshalText() // a Value's never fails
	return string(b)
}

// kindList is the Kind of a value whose flag may be given several times.
const kindList = "list"

// Text is any string.
type Text string

// UnmarshalText takes everything.
func (t *Text) UnmarshalText(b []byte) error { *t = Text(b); return nil }

// MarshalText returns the string.
func (t Text) MarshalText() ([]byte, error) { return []byte(t), nil }

// Kind implements Value.
func (Text) Kind() string { return "value" }

// Bool is true or false.
type Bool bool

// UnmarshalText takes what strconv.ParseBool takes.
func (v *Bool) UnmarshalText(b []byte) error {
	parsed, err := strconv.ParseBool(string(b))
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", b)
	}
	*v = Bool(parsed)
	return nil
}

// MarshalText returns true or false.
func (v Bool) MarshalText() ([]byte, error) { return strconv.AppendBool(nil, bool(v)), nil }

// Kind implements Value.
func (Bool) Kind() string { return "value" }

// Count is a whole number from 1.
type Count int

// UnmarshalText takes decimal digits.
func (c *Count) UnmarshalText(b []byte) error {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not a whole number from 1", b)
	}
	*c = Count(n)
	return nil
}

// MarshalText returns decimal digits.
func (c Count) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(c), 10), nil }

// Kind implements Value.
func (Count) Kind() string { return "value" }

// Limit is a whole number; 0 is no limit.
type Limit int

// UnmarshalText takes decimal digits.
func (l *Limit) UnmarshalText(b []byte) error {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a whole number from 0", b)
	}
	*l = Limit(n)
	return nil
}

// MarshalText returns decimal digits.
func (l Limit) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(l), 10), nil }

// Kind implements Value.
func (Limit) Kind() string { return "value" }

// List is several strings: a list in the file, separated by commas elsewhere.
type List []string

// UnmarshalText splits at commas and leaves out what is empty.
func (l *List) UnmarshalText(b []byte) error {
	*l = nil
	for part := range strings.SplitSeq(string(b), ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

// MarshalText joins with commas.
func (l List) MarshalText() ([]byte, error) { return []byte(strings.Join(l, ",")), nil }

// Kind implements Value.
func (List) Kind() string { return kindList }

// decode reads a list, or a scalar with commas.
func (l *List) decode(d *decoder, n *yaml.Node, key string) {
	if n.Kind != yaml.SequenceNode {
		d.scalar(n, key, l)
		return
	}
	*l = nil
	for _, item := range n.Content {
		if item = resolved(item); item.Kind != yaml.ScalarNode || item.Value == "" {
			d.fault(item, key, "every item is a single value")
			continue
		}
		*l = append(*l, item.Value)
	}
}

// document is the list as the file has it: an item may hold a comma.
func (l List) document() any { return []string(l) }

// Duration is a time.Duration that isn't negative. Its text has Go's units, and d and w.
type Duration time.Duration

// UnmarshalText takes 90s, 10m, 24h, 7d, 2w and 0.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := parseDuration(string(b))
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

// MarshalText returns whole hours and minutes without the smaller units: 24h, 10m, 1m30s.
func (d Duration) MarshalText() ([]byte, error) {
	v := time.Duration(d)
	switch {
	case v > 0 && v%time.Hour == 0:
		return []byte(strconv.Itoa(int(v/time.Hour)) + "h"), nil
	case v > 0 && v%time.Minute == 0:
		return []byte(strconv.Itoa(int(v/time.Minute)) + "m"), nil
	}
	return []byte(v.String()), nil
}

// Kind implements Value.
func (Duration) Kind() string { return "duration" }

// OptionalDuration is a duration that may be unset: then D is nil.
type OptionalDuration struct{ D *time.Duration }

// UnmarshalText takes what Duration takes.
func (o *OptionalDuration) UnmarshalText(b []byte) error {
	var d Duration
	if err := d.UnmarshalText(b); err != nil {
		return err
	}
	o.D = (*time.Duration)(&d)
	return nil
}

// MarshalText returns nothing when it is unset.
func (o OptionalDuration) MarshalText() ([]byte, error) {
	if o.D == nil {
		return nil, nil
	}
	return Duration(*o.D).MarshalText()
}

// Kind implements Value.
func (OptionalDuration) Kind() string { return "duration" }

// Percent is a share of something, from 0 to 1; its text is a percentage.
type Percent float64

// UnmarshalText takes 85%.
func (p *Percent) UnmarshalText(b []byte) error {
	n, ok := parsePercent(string(b))
	if !ok {
		return fmt.Errorf("%q is not a percentage like 85%%", b)
	}
	*p = Percent(n)
	return nil
}

func parsePercent(s string) (float64, bool) {
	digits, ok := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	return n / 100, ok && err == nil && n >= 0 && n <= 100
}

// MarshalText returns the percentage with six digits.
func (p Percent) MarshalText() ([]byte, error) {
	return append(strconv.AppendFloat(nil, float64(p)*100, 'g', 6, 64), '%'), nil
}

// Kind implements Value.
func (Percent) Kind() string { return "percent" }

// Size is a number of bytes, or a share of the file system that the data is on.
type Size struct {
	Bytes int64
	Share float64 // from 0 to 1; 0: Bytes counts
	text  string  // as it was written
}

// UnmarshalText takes 20GiB, 20GB and 30%.
func (z *Size) UnmarshalText(b []byte) error {
	s := string(b)
	if p, ok := parsePercent(s); ok && p > 0 {
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

// parseBytes reads 20GiB as powers of 1024 and 20GB as powers of 1000.
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

// MarshalText returns the size as it was written.
func (z Size) MarshalText() ([]byte, error) { return []byte(z.text), nil }

// Kind implements Value.
func (Size) Kind() string { return "size" }

// In returns the bytes, given the file system that path is on. It fails when the size is
// a share and path doesn't exist.
func (z Size) In(path string) (int64, error) {
	if z.Share == 0 {
		return z.Bytes, nil
	}
	s, err := disk.Measure(path)
	if err != nil {
		return 0, fmt.Errorf("measuring the file system: %w", err)
	}
	return int64(z.Share * float64(s.Total)), nil
}

// ByteCount is a size that can't be a share.
type ByteCount struct{ Size }

// UnmarshalText takes 20GiB and 20GB.
func (z *ByteCount) UnmarshalText(b []byte) error {
	if err := z.Size.UnmarshalText(b); err != nil {
		return err
	}
	if z.Share != 0 {
		return errors.New("a size in bytes is wanted, not a percentage")
	}
	return nil
}

// OnGone says what to do with a tag that upstream has deleted.
type OnGone string

// The values of OnGone.
const (
	AnswerGone OnGone = "gone" // answer that there is no such tag
	KeepGone   OnGone = "keep" // go on serving it
)

// UnmarshalText takes one of the values.
func (o *OnGone) UnmarshalText(b []byte) error { return oneOf(o, b, AnswerGone, KeepGone) }

// MarshalText returns the word.
func (o OnGone) MarshalText() ([]byte, error) { return []byte(o), nil }

// Kind implements Value.
func (OnGone) Kind() string { return "value" }

// LogLevel is the least level that is logged: debug, info, warn or error.
type LogLevel string

// UnmarshalText takes one of the levels.
func (l *LogLevel) UnmarshalText(b []byte) error {
	return oneOf(l, b, "debug", "info", "warn", "error")
}

// MarshalText returns the word.
func (l LogLevel) MarshalText() ([]byte, error) { return []byte(l), nil }

// Kind implements Value.
func (LogLevel) Kind() string { return "value" }

// LogFormat is text or json; "" is text on a terminal, else json.
type LogFormat string

// UnmarshalText takes one of the formats.
func (l *LogFormat) UnmarshalText(b []byte) error { return oneOf(l, b, "", "text", "json") }

// MarshalText returns the word.
func (l LogFormat) MarshalText() ([]byte, error) { return []byte(l), nil }

// Kind implements Value.
func (LogFormat) Kind() string { return "value" }

// oneOf sets *to to the word in b, which has to be one of words.
func oneOf[T ~string](to *T, b []byte, words ...T) error {
	if !slices.Contains(words, T(b)) {
		all := make([]string, len(words))
		for i, w := range words {
			all[i] = string(w)
		}
		return fmt.Errorf("%q is none of %s", b, strings.Join(all, ", "))
	}
	*to = T(b)
	return nil
}
