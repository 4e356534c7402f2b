package main

import (
	"context"
	"fmt"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/prune"
)

// Exit codes beside 0 and 1; every command uses the same.
const (
	exitUsage      = 2
	exitIncomplete = 3
	exitTryAgain   = 75 // EX_TEMPFAIL of sysexits(3)
)

// exitCode ends the program with that code and without another message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// dockerSettings is the docker section of the configuration.
type dockerSettings struct {
	Host    string // of the Engine; a unix socket on this machine
	Admin   string // the cache's admin address; "" doesn't ask
	Mirror  string // the URL by which this host reaches the cache
	HoldDir string
	State   string
	Policy  prune.Policy
}

// newDockerCommand is "hubcache docker". load returns the settings from environment,
// file and defaults; the commands put their own flags over them.
func newDockerCommand(load func() (dockerSettings, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "docker",
		Short: "Look after the Docker host that pulls through the cache",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newDockerPruneCommand(load), newDockerHoldCommand(load), newDockerWatchCommand(load),
		newDockerSetupCommand(load), newDockerGuardCommand())
	return cmd
}

// newEngine connects to the Docker Engine. It does not ask it anything yet.
func newEngine(host string) (*client.Client, error) {
	c, err := client.New(client.WithHost(host), client.WithUserAgent("hubcache"))
	if err != nil {
		return nil, fmt.Errorf("docker.host %q: %w", host, err)
	}
	return c, nil
}

func newDockerHoldCommand(load func() (dockerSettings, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "hold -- COMMAND [ARG…]",
		Short: "Run a command; while it runs, no image of this host is pruned",
		Long: `Runs a deploy, a build or a test run under a hold. While a hold is in force,
"hubcache docker prune" deletes nothing. The hold ends with the command, however
it ends; what the command leaves in the background does not prolong it. The exit
code is the command's, and signals are passed on. A hold inside a hold does
nothing.`,
		Example: "  hubcache docker hold -- abra app deploy cloud.example.org\n  hubcache docker hold -- make test",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			h := holdRun{holds: prune.Holds{Dir: s.HoldDir}, maxWait: s.Policy.MaxWait, stderr: cmd.ErrOrStderr()}
			code, err := h.run(cmd.Context(), args)
			if err != nil || code == 0 {
				return err
			}
			return exitCode(code)
		},
	}
}

func newDockerGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: guardCommand, Hidden: true, Args: cobra.NoArgs,
		Short: "Used by docker hold",
		Run:   func(cmd *cobra.Command, _ []string) { runGuard(cmd.InOrStdin()) },
	}
}

func newDockerWatchCommand(load func() (dockerSettings, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Record when this host's images are used, for docker prune",
		Long: `Records from the Docker daemon's events when each image was last used. It runs
until it is told to end. Without it "docker prune" knows only what it sees each
time it runs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			engine, err := newEngine(s.Host)
			if err != nil {
				return err
			}
			defer engine.Close()
			w := prune.Watcher{Engine: engine, Uses: prune.Uses{Path: s.State}, Logger: newLogger(cmd.ErrOrStderr()), Ready: notifyReady}
			return w.Run(cmd.Context())
		},
	}
}

// transfersOf asks a running hubcache how many downloads it has in flight; nil when there
// is none to ask.
func transfersOf(addr string) func(context.Context) (int, error) {
	if addr == "" {
		return nil
	}
	return func(ctx context.Context) (int, error) {
		stats, err := adminclient.Stats(ctx, addr)
		return len(stats.Inflight), err
	}
}
