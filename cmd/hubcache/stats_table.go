package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

// printStats prints the table, with bytes rounded to powers of 1024.
func printStats(out io.Writer, s admin.Stats, now time.Time, terminal bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("hubcache", "%s, up %s", s.Version, inWords(time.Duration(s.UptimeSeconds)*time.Second))

	m, b := s.Requests.Manifest, s.Requests.Blob
	manifests, blobs := m.Answered(), b.Answered()
	var ratios []string
	if blobs > 0 {
		ratios = append(ratios, ratio(b.Hits(), blobs)+" of "+plural(blobs, "blob"))
	}
	if manifests > 0 {
		ratios = append(ratios, ratio(m.Hits(), manifests)+" of "+plural(manifests, "manifest"))
	}
	if s.Bytes.Served > 0 {
		ratios = append(ratios, ratio(s.Bytes.Hit, s.Bytes.Served)+" of the bytes")
	}
	row("hit ratio", "%s", cmp.Or(strings.Join(ratios, ", "), "nothing was asked for yet"))
	row("bytes saved", "%s: %s served, %s fetched", human(max(0, s.Bytes.Served-s.Bytes.Fetched)), human(s.Bytes.Served), human(s.Bytes.Fetched))
	if t := s.Totals; t.Since.Before(now.Add(-time.Duration(s.UptimeSeconds)*time.Second-time.Minute)) && t.Bytes.Served > 0 {
		row("in total", "%s served, %s from the cache, since %s", human(t.Bytes.Served), ratio(t.Bytes.Hit, t.Bytes.Served), t.Since.Format(time.DateOnly))
	}
	if m.Stale > 0 {
		row("stale", "%s while the upstream could not be asked", plural(m.Stale, "answer"))
	}
	if n := m.Error + b.Error; n > 0 {
		row("errors", "%d%s", n, causes(m.Errors, b.Errors))
	}
	st := s.Store
	used := st.Bytes + st.ReservedBytes
	row("budget", "%s%s of %s used (%s)", bar(used, st.BudgetBytes, terminal), human(used), human(st.BudgetBytes), ratio(used, st.BudgetBytes))
	for _, short := range st.Shortages {
		row("TOO SMALL", "%s", tooSmall(short))
	}
	if st.DiskBytes > 0 {
		row("disk", "%s of %s free", human(st.DiskFreeBytes), human(st.DiskBytes))
	}
	if st.Pins > 0 {
		row("pinned", "%s, %s", plural(st.Pins, "image"), human(st.PinnedBytes))
	}
	row("kept", "%s, %s, %s", plural(st.Blobs, "blob"), plural(st.Manifests, "manifest"), plural(st.Tags, "tag"))
	evicted := fmt.Sprintf("%d, %s", st.Evictions, human(st.EvictedBytes))
	if st.OldestUse != nil {
		evicted += "; the next to go was last used " + inWords(now.Sub(*st.OldestUse)) + " ago"
	}
	row("evicted", "%s", evicted)
	for _, u := range s.Upstreams {
		row(u.Registry, "%s, %s", upstreamState(u, now), plural(u.Requests, "request"))
		if hasQuota(u) {
			row("quota", "%s", quota(u.RateLimit, now))
		}
	}
	if s.Warm.Schedule != "" {
		row("kept warm", "%s", keptWarm(s.Warm, now))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printInflight(out, s.Inflight, terminal)
}

// hasQuota reports whether a registry says, or may say, how many pulls are left: Docker Hub does.
func hasQuota(u admin.Upstream) bool { return u.RateLimit != nil || u.Registry == settings.Hub }

// keptWarm says what the last run of the warm schedule did, and when the next one is.
func keptWarm(s admin.WarmStats, now time.Time) string {
	var parts []string
	if r := s.Last; r != nil {
		parts = append(parts, fmt.Sprintf("%s %s ago, %s fetched", plural(int64(r.Images), "image"), inWords(now.Sub(r.Began)), human(r.Fetched)))
		if r.Failed > 0 {
			first := r.Failures[0]
			parts = append(parts, fmt.Sprintf("%d FAILED (%s: %s)", r.Failed, name.Familiar(first.What), first.Error))
		}
	}
	switch {
	case s.Running:
		parts = append(parts, "running now")
	case s.Next != nil:
		parts = append(parts, "next in "+inWords(s.Next.Sub(now)))
	default:
		parts = append(parts, "never: warm.references and warm.files name no image")
	}
	return strings.Join(parts, "; ")
}

// tooSmall says what would do, shortly; the log has more.
func tooSmall(s admin.Shortage) string {
	switch s.Kind {
	case "image":
		return "for an image: a budget of " + human(s.NeedsBytes) + " would do"
	case "pins":
		return "for the pinned images: a budget of " + human(s.NeedsBytes) + " would do"
	case "disk":
		return "the disk, for what is in use: " + human(s.NeedsBytes) + " of cache would do"
	}
	return "for what is in use: a budget of " + human(s.NeedsBytes) + " would do"
}

// causes says whose fault the errors are: " (2 client, 1 disk)".
func causes(m, b admin.Errors) string {
	var parts []string
	for _, c := range []struct {
		n    int64
		name string
	}{{m.Client + b.Client, "client"}, {m.Policy + b.Policy, "policy"}, {m.Upstream + b.Upstream, "upstream"}, {m.Disk + b.Disk, "disk"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.name))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// nameColumns is how much of a repository's name fits, so that a row of a download has at
// most 80 columns on a terminal.
const nameColumns = 34

// printInflight prints the downloads that are under way.
func printInflight(out io.Writer, blobs []admin.Inflight, terminal bool) error {
	if len(blobs) == 0 {
		_, err := fmt.Fprintln(out, "\nnothing is being fetched")
		return err
	}
	fmt.Fprintf(out, "\nbeing fetched:\n")
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, f := range blobs {
		name := strings.TrimPrefix(f.Repository, "docker.io/")
		if r := []rune(name); terminal && len(r) > nameColumns {
			name = "…" + string(r[len(r)-nameColumns+1:])
		}
		progress := human(f.Received)
		if f.Size > 0 {
			progress = fmt.Sprintf("%d%% of %s", 100*f.Received/f.Size, human(f.Size))
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", name, shortDigest(f.Digest), progress, plural(int64(f.Readers), "reader"))
	}
	return w.Flush()
}

// upstreamState says how the upstream is doing, and how it is asked.
func upstreamState(u admin.Upstream, now time.Time) string {
	as := ", anonymous"
	if u.Authenticated {
		as = ", with access token"
	}
	switch u.State {
	case "cooling":
		if u.NextAttempt != nil { // an older server doesn't say
			as += ", asked again in " + inWords(u.NextAttempt.Sub(now))
		}
		return "COOLING DOWN after a 429" + as
	case "denied":
		if dockerhost.TokenFault(u.Credential.State) {
			return "ACCESS TOKEN " + strings.ToUpper(u.Credential.State)
		}
		return "ACCESS TOKEN REFUSED" // by an older server
	case "down":
		return "DOWN" + as
	}
	return u.State + as
}

// quota says how many pulls are left, and when at the latest the window ends in which they
// were counted.
func quota(q *admin.RateLimit, now time.Time) string {
	if q == nil {
		return "unlimited, or nothing asked yet"
	}
	s := fmt.Sprintf("%d of %d pulls left", q.Remaining, q.Limit)
	if q.WindowSeconds > 0 {
		if left := q.Observed.Add(time.Duration(q.WindowSeconds) * time.Second).Sub(now); left > 0 {
			s += ", whole again within " + upToMinutes(left)
		} else {
			s += ", but that was " + inWords(now.Sub(q.Observed)) + " ago"
		}
	}
	return s
}

// upToMinutes rounds up, so that it never promises too much: 4h59m1s is 5h0m.
func upToMinutes(d time.Duration) string {
	return strings.TrimSuffix((d + time.Minute - 1).Truncate(time.Minute).String(), "0s")
}

// inWords is roughly how long d is.
func inWords(d time.Duration) string { return strings.ToLower(units.HumanDuration(max(0, d))) }

// human is a number of bytes as people read it.
func human(n int64) string { return units.BytesSize(float64(n)) }

// ratio is n of of as a percentage.
func ratio(n, of int64) string {
	if of <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(of))
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// shortDigest is as much of a digest as docker shows.
func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

// bar draws how full something is; "" if that isn't on a terminal.
func bar(n, of int64, terminal bool) string {
	const cells = 20
	if !terminal || of <= 0 {
		return ""
	}
	full := int(max(0, min(n*cells/of, cells)))
	return "[" + strings.Repeat("█", full) + strings.Repeat("░", cells-full) + "] "
}
