package main

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// This program writes the part of performance.md between these lines.
const (
	begin = "<!-- begin: written by make bench -->"
	end   = "<!-- end -->"
)

// publish writes tables and charts into the document.
func (b *bench) publish(took time.Duration) error {
	path := filepath.Join(b.docs, "performance.md")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s lacks the lines %q and %q", path, begin, end)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s%s\n\n`make bench`, %s, %s in %s, on %s.\n\n", before, begin,
		time.Now().Format("January 2006"), rounds(b.runs), took, machine())
	for _, c := range charts {
		file := "performance-" + c.name + ".svg"
		if err := os.WriteFile(filepath.Join(b.docs, file), b.results.chart(c), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&out, "![%s](%s)\n", c.title, file)
	}
	fmt.Fprintln(&out)
	b.results.table(&out, names(b.peers))
	fmt.Fprintf(&out, "\n%s%s", end, after)
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// chart is a bar chart of one unit of one scenario.
type chart struct{ name, title, scenario, unit string }

var charts = []chart{
	{"cold", "Cold pull of 8 × 64 MiB, CDN at 20 MB/s a connection: seconds (less is better)", "cold", "s"},
	{"stampede", "20 clients pull the same cold image: seconds (less is better)", "stampede", "s"},
	{"small", "200 small images, 4 clients, cold: seconds (less is better)", "small", "s"},
	{"tag", "Manifests by fresh tag: requests a second (more is better)", "tag", "req/s"},
	{"warm", "Warm 1 GiB blob: CPU seconds a GiB (less is better)", "warm-one", "s/GiB"},
	{"memory", "64 clients, warm: peak memory in MiB (less is better)", "warm-many", "RSS MiB"},
}

// chart draws horizontal bars with the spread of the runs.
func (r results) chart(c chart) []byte {
	const (
		left, width, row = 110, 420, 26
		right            = 90
	)
	var servers []string
	most := 0.0
	for _, s := range []string{direct, hubcache, nginxStatic, nginx, r3, r2} {
		for _, v := range r[key{c.scenario, s, c.unit}] {
			most = max(most, v)
		}
		if len(r[key{c.scenario, s, c.unit}]) > 0 {
			servers = append(servers, s)
		}
	}
	height := 34 + row*len(servers)
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		left+width+right, height)
	fmt.Fprintf(&out, `<rect width="100%%" height="100%%" fill="#fff"/><text x="8" y="20" font-size="13">%s</text>`+"\n", html.EscapeString(c.title))
	for i, s := range servers {
		all := r[key{c.scenario, s, c.unit}]
		at := func(v float64) float64 { return v / most * width }
		y, fill := 34+row*i, "#b8c4d0"
		if s == hubcache {
			fill = "#1d63ed"
		}
		fmt.Fprintf(&out, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+14, s)
		fmt.Fprintf(&out, `<rect x="%d" y="%d" width="%.1f" height="18" fill="%s"/>`, left, y, at(median(all)), fill)
		lo, hi := spread(all)
		fmt.Fprintf(&out, `<path d="M%.1f %d H%.1f" stroke="#333"/>`, left+at(lo), y+9, left+at(hi))
		fmt.Fprintf(&out, `<text x="%.1f" y="%d">%s</text>`+"\n", left+at(hi)+6, y+14, number(median(all)))
	}
	fmt.Fprintln(&out, "</svg>")
	return out.Bytes()
}

func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprint(n, " rounds")
}
