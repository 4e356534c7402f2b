package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func newDockerSetupCommand(load loadFunc) *cobra.Command {
	var apply, undo bool
	var mirror string
	var host hostFlag
	var paths dockerhost.SetupPaths
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make this host's Docker pull through the cache",
		Long: `Looks at the Docker engine's version and image store and shows what makes it
pull through the cache. --apply writes it, after a backup, makes the daemon read
its configuration again, and asks it whether the mirror is in force; if not, the
old files are put back. No container restarts. --undo shows how to take it back,
and --undo --apply does. It also prints what containerd, podman and BuildKit
need.`,
		Example: "  hubcache docker setup\n  hubcache docker setup --apply\n  hubcache docker setup --undo --apply",
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
			if mirror == "" {
				mirror = dockerhost.MirrorURL(s)
			}
			if mirror == "" {
				return settings.UsageError{Err: errors.New("the server listens on no TCP address: --mirror says by which URL the daemon reaches it")}
			}
			setup := dockerhost.Setup{
				Engine: at, Mirror: strings.TrimRight(mirror, "/"), Paths: paths, Out: cmd.OutOrStdout(),
			}
			return setup.Run(cmd.Context(), apply, undo)
		},
	}
	host.register(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&apply, "apply", false, "write the files and reload the daemon")
	fs.BoolVar(&undo, "undo", false, "show how to take the mirror out again; with --apply, do it")
	fs.StringVar(&mirror, "mirror", "", "the cache's URL as the daemon reaches it (default: from listen)")
	fs.StringVar(&paths.DaemonJSON, "daemon-json", "", "the daemon's configuration `file` (default: the daemon's)")
	fs.StringVar(&paths.Certs, "certs-dir", "", "the daemon's `directory` of registries (default: the daemon's)")
	fs.StringVar(&paths.PIDFile, "docker-pidfile", "", "the daemon's pid `file` (default: found by its socket)")
	return cmd
}
