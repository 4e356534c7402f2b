package settings

import (
	"fmt"
	"testing"
	"time"
)

// FuzzSize: a size is never negative, and its text is read as the same size.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"20GiB", "20GB", "30%", "0.5%", "1", "1.5TiB", "-1GiB", "1e30GB", "NaN%", "999999999999999999999", "8EiB", " 1 kb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Size
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if one.Bytes < 0 || !(one.Share >= 0 && one.Share <= 1) || one.Share != 0 && one.Bytes != 0 {
			t.Errorf("%q is %d bytes, share %v", s, one.Bytes, one.Share)
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || two != one {
			t.Errorf("%q is %+v, and shown and read again %+v, %v", s, one, two, err)
		}
	})
}

// FuzzDuration: a duration is never negative, and its text is read as the same duration.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"0", "90s", "10m", "168h", "7d", "2w", "-1s", "15250w", "15251w", "17000w", "1h30m", "1.5h", "9999999h", "1ns", "0d", "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Duration
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if one < 0 {
			t.Errorf("%q is %v", s, time.Duration(one))
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || two != one {
			t.Errorf("%q is %v, shown as %q, read as %v, %v", s, time.Duration(one), textOf(&one), time.Duration(two), err)
		}
	})
}

// FuzzPercent: a percentage is from 0 to 1, and its text is read as the same percentage.
func FuzzPercent(f *testing.F) {
	for _, s := range []string{"85%", "0%", "100%", "100.1%", "7%", "33.33%", "NaN%", "+Inf%", "-0%", "1e1%", "%", "85"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Percent
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if !(one >= 0 && one <= 1) {
			t.Errorf("%q is %v", s, float64(one))
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || fmt.Sprintf("%.6g", two) != fmt.Sprintf("%.6g", one) {
			t.Errorf("%q is %v, shown as %s, read as %v, %v", s, float64(one), textOf(&one), float64(two), err)
		}
	})
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"20GiB": {Bytes: 20 << 30}, "20GB": {Bytes: 20e9}, "1.5TiB": {Bytes: 3 << 39}, "4096": {Bytes: 4096}, "512kib": {Bytes: 512 << 10},
		"30%": {Share: 0.3}, "0.5%": {Share: 0.005}, "0": {},
	} {
		var got Size
		err := got.UnmarshalText([]byte(text))
		if want.text = text; err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "101%", "-1%", "0%", "twenty", "1e30GB", "9EiB", "20 apples", "NaN%"} {
		if got := new(Size); got.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "168h": 168 * time.Hour, "7d": 168 * time.Hour, "2w": 336 * time.Hour, "1h30m": 90 * time.Minute,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "7", "-1s", "-7d", "d", "1.5d", "17000w", "+-1d", "20000w0", "week"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}
