package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// bindAdmin defines the flag that says where the server is asked, and returns what finds it.
// Every command that asks the server uses it.
func bindAdmin(cmd *cobra.Command, l *settings.Loader) *adminclient.Finder {
	f := &adminclient.Finder{Load: l.Load}
	cmd.Flags().StringVar(&f.Given, "admin", "", "admin `address` of the server: host:port or unix:/path (default $HUBCACHE_ADMIN, else admin.listen of the settings, else unix:/run/hubcache/admin.sock where it is, else 127.0.0.1:5001)")
	return f
}

func newStatsCommand(l *settings.Loader) *cobra.Command {
	var (
		find   *adminclient.Finder
		asJSON bool
		watch  settings.Duration
	)
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Show hits, bytes saved, room, quota and downloads of the cache",
		Example: "  hubcache stats --watch=5s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := find.Find()
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
	find = bindAdmin(cmd, l)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the document of GET /api/v1/stats")
	cmd.Flags().Var(settings.Flag(&watch), "watch", "show again at this interval, until Ctrl-C")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	return cmd
}

// drawable reports whether w is a terminal with a cursor. Nothing here has colours, so
// NO_COLOR makes no difference.
func drawable(w io.Writer) bool {
	return server.IsTerminal(w) && os.Getenv("TERM") != "dumb"
}

// watchStats repeats show until Ctrl-C, which is not an error. On a terminal each table
// takes the place of the one before.
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
