package main

import (
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
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
