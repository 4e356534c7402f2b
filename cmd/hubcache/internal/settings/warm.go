package settings

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"

	"github.com/hubcache/hubcache/name"
)

// Schedule is when something is done, in the five words of cron and in local time. The zero value is
// never.
type Schedule struct {
	text string
	at   cron.Schedule // nil: never
}

// fiveWords reads minute, hour, day of the month, month and day of the week.
var fiveWords = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// UnmarshalText takes five words like "30 3 * * *", and nothing for never.
func (s *Schedule) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if text == "" {
		*s = Schedule{}
		return nil
	}
	at, err := cron.Schedule(nil), errors.New("a time zone can't be given, it is the machine's")
	if !strings.Contains(text, "=") {
		at, err = fiveWords.Parse(text)
	}
	if err != nil {
		return fmt.Errorf("%q is not a schedule of five words like \"30 3 * * *\" (minute, hour, day, month, day of the week): %w", text, err)
	}
	if at.Next(time.Now()).IsZero() {
		return fmt.Errorf("%q is a time that never comes", text)
	}
	*s = Schedule{strings.Join(strings.Fields(text), " "), at}
	return nil
}

// MarshalText returns the five words.
func (s Schedule) MarshalText() ([]byte, error) { return []byte(s.text), nil }

// String returns the five words; "" is never.
func (s Schedule) String() string { return s.text }

// Kind implements Value.
func (Schedule) Kind() string { return "schedule" }

// Next returns the first time after t, to the minute; the zero time is never.
//
// Where a change of daylight saving time leaves a time out, it doesn't come on that day. Where the
// change brings an hour twice, a time in it comes twice.
func (s Schedule) Next(t time.Time) time.Time {
	if s.at == nil {
		return time.Time{}
	}
	return s.at.Next(t)
}

// ReferenceList has names of images.
type ReferenceList List

// UnmarshalText splits at commas.
func (l *ReferenceList) UnmarshalText(b []byte) error {
	return unmarshalItems((*List)(l), b, checkReference)
}

// MarshalText joins with commas.
func (l ReferenceList) MarshalText() ([]byte, error) { return List(l).MarshalText() }

// Kind implements Value.
func (ReferenceList) Kind() string { return kindList }

func (l *ReferenceList) decode(d *decoder, n *yaml.Node, key string) {
	decodeItems(d, n, key, l, (*List)(l), checkReference)
}

func (l ReferenceList) document() any { return []string(l) }

func checkReference(text string) error {
	_, err := name.ParseReference(text)
	return err
}

// References returns the names.
func (l ReferenceList) References() (all []name.Reference) {
	for _, text := range l {
		if ref, err := name.ParseReference(text); err == nil { // it has been checked
			all = append(all, ref)
		}
	}
	return all
}

// PlatformList has platforms like linux/amd64.
type PlatformList List

// UnmarshalText splits at commas.
func (l *PlatformList) UnmarshalText(b []byte) error {
	return unmarshalItems((*List)(l), b, checkPlatform)
}

// MarshalText joins with commas.
func (l PlatformList) MarshalText() ([]byte, error) { return List(l).MarshalText() }

// Kind implements Value.
func (PlatformList) Kind() string { return kindList }

func (l *PlatformList) decode(d *decoder, n *yaml.Node, key string) {
	decodeItems(d, n, key, l, (*List)(l), checkPlatform)
}

func (l PlatformList) document() any { return []string(l) }

func checkPlatform(text string) error {
	if _, err := platforms.Parse(text); err != nil || !strings.Contains(text, "/") {
		return fmt.Errorf("%q is not a platform like linux/amd64 or linux/arm/v7", text)
	}
	return nil
}

// Platforms returns the platforms.
func (l PlatformList) Platforms() (all []v1.Platform) {
	for _, text := range l {
		if p, err := platforms.Parse(text); err == nil { // it has been checked
			all = append(all, p)
		}
	}
	return all
}

// PathList has whole paths of files.
type PathList List

// UnmarshalText splits at commas.
func (l *PathList) UnmarshalText(b []byte) error { return unmarshalItems((*List)(l), b, checkPath) }

// MarshalText joins with commas.
func (l PathList) MarshalText() ([]byte, error) { return List(l).MarshalText() }

// Kind implements Value.
func (PathList) Kind() string { return kindList }

func (l *PathList) decode(d *decoder, n *yaml.Node, key string) {
	decodeItems(d, n, key, l, (*List)(l), checkPath)
}

func (l PathList) document() any { return []string(l) }

func checkPath(text string) error {
	if !filepath.IsAbs(text) {
		return fmt.Errorf("%q is not a whole path: the server has a folder of its own", text)
	}
	return nil
}

// unmarshalItems is List.UnmarshalText, with a check of each item.
func unmarshalItems(l *List, b []byte, check func(string) error) error {
	if err := l.UnmarshalText(b); err != nil {
		return err
	}
	for _, item := range *l {
		if err := check(item); err != nil {
			return err
		}
	}
	return nil
}

// decodeItems is List.decode, with a check of each item; v is the list as a Value.
func decodeItems(d *decoder, n *yaml.Node, key string, v Value, l *List, check func(string) error) {
	if n.Kind != yaml.SequenceNode {
		d.scalar(n, key, v)
		return
	}
	l.decode(d, n, key)
	for _, item := range n.Content {
		if item = resolved(item); item.Kind == yaml.ScalarNode && item.Value != "" {
			if err := check(item.Value); err != nil {
				d.fault(item, key, "%w", err)
			}
		}
	}
}
