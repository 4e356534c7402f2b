package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func newStatsCommand() *cobra.Command {
	var (
		addr   string
		asJSON bool
		watch  settings.Duration
	)
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Show hits, bytes saved, room, quota and downloads of the cache",
		Example: "  hubcache stats --watch=5s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := adminclient.New(cmp.Or(addr, os.Getenv("HUBCACHE_ADMIN"), settings.Default().Admin.Listen[0]))
			if err != nil {
				return err
			}
			show := func(ctx context.Context, w io.Writer) error {
				s, raw, err := c.Stats(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					_, err := w.Write(raw)
					return err
				}
				return printStats(w, s, time.Now(), drawable(cmd.OutOrStdout()))
			}
			if watch <= 0 {
				return show(cmd.Context(), cmd.OutOrStdout())
			}
			return watchStats(cmd, time.Duration(watch), asJSON, show)
		},
	}
	cmd.Flags().StringVar(&addr, "admin", "", "admin address of the server: host:port or unix:/path (default $HUBCACHE_ADMIN, else 127.0.0.1:5001)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the document of GET /api/v1/stats")
	cmd.Flags().Var(settings.Flag(&watch), "watch", "show again every so often, until Ctrl-C")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	return cmd
}

// drawable reports whether w is a terminal with a cursor. There are no colours, so that
// NO_COLOR has nothing to turn off.
func drawable(w io.Writer) bool {
	return server.IsTerminal(w) && os.Getenv("TERM") != "dumb"
}

// watchStats repeats show until Ctrl-C, which is no error. On a terminal each replaces the
// one before.
func watchStats(cmd *cobra.Command, every time.Duration, asJSON bool, show func(context.Context, io.Writer) error) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var page bytes.Buffer
		err := show(ctx, &page)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !asJSON && drawable(out) {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
		out.Write(page.Bytes())
		if !asJSON && !drawable(out) {
			fmt.Fprintln(out)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if drawable(out) {
				fmt.Fprintln(out) // after the ^C
			}
			return nil
		}
	}
}

// printStats is the table. Numbers are for people: powers of 1024, rounded.
func printStats(out io.Writer, s admin.Stats, now time.Time, terminal bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("hubcache", "%s, up %s", s.Version, inWords(time.Duration(s.UptimeSeconds)*time.Second))

	m, b := s.Requests.Manifest, s.Requests.Blob
	manifests, blobs := m.Total(), b.Total()
	var ratios []string
	if blobs > 0 {
		ratios = append(ratios, ratio(b.Hit+b.Shared, blobs)+" of "+plural(blobs, "blob"))
	}
	if manifests > 0 {
		ratios = append(ratios, ratio(m.Hit+m.Revalidated+m.Shared+m.Stale, manifests)+" of "+plural(manifests, "manifest"))
	}
	row("hit ratio", "%s", cmp.Or(strings.Join(ratios, ", "), "nothing was asked for yet"))
	row("bytes saved", "%s: %s served, %s fetched", human(max(0, s.Bytes.Served-s.Bytes.Fetched)), human(s.Bytes.Served), human(s.Bytes.Fetched))
	if m.Stale > 0 {
		row("stale", "%s while the upstream could not be asked", plural(m.Stale, "answer"))
	}
	if n := m.Error + b.Error; n > 0 {
		row("errors", "%d", n)
	}
	st := s.Store
	used := st.Bytes + st.ReservedBytes
	row("budget", "%s%s of %s used (%s)", bar(used, st.BudgetBytes, terminal), human(used), human(st.BudgetBytes), ratio(used, st.BudgetBytes))
	row("kept", "%s, %s, %s", plural(st.Blobs, "blob"), plural(st.Manifests, "manifest"), plural(st.Tags, "tag"))
	evicted := fmt.Sprintf("%d, %s", st.Evictions, human(st.EvictedBytes))
	if st.OldestUse != nil {
		evicted += "; the next to go was last used " + inWords(now.Sub(*st.OldestUse)) + " ago"
	}
	row("evicted", "%s", evicted)
	for _, u := range s.Upstreams {
		row(u.Registry, "%s, %s", upstreamState(u), plural(u.Requests, "request"))
		row("quota", "%s", quota(u.RateLimit, now))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printInflight(out, s.Inflight, terminal)
}

// nameColumns keeps a row of what is being fetched within 80 columns of a terminal.
const nameColumns = 34

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

func upstreamState(u admin.Upstream) string {
	as := ", anonymous"
	if u.Authenticated {
		as = ", with access token"
	}
	switch u.State {
	case "cooling":
		return "COOLING DOWN after a 429" + as
	case "denied":
		return "ACCESS TOKEN REFUSED"
	case "down":
		return "DOWN" + as
	}
	return u.State + as
}

// quota says what is left and when the window that was seen is over at the latest.
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

// upToMinutes never promises too much: 4h59m1s is 5h0m.
func upToMinutes(d time.Duration) string {
	return strings.TrimSuffix((d + time.Minute - 1).Truncate(time.Minute).String(), "0s")
}

// inWords is a time for people, roughly.
func inWords(d time.Duration) string { return strings.ToLower(units.HumanDuration(max(0, d))) }

func human(n int64) string { return units.BytesSize(float64(n)) }

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

// shortDigest is what docker shows of it.
func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

// bar draws how full something is, on a terminal.
func bar(n, of int64, terminal bool) string {
	const cells = 20
	if !terminal || of <= 0 {
		return ""
	}
	full := int(max(0, min(n*cells/of, cells)))
	return "[" + strings.Repeat("█", full) + strings.Repeat("░", cells-full) + "] "
}
