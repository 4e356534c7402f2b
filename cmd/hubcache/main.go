// Command hubcache is a pull-through cache for Docker Hub: the server, and the commands
// around it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program; it returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "hubcache:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return 1
}

func newRootCommand() *cobra.Command {
	l := &loader{}
	root := &cobra.Command{
		Use:   "hubcache",
		Short: "A pull-through cache for Docker Hub",
		Long: `hubcache stands between Docker and Docker Hub: the first pull of an image comes from the
Hub, with an access token; every later one from the local disk, within a byte budget.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	l.bindConfig(root.PersistentFlags())
	root.AddCommand(
		newServeCommand(l), newStatsCommand(), newConfigCommand(l), newVersionCommand(), newManCommand(root),
		newDockerCommand(func() (dockerSettings, error) {
			s, err := l.load()
			if err != nil {
				return dockerSettings{}, err
			}
			return s.docker(), nil
		}),
		newDoctorCommand(func() (doctorSettings, error) {
			s, err := l.load()
			if err != nil {
				return doctorSettings{}, err
			}
			return s.doctor()
		}),
	)
	wrongArgs(root)
	return root
}

// noCommand explains a word that is no command.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unknown command %q; see '%s --help'", args[0], cmd.CommandPath())
}

// wrongArgs makes what a command says of its arguments wrong usage.
func wrongArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		wrongArgs(c)
	}
}
