package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// loadFunc returns the settings from file, environment and defaults. A command puts its
// own flags over them.
type loadFunc func() (*settings.Settings, error)

// newDockerCommand is "hubcache docker".
func newDockerCommand(l *settings.Loader, load loadFunc) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "docker",
		Short:   "Look after the Docker host that pulls through the cache",
		Args:    cobra.NoArgs,
		Example: "  hubcache docker setup --apply\n  hubcache docker prune",
	}
	cmd.AddCommand(newDockerPruneCommand(load), newDockerHoldCommand(load), newDockerWatchCommand(load),
		newDockerSetupCommand(l, load), newDockerGuardCommand())
	return cmd
}

// hostFlag is the flag --host of the commands that look at a Docker engine.
type hostFlag string

func (f *hostFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(f), "host", "",
		"the Docker engine's `URL` (default: docker.host, DOCKER_HOST, the docker context)")
}

// local says where the engine is, for a command that works only on the engine's own
// machine.
func (f hostFlag) local(cmd *cobra.Command, s *settings.Settings) (dockerhost.Location, error) {
	at, err := dockerhost.Locate(string(f), s)
	if err != nil {
		return at, err
	}
	return at, at.Local(commandName(cmd))
}

// commandName is the command without the program's name.
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
