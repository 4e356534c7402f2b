package main

import (
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/prune"
)

// loadFunc returns the settings from file, environment and defaults. A command puts its
// own flags over them.
type loadFunc func() (*settings.Settings, error)

// newDockerCommand is "hubcache docker".
func newDockerCommand(load loadFunc) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "docker",
		Short: "Look after the Docker host that pulls through the cache",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newDockerPruneCommand(load), newDockerHoldCommand(load), newDockerWatchCommand(load),
		newDockerSetupCommand(load), newDockerGuardCommand())
	return cmd
}

func newDockerWatchCommand(load loadFunc) *cobra.Command {
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
			engine, err := dockerhost.Connect(string(s.Docker.Host))
			if err != nil {
				return err
			}
			defer engine.Close()
			w := prune.Watcher{
				Engine: engine, Uses: prune.Uses{Path: string(s.Docker.State)}, Logger: newLogger(cmd.ErrOrStderr()),
				Ready: func() { daemon.SdNotify(false, daemon.SdNotifyReady) },
			}
			return w.Run(cmd.Context())
		},
	}
}

func newDockerGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: dockerhost.GuardCommand, Hidden: true, Args: cobra.NoArgs,
		Short: "Used by docker hold",
		Run:   func(cmd *cobra.Command, _ []string) { dockerhost.RunGuard(cmd.InOrStdin()) },
	}
}
