package dashboard

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hubcache/hubcache/admin"
)

const (
	// pageSize is how many images are on a page: one of 100,000 could not be read anyway.
	pageSize = 50
	// inflightMost is how many downloads are listed.
	inflightMost = 30
	// textMost bounds what is looked for, in bytes; no reference is longer.
	textMost = 512
)

// view is what the template shows.
type view struct {
	Now       time.Time
	Stats     admin.Stats
	Up        string
	Periods   []period
	Never     bool // nothing was ever asked for
	Budget    budget
	Upstreams []upstreamView
	Inflight  []inflightView
	More      int // downloads that aren't listed
	Failures  []failureView
	Images    imagesView
	Verbs     admin.Verbs
	CanPin    bool
	CanPurge  bool
	CanWarm   bool
}

// Act reports whether the page may change the cache.
func (v view) Act() bool { return v.Verbs.Refused == "" && (v.CanPin || v.CanPurge || v.CanWarm) }

// budget is the budget in parts, whose widths are percentages of the whole.
type budget struct {
	Parts []part
	Used  int64
	Share string
	Label string // the bar in words
}

type part struct {
	Class, Name string
	Bytes       int64
	X, Width    float64
}

type upstreamView struct {
	admin.Upstream
	Words, Todo string
	Quota       *quotaView
}

type quotaView struct {
	Left, Limit int64
	Width       float64 // of what is left, as a percentage
	Low         bool
	Whole       string    // when it is whole again, in words
	Reset       time.Time // the same
	Old         bool      // that time has passed, and nobody has asked since
}

type inflightView struct {
	admin.Inflight
	Digest  string // short
	Percent string
	Width   float64
}

// Readers64 is for plural.
func (i inflightView) Readers64() int64 { return int64(i.Readers) }

type failureView struct {
	admin.Failed
	What, Todo string
}

// view makes what a part of the page shows.
func (d *Dashboard) view(req *http.Request, part string) view {
	now := time.Now()
	v := view{Now: now, Stats: d.o.Stats(), CanPin: d.o.Pinned != nil, CanPurge: d.o.Purge, CanWarm: d.o.Warm, Verbs: d.o.Verbs(req)}
	if part != "live" {
		v.Images = d.imagesView(req)
	}
	if part == "images" {
		return v
	}
	s := v.Stats
	v.Up = inWords(time.Duration(s.UptimeSeconds) * time.Second)
	v.Never = s.Totals.Bytes.Served == 0 && len(s.Inflight) == 0 && s.Store.Bytes == 0
	for _, series := range d.o.History().Series {
		v.Periods = append(v.Periods, periodOf(series))
	}
	v.Budget = budgetOf(s.Store)
	for _, u := range s.Upstreams {
		v.Upstreams = append(v.Upstreams, upstreamOf(u, now))
	}
	v.More = max(0, len(s.Inflight)-inflightMost)
	for _, f := range s.Inflight[:len(s.Inflight)-v.More] {
		_, hex, _ := strings.Cut(f.Digest, ":")
		i := inflightView{Inflight: f, Digest: hex[:min(12, len(hex))], Percent: percent(f.Received, f.Size)}
		if f.Size > 0 {
			i.Width = 100 * float64(min(f.Received, f.Size)) / float64(f.Size)
		}
		v.Inflight = append(v.Inflight, i)
	}
	for _, f := range s.Failures {
		words := reasons[f.Reason]
		v.Failures = append(v.Failures, failureView{f, words.What, words.Todo})
	}
	return v
}

func budgetOf(s admin.Store) budget {
	pinned := min(s.PinnedBytes, s.Bytes)
	b := budget{Used: s.Bytes + s.ReservedBytes, Share: percent(s.Bytes+s.ReservedBytes, s.BudgetBytes)}
	x := 0.0
	for _, p := range []part{
		{Class: "pinned", Name: "pinned", Bytes: pinned}, {Class: "cached", Name: "other images", Bytes: s.Bytes - pinned},
		{Class: "reserved", Name: "reserved for downloads", Bytes: s.ReservedBytes}, {Class: "free", Name: "free", Bytes: max(0, s.BudgetBytes-b.Used)},
	} {
		if s.BudgetBytes > 0 {
			p.X, p.Width = x, 100*float64(p.Bytes)/float64(max(s.BudgetBytes, b.Used))
		}
		x += p.Width
		b.Parts = append(b.Parts, p)
		b.Label += p.Name + " " + size(p.Bytes) + ", "
	}
	b.Label = strings.TrimSuffix(b.Label, ", ")
	return b
}

