package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// newConfigSocketsCommand is "hubcache config sockets".
func newConfigSocketsCommand(l *settings.Loader) *cobra.Command {
	var apply bool
	var dir string
	cmd := &cobra.Command{
		Use: "sockets", Short: "Make systemd's sockets listen where the settings say", Args: cobra.NoArgs,
		Long: `With the package, systemd listens for the server: on 127.0.0.1:5000, and for
the admin listener on a socket and on 127.0.0.1:5001. This command makes
drop-ins for those sockets from "listen" and "admin.listen" of the settings.
Without --apply it only prints them. A setting that has its default needs none.`,
		Example: "  hubcache config sockets\n  hubcache config sockets --apply",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := l.Load()
			if err != nil {
				return err
			}
			all, err := server.DropIns(s, dir)
			if err != nil {
				return settings.UsageError{Err: err}
			}
			return writeDropIns(cmd, all, apply)
		},
	}
	cmd.Flags().BoolVar(&apply, "apply", false, "write the files")
	cmd.Flags().StringVar(&dir, "unit-dir", "/etc/systemd/system", "`folder` of systemd's units")
	return cmd
}

// writeDropIns prints the files, or writes them and says what has to be run then.
func writeDropIns(cmd *cobra.Command, all []server.DropIn, apply bool) error {
	out := cmd.OutOrStdout()
	var changed []string
	for _, d := range all {
		if !apply {
			if d.Body == "" {
				fmt.Fprintf(out, "# %s stays as it is installed; no %s\n\n", d.Unit, d.Path)
			} else {
				fmt.Fprintf(out, "# %s\n%s\n", d.Path, d.Body)
			}
			continue
		}
		did, err := d.Write()
		if err != nil {
			return err
		}
		if did && d.Body == "" {
			fmt.Fprintln(out, "removed", d.Path)
		} else if did {
			fmt.Fprintln(out, "wrote", d.Path)
		}
		if did {
			changed = append(changed, d.Unit)
		}
	}
	if !apply {
		fmt.Fprintln(out, "nothing was written; --apply writes")
	} else if len(changed) == 0 {
		fmt.Fprintln(out, "nothing to change")
	} else {
		fmt.Fprintf(out, "now run: systemctl daemon-reload && systemctl restart %s\n", strings.Join(changed, " "))
	}
	return nil
}
