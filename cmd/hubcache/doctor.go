package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func newDoctorCommand(l *settings.Loader) *cobra.Command {
	var asJSON bool
	var find *adminclient.Finder
	var d dockerhost.Doctor
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the way from Docker to Docker Hub, and say what is wrong",
		Long: `Checks the way from Docker, or containerd, through the cache to Docker Hub and
the other registries, and the machine under it, and says in plain words what is
wrong and what to do. What the server runs with, it asks the server. Exits with
0 when pulls work as intended, and with 1 when something is broken, or when
nobody can tell.`,
		Example: "  hubcache doctor\n  hubcache doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := l.Load()
			if err != nil {
				return err
			}
			d.Settings, d.Find = s.Settings, *find
			findings, err := d.Examine(cmd.Context())
			if err != nil {
				return err
			}
			broken := dockerhost.Broken(findings)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "broken": broken, "checks": findings})
			} else {
				err = writeFindings(cmd.OutOrStdout(), findings)
			}
			if err == nil && broken {
				return exitCode(1)
			}
			return err
		},
	}
	find = bindAdmin(cmd, l)
	(*hostFlag)(&d.Host).register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	cmd.Flags().StringVar(&d.Image, "image", "hello-world:latest", "the small image that the daemon is made to ask for")
	cmd.Flags().StringVar(&d.Certs, "certs-dir", "", "the daemon's `directory` of registries (default: the daemon's)")
	cmd.Flags().StringVar(&d.Containerd, "containerd", "", "`socket` of a containerd without Docker (default: the usual one)")
	return cmd
}

func writeFindings(out io.Writer, findings []dockerhost.Finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Status, f.Check, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(w, "\t\t→ %s\n", f.Advice)
		}
	}
	return w.Flush()
}
