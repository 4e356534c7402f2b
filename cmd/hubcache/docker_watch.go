package main

import (
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/prune"
)

func newDockerWatchCommand(load loadFunc) *cobra.Command {
	var host hostFlag
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Record when this host's images are used, for docker prune",
		Long: `Records from the Docker daemon's events when each image was last used. It runs
until it is told to end. Without it "docker prune" knows only what it sees each
time it runs.`,
		Example: "  hubcache docker watch",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			at, err := host.local(cmd, s)
			if err != nil {
				return err
			}
			engine, err := at.Connect(commandName(cmd))
			if err != nil {
				return err
			}
			defer engine.Close()
			w := prune.Watcher{
				Engine: engine, Uses: prune.Uses{Path: string(s.Docker.State)}, Logger: server.NewLogger(cmd.ErrOrStderr()),
				Ready: func() { daemon.SdNotify(false, daemon.SdNotifyReady) },
			}
			return w.Run(cmd.Context())
		},
	}
	host.register(cmd)
	return cmd
}
