package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
)

func newDoctorCommand(load loadFunc) *cobra.Command {
	var asJSON bool
	d := dockerhost.Doctor{Certs: dockerhost.DefaultSetupPaths().Certs}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the way from Docker to Docker Hub, and say what is wrong",
		Long: `Checks the way from the Docker daemon through the cache to Docker Hub, and the
machine under it, and says in plain words what is wrong and what to do. Exits
with 1 when something is broken.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			d.Settings = s
			findings := d.Examine(cmd.Context())
			broken := false
			for _, f := range findings {
				broken = broken || f.Status == dockerhost.StatusBroken
			}
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
	(*hostFlag)(&d.Host).register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	cmd.Flags().StringVar(&d.Image, "image", "hello-world:latest", "the small image that the daemon is made to ask for")
	cmd.Flags().StringVar(&d.Certs, "certs-dir", d.Certs, "the daemon's directory of registries")
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
