package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// values are what one run of a scenario measured, by unit.
type values map[string]float64

func (v values) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(v)) {
		fmt.Fprintf(&b, "%s %s  ", number(v[k]), k)
	}
	return b.String()
}

type key struct{ scenario, server, unit string }

// results are all runs' values, in order.
type results map[key][]float64

func (r results) add(scenario, server, unit string, v float64) {
	k := key{scenario, server, unit}
	r[k] = append(r[k], v)
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

func spread(all []float64) (lo, hi float64) { return slices.Min(all), slices.Max(all) }

// ratio compares two series. Where they were measured in turn it compares them run by run,
// so that what slows the machine for a while slows both.
func ratio(a, b []float64) float64 {
	if len(a) != len(b) {
		return median(a) / median(b)
	}
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return median(all)
}

// number formats v with three significant digits, or all digits from 1000 up.
func number(v float64) string {
	switch {
	case v >= 1000:
		s := fmt.Sprintf("%.0f", v)
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// cell is a median with its spread.
func (r results) cell(k key) string {
	all := r[k]
	if len(all) == 0 {
		return "–"
	}
	s := number(median(all))
	if lo, hi := spread(all); number(lo) != number(hi) {
		s += " (" + number(lo) + "–" + number(hi) + ")"
	}
	return s
}

// goal is a row of the table of goals: one figure of hubcache, alone or relative to a base.
type goal struct {
	what           string
	scenario, unit string
	base           string // server to divide by; "": the figure itself
	baseScenario   string // of the base; "": the same
	limit          float64
	atLeast        bool
}

var goals = []goal{
	{what: "warm, one client, 1 GiB: MiB/s against nginx static", scenario: "warm-one", unit: "MiB/s", base: nginxStatic, limit: 0.95, atLeast: true},
	{what: "the same: server CPU s/GiB against nginx static", scenario: "warm-one", unit: "s/GiB", base: nginxStatic, limit: 1.1},
	{what: "the same, client that discards in the kernel", scenario: "warm-one", unit: "raw s/GiB", base: nginxStatic, limit: 1.1},
	{what: "warm, 64 clients × 8×64 MiB: peak RSS, MiB", scenario: "warm-many", unit: "RSS MiB", limit: 64},
	{what: "manifests by digest: req/s against nginx proxy_cache", scenario: "digest", unit: "req/s", base: nginx, limit: 0.9, atLeast: true},
	{what: "manifests by fresh tag: the same", scenario: "tag", unit: "req/s", base: nginx, limit: 0.9, atLeast: true},
	{what: "upstream requests per warm tag pull inside the TTL", scenario: "warm-tag", unit: "upstream requests", limit: 0},
	{what: "cold, 8 layers, CDN 20 MB/s a connection, 30 ms: wall against direct", scenario: "cold", unit: "s", base: direct, limit: 0.3},
	{what: "cold, 1 GiB, CDN unlimited: wall against nginx proxy_cache", scenario: "cold-fast", unit: "s", base: nginx, limit: 1},
	{what: "20 clients cold, same image: upstream bytes / image bytes", scenario: "stampede", unit: "bytes/image", limit: 1},
	{what: "the same: wall against one direct pull", scenario: "stampede", unit: "s", base: direct, baseScenario: "cold", limit: 0.5},
	{what: "the same: first byte of a layer, p50 ms", scenario: "stampede", unit: "first byte p50 ms", limit: 100},
	{what: "last MiB of a cold layer first, CDN 8 MiB/s a connection: wall against direct", scenario: "tail-first", unit: "s", base: direct, limit: 1.5},
	{what: "lazy mount of a cold layer: footer, index, 8 pieces: the same", scenario: "lazy-mount", unit: "s", base: direct, limit: 1.5},
	{what: "four ranges of a cold layer in one request: the same", scenario: "multi-range", unit: "s", base: direct, limit: 1.5},
	{what: "a cold layer by 8 parallel ranges, CDN 20 MB/s a connection: the same", scenario: "parallel-ranges", unit: "s", base: direct, limit: 1.5},
	{what: "first client leaves at half: bytes fetched by the end of a second pull / blob", scenario: "leave", unit: "bytes/blob", limit: 1},
	{what: "200 small images on 5 bases, 4 clients, cold: wall against direct", scenario: "small", unit: "s", base: direct, limit: 0.6},
	{what: "the same: upstream blob bytes / unique bytes", scenario: "small", unit: "bytes/unique", limit: 1},
	{what: "the same: manifest GETs / needed", scenario: "small", unit: "manifests/needed", limit: 1},
}

// value is the goal's figure for a server; ok is false when it was not measured.
func (r results) value(g goal, server string) (v float64, ok bool) {
	mine := r[key{g.scenario, server, g.unit}]
	if len(mine) == 0 {
		return 0, false
	}
	if g.base == "" {
		return median(mine), true
	}
	scenario := g.scenario
	if g.baseScenario != "" {
		scenario = g.baseScenario
	}
	base := r[key{scenario, g.base, g.unit}]
	if len(base) == 0 {
		return 0, false
	}
	return ratio(mine, base), true
}

// reached reports whether the figure meets the goal, as it is shown.
func (g goal) reached(v float64) bool {
	const rounding = 0.005 // the table shows two decimals
	if g.atLeast {
		return v >= g.limit-rounding
	}
	return v <= g.limit+rounding
}

// table writes the goals with each server's figure, and then all figures.
func (r results) table(w io.Writer, servers []string) {
	fmt.Fprintf(w, "| | goal | %s |\n|---|---|%s\n", strings.Join(servers, " | "), strings.Repeat("---|", len(servers)))
	for _, g := range goals {
		sign := "≤"
		if g.atLeast {
			sign = "≥"
		}
		fmt.Fprintf(w, "| %s | %s %s |", g.what, sign, strings.TrimSuffix(number(g.limit), ".00"))
		for _, s := range servers {
			v, ok := r.value(g, s)
			switch {
			case !ok:
				fmt.Fprint(w, " – |")
			case s != hubcache:
				fmt.Fprintf(w, " %s |", number(v))
			case g.reached(v):
				fmt.Fprintf(w, " **%s** |", number(v))
			default:
				fmt.Fprintf(w, " **%s**, missed |", number(v))
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\nAll figures: the median, and in brackets the smallest and the largest run.\n\n")
	columns := append([]string{direct}, servers...)
	fmt.Fprintf(w, "| scenario | unit | %s |\n|---|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	var rows []string
	seen := map[[2]string]bool{}
	for k := range r {
		if id := [2]string{k.scenario, k.unit}; !seen[id] {
			seen[id] = true
			rows = append(rows, fmt.Sprintf("%02d\x00%s\x00%s", order(k.scenario), k.scenario, k.unit))
		}
	}
	slices.Sort(rows)
	for _, row := range rows {
		id := strings.Split(row, "\x00")
		fmt.Fprintf(w, "| %s | %s |", id[1], id[2])
		for _, c := range columns {
			fmt.Fprintf(w, " %s |", r.cell(key{id[1], c, id[2]}))
		}
		fmt.Fprintln(w)
	}
}

// order is a scenario's position among the goals; scenarios without a goal come last.
func order(scenario string) int {
	i := slices.IndexFunc(goals, func(g goal) bool { return g.scenario == scenario })
	if i < 0 {
		return 99
	}
	return i
}
