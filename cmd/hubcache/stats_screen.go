package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/hubcache/hubcache/admin"
)

// screen is what "hubcache stats --watch" shows of one moment.
type screen struct {
	addr   string      // of the server
	now    admin.Stats // the last that the server said
	at     time.Time   // when it did
	before admin.Stats // the one before, for what happens in a second
	since  time.Duration
	waits  string // why the server doesn't answer now; "": it does
	every  time.Duration
}

// add takes the next figures of the server.
func (s *screen) add(next admin.Stats, at time.Time) {
	s.before, s.since = s.now, at.Sub(s.at)
	if next.UptimeSeconds < s.before.UptimeSeconds || s.at.IsZero() { // it was started again
		s.since = 0
	}
	s.now, s.at, s.waits = next, at, ""
}

// line is one line of the screen.
type line struct {
	text  string
	style string // the parameters of SGR, like "1" for bold; "": none
}

// The styles: colours of the terminal's own palette, so that they are readable on light and dark.
const (
	bold   = "1"
	faint  = "2"
	red    = "31;1"
	yellow = "33"
)

// label is the width of the first column.
const label = 10

// lines are the lines of the screen, the first height of them, each at most width columns wide.
func (s *screen) lines(width, height int, now time.Time) []line {
	top := []line{{fmt.Sprintf("hubcache %s, up %s, at %s", s.now.Version, inWords(time.Duration(s.now.UptimeSeconds)*time.Second), s.addr), bold}}
	if s.waits != "" {
		top = append(top, line{"waiting for the server… " + s.waits, red})
	}
	top = append(top, s.trouble(now)...)
	top = append(top, line{})
	top = append(top, s.bars(width, now)...)
	top = append(top, line{})
	top = append(top, s.rates(width)...)
	bottom := []line{{}, {fmt.Sprintf("q ends this; new figures every %s", s.every), faint}}
	room := height - len(top) - len(bottom)
	failures := s.failures(now, min(7, room/2))
	top = append(top, s.inflight(width, room-len(failures))...)
	top = append(top, failures...)
	for len(top) < height-len(bottom) {
		top = append(top, line{})
	}
	all := append(top[:max(0, min(len(top), height-len(bottom)))], bottom...)
	all = all[max(0, len(all)-height):]
	for i := range all {
		all[i].text = cut(printable(all[i].text), width)
	}
	return all
}

// trouble is what a person should do something about.
func (s *screen) trouble(now time.Time) (all []line) {
	for _, short := range s.now.Store.Shortages {
		all = append(all, line{"TOO SMALL " + tooSmall(short), yellow})
	}
	for _, u := range s.now.Upstreams {
		if u.State != "ok" {
			all = append(all, line{u.Registry + ": " + upstreamState(u, now), red})
		}
		if f := u.Failure; f != nil {
			what := f.Kind
			if f.Status != 0 {
				what = fmt.Sprintf("%s, status %d", what, f.Status)
			}
			all = append(all, line{fmt.Sprintf("%s: %s failed %s ago (%s)", u.Registry, f.Host, inWords(now.Sub(f.At)), what), yellow})
		}
	}
	if n := s.now.Store.WriteErrors; n > 0 {
		all = append(all, line{"the disk of the cache failed: " + plural(n, "error"), red})
	}
	if n := s.now.Store.Corrupt; n > 0 {
		all = append(all, line{plural(n, "blob") + " had changed on the disk", red})
	}
	return all
}

// bars show hits, room and quota.
func (s *screen) bars(width int, now time.Time) (all []line) {
	cells := max(8, min(30, width/4))
	bar := func(name string, n, of int64, text string) {
		all = append(all, line{fmt.Sprintf("%-*s%s %s", label, name, meter(n, of, cells), text), ""})
	}
	b := s.now.Requests.Blob
	hits := "nothing was asked for yet"
	if s.now.Bytes.Served > 0 {
		hits = ratio(s.now.Bytes.Hit, s.now.Bytes.Served) + " of the bytes, " + ratio(b.Hits(), b.Answered()) + " of " + plural(b.Answered(), "blob")
	}
	bar("hits", s.now.Bytes.Hit, s.now.Bytes.Served, hits)
	st := s.now.Store
	used := st.Bytes + st.ReservedBytes
	room := human(used) + " of " + human(st.BudgetBytes)
	if st.PinnedBytes > 0 {
		room += ", " + human(st.PinnedBytes) + " pinned"
	}
	bar("budget", used, st.BudgetBytes, room)
	if st.DiskBytes > 0 {
		bar("disk", st.DiskBytes-st.DiskFreeBytes, st.DiskBytes, human(st.DiskFreeBytes)+" of "+human(st.DiskBytes)+" free")
	}
	for _, u := range s.now.Upstreams {
		name := "quota"
		if len(s.now.Upstreams) > 1 {
			name = cut(u.Registry, label-1)
		}
		if q := u.RateLimit; q != nil {
			bar(name, q.Remaining, q.Limit, quota(q, now))
		} else if hasQuota(u) {
			all = append(all, line{fmt.Sprintf("%-*s%s", label, name, quota(nil, now)), ""})
		}
	}
	return all
}

