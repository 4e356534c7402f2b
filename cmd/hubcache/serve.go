package main

import (
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// newServeCommand is "hubcache serve". Of l it uses the file that --config names.
func newServeCommand(l *settings.Loader) *cobra.Command {
	own := &settings.Loader{Check: l.Check}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the cache",
		Long: `Runs the cache until SIGTERM or SIGINT. Running pulls may end first; a second
signal stops the cache at once. SIGHUP makes it read settings, certificate and
access token again.

Addresses are host:port or unix:/path. Flags for lists can be repeated. Every
setting can be an environment variable: tags.ttl is HUBCACHE_TAGS_TTL.
HUBCACHE_SETTINGS takes YAML like the file's. Flags win over the environment,
the environment over the file; 'hubcache config show' says what is from where.`,
		Example: "  hubcache serve --budget 50GiB --username jane --password-file ~/hub-token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			own.File = l.File
			return server.Run(cmd.Context(), own, versionString(), cmd.ErrOrStderr())
		},
	}
	own.BindFlags(cmd.Flags())
	return cmd
}
