package settings

import (
	"strings"
	"testing"
	"time"
)

// TestScheduleInLocalTime: five words, in local time, over the changes of daylight saving time.
func TestScheduleInLocalTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ schedule, from, want string }{
		{"30 3 * * *", "2026-01-01T03:29:59+01:00", "2026-01-01T03:30:00+01:00"},
		{"30 3 * * *", "2026-01-01T03:30:00+01:00", "2026-01-02T03:30:00+01:00"},
		{"0 4 1 * *", "2026-01-01T04:00:00+01:00", "2026-02-01T04:00:00+01:00"},
		{"*/15 9-17 * * MON-FRI", "2026-01-02T17:45:00+01:00", "2026-01-05T09:00:00+01:00"},
		{"30 2 * * *", "2026-03-28T12:00:00+01:00", "2026-03-30T02:30:00+02:00"}, // it is left out on the 29th
		{"30 2 * * *", "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"}, // and comes twice
		{"30 2 * * *", "2026-10-25T02:30:00+01:00", "2026-10-26T02:30:00+01:00"},
	} {
		var s Schedule
		if err := s.UnmarshalText([]byte(row.schedule)); err != nil {
			t.Error(err)
			continue
		}
		from, err := time.Parse(time.RFC3339, row.from)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Next(from.In(berlin)).Format(time.RFC3339); got != row.want {
			t.Errorf("%s after %s: %s, want %s", row.schedule, row.from, got, row.want)
		}
	}
	if next := (Schedule{}).Next(time.Now()); !next.IsZero() {
		t.Error(next)
	}
}

// TestFaultsOfWarm: each has its line, and says how it is written.
func TestFaultsOfWarm(t *testing.T) {
	for text, want := range map[string]string{
		"warm: {schedule: \"30 3 * *\"}":                    "f:1: warm.schedule: \"30 3 * *\" is not a schedule of five words",
		"warm: {schedule: \"@daily\"}":                      "is not a schedule of five words",
		"warm: {schedule: \"TZ=UTC 30 3 * * *\"}":           "a time zone can't be given",
		"warm: {schedule: \"61 3 * * *\"}":                  "is not a schedule of five words",
		"warm: {schedule: \"0 0 30 2 *\"}":                  "is a time that never comes",
		"warm:\n  references:\n    - redis:7\n    - Redis!": "f:4: warm.references: \"Redis!\" is not the name of an image",
		"warm:\n  files:\n    - compose.yml":                "f:3: warm.files: \"compose.yml\" is not a whole path",
		"warm:\n  platforms: [linux/amd64, amd64]":          "f:2: warm.platforms: \"amd64\" is not a platform like linux/amd64",
		"warm: {platforms: linux/a/b/c/d}":                  "is not a platform",
		"warm: {repositories: []}":                          "f:1: warm.repositories: unknown setting",
	} {
		_, err := decodeFile("f", []byte(text), Default().table())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	s := Default()
	if _, err := decodeFile("f", []byte("warm: {schedule: \" 30  3 * * * \", references: \"redis:7, org/app@sha256:"+strings.Repeat("0", 64)+"\", platforms: linux/arm/v7}"), s.table()); err != nil {
		t.Fatal(err)
	}
	if refs := s.Warm.References.References(); len(refs) != 2 || refs[0].String() != "docker.io/library/redis:7" {
		t.Error(refs)
	}
	if p := s.Warm.Platforms.Platforms(); len(p) != 1 || p[0].Variant != "v7" {
		t.Error(p)
	}
	if text := textOf(&s.Warm.Schedule); text != "30 3 * * *" {
		t.Error(text)
	}
}