// rates is a table of what happens now, and what has since the start.
func (s *screen) rates(width int) []line {
	gap := 16
	if width < 60 {
		gap = 12
	}
	row := func(name, now, all string) line {
		return line{fmt.Sprintf("%-*s%-*s%s", label, name, gap, now, all), ""}
	}
	bytes := func(now, before int64) string {
		if s.since <= 0 || now < before {
			return "-"
		}
		return human(int64(float64(now-before)/s.since.Seconds())) + "/s"
	}
	count := func(now, before int64) string {
		if s.since <= 0 || now < before {
			return "-"
		}
		return fmt.Sprintf("%.1f/s", float64(now-before)/s.since.Seconds())
	}
	n, b := s.now, s.before
	requests := func(a admin.Stats) int64 { return a.Requests.Manifest.Total() + a.Requests.Blob.Total() }
	errors := func(a admin.Stats) int64 { return a.Requests.Manifest.Error + a.Requests.Blob.Error }
	head := row("", "now", "since the start")
	head.style = faint
	evicted := fmt.Sprintf("%s, %d", human(n.Store.EvictedBytes), n.Store.Evictions)
	if n.Store.OldestUse != nil {
		evicted += "; next: used " + inWords(s.at.Sub(*n.Store.OldestUse)) + " ago"
	}
	return []line{
		head,
		row("served", bytes(n.Bytes.Served, b.Bytes.Served), human(n.Bytes.Served)),
		row("fetched", bytes(n.Bytes.Fetched, b.Bytes.Fetched), human(n.Bytes.Fetched)),
		row("requests", count(requests(n), requests(b)), fmt.Sprint(requests(n))),
		row("errors", count(errors(n), errors(b)), fmt.Sprint(errors(n))+causes(n.Requests.Manifest.Errors, n.Requests.Blob.Errors)),
		row("stale", count(n.Requests.Manifest.Stale, b.Requests.Manifest.Stale), fmt.Sprint(n.Requests.Manifest.Stale)),
		row("evicted", bytes(n.Store.EvictedBytes, b.Store.EvictedBytes), evicted),
	}
}

// inflight shows the downloads, in at most room lines.
func (s *screen) inflight(width, room int) []line {
	all := s.now.Inflight
	if room < 3 {
		return nil
	}
	if len(all) == 0 {
		return []line{{}, {"nothing is being fetched", faint}}
	}
	lines := []line{{}, {"being fetched: " + plural(int64(len(all)), "blob"), bold}}
	was := map[string]int64{}
	for _, f := range s.before.Inflight {
		was[f.Digest] = f.Received
	}
	cells, tail := 10, 38
	name := min(max(12, width-cells-tail-2), 40)
	for i, f := range all {
		if len(lines) == room-1 && i < len(all)-1 {
			return append(lines, line{fmt.Sprintf("… and %d more", len(all)-i), faint})
		}
		progress := human(f.Received)
		if f.Size > 0 {
			progress = fmt.Sprintf("%3d%% of %s", 100*max(0, f.Received)/f.Size, human(f.Size))
		}
		if before, ok := was[f.Digest]; ok && s.since > 0 && f.Received >= before {
			progress += ", " + human(int64(float64(f.Received-before)/s.since.Seconds())) + "/s"
		}
		if f.Readers != 1 {
			progress += ", " + plural(int64(f.Readers), "reader")
		}
		shown := tailOf(strings.TrimPrefix(printable(f.Repository), "docker.io/"), name)
		if width >= 100 {
			shown = fmt.Sprintf("%-*s %s", name, shown, printable(shortDigest(f.Digest)))
		}
		lines = append(lines, line{fmt.Sprintf("%-*s %s %s", name, shown, meter(f.Received, f.Size, cells), progress), ""})
	}
	return lines
}

// failures shows what clients have not got lately, in at most room lines.
func (s *screen) failures(now time.Time, room int) []line {
	all := s.now.Failures
	if len(all) == 0 || room < 3 {
		return nil
	}
	lines := []line{{}, {"failed lately:", bold}}
	for i, f := range all {
		if len(lines) == room-1 && i < len(all)-1 {
			return append(lines, line{fmt.Sprintf("… and %d more", len(all)-i), faint})
		}
		text := strings.TrimPrefix(f.Reference, "docker.io/")
		if f.Count > 1 {
			text += fmt.Sprintf(" (%d times)", f.Count)
		}
		l := line{text + ", " + inWords(now.Sub(f.Last)) + " ago: " + f.Detail, ""}
		if f.Cause == "upstream" || f.Cause == "disk" {
			l.style = yellow
		}
		lines = append(lines, l)
	}
	return lines
}

// meter draws how much n of of is.
func meter(n, of int64, cells int) string {
	full := 0
	if of > 0 && n > 0 {
		full = int(min(float64(n)/float64(of), 1) * float64(cells))
	}
	return strings.Repeat("█", full) + strings.Repeat("░", cells-full)
}

// printable is s without what could control a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// cut is s in at most width columns.
func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:max(0, width-1)]) + "…"
	}
	return s
}

// tailOf is the end of s, in at most width columns: the end of a repository's name says most.
func tailOf(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return "…" + string(r[len(r)-width+1:])
	}
	return s
}

// draw is what a terminal needs to show the lines in place of those before.
func draw(lines []line, colour bool) string {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if l.style != "" && colour {
			b.WriteString("\x1b[" + l.style + "m" + l.text + "\x1b[0m")
		} else {
			b.WriteString(l.text)
		}
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// colourful reports whether colours are wanted on a terminal.
func colourful() bool { return cmp.Or(os.Getenv("NO_COLOR"), "") == "" }
