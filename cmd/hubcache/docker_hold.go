package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/prune"
)

func newDockerHoldCommand(load loadFunc) *cobra.Command {
	var host hostFlag
	var list bool
	cmd := &cobra.Command{
		Use:   "hold -- COMMAND [ARG…]",
		Short: "Run a command; while it runs, no image of this host is pruned",
		Long: `Runs a deploy, a build or a test run under a hold. While a hold is in force,
"hubcache docker prune" deletes nothing. The hold ends with the command, however
it ends; processes that the command leaves in the background do not prolong it.
The exit code is the command's, and signals are passed on. A hold inside a hold
does nothing. The images are those of this machine's engine: with another
machine's in DOCKER_HOST or in the docker context the command isn't started.

--list shows the holds in force: whose they are, since when, and which command
runs under them.`,
		Example: "  hubcache docker hold -- abra app deploy cloud.example.org\n  hubcache docker hold -- make test\n  hubcache docker hold --list",
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.MinimumNArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			if list {
				return listHolds(cmd.OutOrStdout(), prune.Holds{Dir: string(s.Docker.HoldDir)})
			}
			if _, err := host.local(cmd, s); err != nil {
				return err
			}
			h := dockerhost.Hold{
				Holds: prune.Holds{Dir: string(s.Docker.HoldDir)}, MaxWait: dockerhost.PrunePolicy(s).MaxWait, Stderr: cmd.ErrOrStderr(),
			}
			code, err := h.Run(cmd.Context(), args)
			if err != nil || code == 0 {
				return err
			}
			return exitCode(code)
		},
	}
	host.register(cmd)
	cmd.Flags().BoolVar(&list, "list", false, "show the holds in force")
	return cmd
}

// listHolds prints the holds in force.
func listHolds(out io.Writer, holds prune.Holds) error {
	all, err := holds.List()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "No hold is in force.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tUSER\tSINCE\tCOMMAND")
	for _, h := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", h.PID, h.User, h.Since.Local().Format("2006-01-02 15:04"), h.CommandLine())
	}
	return w.Flush()
}

// newDockerGuardCommand is for docker hold, which starts it.
func newDockerGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: dockerhost.GuardCommand, Hidden: true, Args: cobra.NoArgs,
		Short: "Used by docker hold",
		Run:   func(cmd *cobra.Command, _ []string) { dockerhost.RunGuard(cmd.InOrStdin()) },
	}
}
