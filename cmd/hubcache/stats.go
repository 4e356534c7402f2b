package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
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
			switch {
			case watch <= 0:
				return show(cmd.Context(), cmd.OutOrStdout())
			case !asJSON && drawable(cmd.OutOrStdout()):
				return watchScreen(cmd, c, time.Duration(watch))
			}
			return repeatStats(cmd, time.Duration(watch), asJSON, show)
		},
	}
	find = bindAdmin(cmd, l)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the document of GET /api/v1/stats")
	cmd.Flags().Var(settings.Flag(&watch), "watch", "show it again at this interval, until q or Ctrl-C")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	return cmd
}
