package dashboard

import (
	"fmt"
	"time"

	"github.com/hubcache/hubcache/admin"
)

// period is the last hour, day or month: in figures, as a chart and as a table.
type period struct {
	ID, Title            string
	Bytes, Requests      string // hit ratios
	Served, Hit, Fetched int64  // bytes
	Asked, Hits, Errors  int64  // requests
	Steps                int    // of the chart
	Bars                 []bar
	Peak                 int64 // bytes of the highest bar
	Step, Oldest         string
	Rows                 []admin.Point // of the table, the newest first; those with nothing are absent
	RowStep              string
	Format               string // of the time in a row
}

// bar is a step of a chart, whose height is 100.
type bar struct {
	X                 int
	Served, Fetched   float64 // heights
	ServedY, FetchedY float64 // the upper ends, from above
	FetchedBehind     bool    // more was fetched than served
	Title             string
}

// periods has for each series its title, how many steps make a row of the table, and how a row's
// time is written.
var periods = map[string]struct {
	title, oldest, format string
	row                   int
}{
	"hour":  {"Last hour", "an hour ago", "15:04", 5},
	"day":   {"Last day", "a day ago", "Jan 2, 15:04", 8},
	"month": {"Last month", "a month ago", "Jan 2", 4},
}

func periodOf(s admin.Series) period {
	words := periods[s.Name]
	step := time.Duration(s.StepSeconds) * time.Second
	p := period{ID: s.Name, Title: words.title, Steps: len(s.Points), Step: inWords(step), Oldest: words.oldest, RowStep: inWords(step * time.Duration(words.row)), Format: words.format}
	for _, pt := range s.Points {
		p.Served += pt.Served
		p.Hit += pt.Hit
		p.Fetched += pt.Fetched
		p.Asked += pt.Requests
		p.Hits += pt.Hits
		p.Errors += pt.Errors
		p.Peak = max(p.Peak, pt.Served, pt.Fetched)
		p.addRow(pt, step*time.Duration(words.row))
	}
	for n, pt := range s.Points {
		if pt.Served == 0 && pt.Fetched == 0 {
			continue
		}
		b := bar{X: n, Served: 100 * float64(pt.Served) / float64(p.Peak), Fetched: 100 * float64(pt.Fetched) / float64(p.Peak), FetchedBehind: pt.Fetched > pt.Served,
			Title: fmt.Sprintf("%s: %s served, %s fetched", when(pt.At, words.format), size(pt.Served), size(pt.Fetched))}
		b.ServedY, b.FetchedY = 100-b.Served, 100-b.Fetched
		p.Bars = append(p.Bars, b)
	}
	p.Bytes, p.Requests = percent(p.Hit, p.Served), percent(p.Hits, p.Asked)
	return p
}

// addRow adds a point to the row of the table that it belongs to.
func (p *period) addRow(pt admin.Point, step time.Duration) {
	if pt.Requests == 0 && pt.Errors == 0 && pt.Served == 0 && pt.Fetched == 0 {
		return
	}
	at, _ := time.Parse(time.RFC3339, pt.At)
	pt.At = at.Truncate(step).Format(time.RFC3339)
	if len(p.Rows) > 0 && p.Rows[0].At == pt.At {
		r := &p.Rows[0]
		r.Requests, r.Hits, r.Errors = r.Requests+pt.Requests, r.Hits+pt.Hits, r.Errors+pt.Errors
		r.Served, r.Hit, r.Fetched = r.Served+pt.Served, r.Hit+pt.Hit, r.Fetched+pt.Fetched
		return
	}
	p.Rows = append([]admin.Point{pt}, p.Rows...)
}

// Time is when a row begins.
func (p period) Time(at string) string { return when(at, p.Format) }

func when(at, format string) string {
	t, _ := time.Parse(time.RFC3339, at)
	return t.UTC().Format(format)
}