func upstreamOf(u admin.Upstream, now time.Time) upstreamView {
	v := upstreamView{Upstream: u}
	v.Words, v.Todo = upstreamWords(u)
	q := u.RateLimit
	if q == nil || q.Limit <= 0 {
		return v
	}
	v.Quota = &quotaView{Left: q.Remaining, Limit: q.Limit, Width: min(100, 100*float64(q.Remaining)/float64(q.Limit)), Low: q.Remaining*10 < q.Limit}
	v.Quota.Reset = q.Observed.Add(time.Duration(q.WindowSeconds) * time.Second)
	if left := v.Quota.Reset.Sub(now); left > 0 {
		v.Quota.Whole = upTo(left)
	} else {
		v.Quota.Old = true
	}
	return v
}

// imagesView is the list of images as it was asked for.
type imagesView struct {
	Text, Sort  string
	Page, Pages int
	Total, All  int
	First       int // number of the first image on the page, from 1
	Rows        []imageView
	Tiles       []tile
	Other       int64
	Orders      []order
	Waiting     bool // the list is being made for the first time
	Failed      bool // it can't be made; the log says why
}

type imageView struct {
	Reference, Name string
	Bytes, Shared   int64
	Width           float64 // of the bar, as a percentage
	Complete        bool
	Pinned          bool
	Pulls           int64
	LastUse         time.Time
}

func (d *Dashboard) imagesView(req *http.Request) imagesView {
	q := req.URL.Query()
	v := imagesView{Text: strings.TrimSpace(q.Get("q")), Sort: q.Get("sort"), Page: 1, Pages: 1, Orders: orders}
	v.Text = v.Text[:min(len(v.Text), textMost)]
	if n, err := strconv.Atoi(q.Get("page")); err == nil {
		v.Page = max(1, n)
	}
	list, err := d.images.get(q.Get("fresh") != "")
	if list == nil {
		v.Waiting, v.Failed = err == nil, err != nil
		return v
	}
	if list.orders[v.Sort] == nil {
		v.Sort = orders[0].Key
	}
	v.All, v.Other, v.Tiles = list.images.Len(), list.images.Other, list.tiles
	found, total := list.find(v.Text, v.Sort, v.Page)
	v.Total, v.Pages = total, max(1, (total+pageSize-1)/pageSize)
	if v.Page > v.Pages {
		v.Page = v.Pages
		found, _ = list.find(v.Text, v.Sort, v.Page)
	}
	v.First = (v.Page-1)*pageSize + 1
	pinned := d.pinned()
	for _, i := range found {
		ref := i.Reference()
		row := imageView{Reference: ref, Name: familiar(ref), Bytes: i.Size, Shared: i.Shared, Complete: i.Complete, Pinned: pinned[ref], Pulls: i.Pulls, LastUse: i.LastUse}
		if list.largest > 0 {
			row.Width = 100 * float64(i.Size) / float64(list.largest)
		}
		v.Rows = append(v.Rows, row)
	}
	return v
}

func (d *Dashboard) pinned() map[string]bool {
	if d.o.Pinned == nil {
		return nil
	}
	pinned, err := d.o.Pinned()
	if err != nil {
		d.o.Log.Error("the pins can't be listed", "error", err)
	}
	return pinned
}

// Last is the number of the last image on the page.
func (v imagesView) Last() int { return v.First + len(v.Rows) - 1 }

// Link is the address of the list in another order or on another page.
func (v imagesView) Link(sort string, page int) string {
	q := url.Values{}
	if v.Text != "" {
		q.Set("q", v.Text)
	}
	if sort != orders[0].Key {
		q.Set("sort", sort)
	}
	if page > 1 {
		q.Set("page", strconv.Itoa(page))
	}
	return "/?" + q.Encode() + "#images"
}

// Next and Previous are the numbers of the pages beside this one.
func (v imagesView) Next() int     { return v.Page + 1 }
func (v imagesView) Previous() int { return v.Page - 1 }

// column is the head of a column that the table can be sorted by.
type column struct {
	order
	Class, Direction, Link string
	Sorted                 bool
}

// Column returns the head of a column.
func (v imagesView) Column(key string) column {
	c := column{Link: v.Link(key, 1), Sorted: v.Sort == key, Direction: "descending"}
	for _, o := range orders {
		if o.Key == key {
			c.order = o
		}
	}
	switch key {
	case "name":
		c.Direction = "ascending"
	case "size", "pulls":
		c.Class = "num " + key
	default:
		c.Class = "last"
	}
	return c
}
