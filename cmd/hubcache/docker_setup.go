package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// setupFlags are the flags of docker setup.
type setupFlags struct {
	apply, undo bool
	client      string
	mirror      string
	registries  []string
	containerd  string
	host        hostFlag
	paths       dockerhost.SetupPaths
	certs       dockerhost.Certificates
	find        *adminclient.Finder
}

func newDockerSetupCommand(l *settings.Loader, load loadFunc) *cobra.Command {
	var f setupFlags
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make this host's Docker or containerd pull through the cache",
		Long: `Shows what makes the Docker engine pull through the cache, from all registries
of the server. --apply writes it, after a backup, and asks the engine whether
the mirror is in force; if not, the old files are put back. No container
restarts. For other clients than docker and containerd it prints their file.`,
		Example: `  hubcache docker setup --apply
  hubcache docker setup --undo --apply
  hubcache docker setup --for containerd --apply
  hubcache docker setup --for podman --mirror http://10.0.0.2:5000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			return f.run(cmd, s)
		},
	}
	f.find = bindAdmin(cmd, l)
	f.host.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.client, "for", "docker", "the `client`: docker, "+strings.Join(dockerhost.OtherClients(), ", "))
	fs.BoolVar(&f.apply, "apply", false, "write the files and reload the daemon")
	fs.BoolVar(&f.undo, "undo", false, "take the mirror out again")
	fs.StringVar(&f.mirror, "mirror", "", "the cache's `URL` for clients (default: from listen)")
	fs.StringSliceVar(&f.registries, "registry", nil, "further `registries` of the cache (default: the server's)")
	fs.StringVar(&f.paths.DaemonJSON, "daemon-json", "", "daemon.json's `file` (default: the daemon's)")
	fs.StringVar(&f.paths.Certs, "certs-dir", "", "`directory` of registries (default: the daemon's)")
	fs.StringVar(&f.certs.CA, "ca", "", "`file` with the cache's authority")
	fs.StringVar(&f.certs.Cert, "client-cert", "", "`file` with this host's certificate")
	fs.StringVar(&f.certs.Key, "client-key", "", "`file` with its key")
	fs.StringVar(&f.paths.PIDFile, "docker-pidfile", "", "pid `file` (default: found by its socket)")
	fs.StringVar(&f.containerd, "containerd", "", "containerd's `socket` (default: the usual one)")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(append([]string{"docker"}, dockerhost.OtherClients()...), cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that isn't there
	return cmd
}

// run is docker setup.
func (f *setupFlags) run(cmd *cobra.Command, s *settings.Settings) error {
	mirror := f.mirror
	if mirror == "" {
		mirror = dockerhost.MirrorURL(s)
	}
	if mirror == "" {
		return settings.UsageError{Err: errors.New("the server listens on no TCP address: --mirror says by which URL the client reaches it")}
	}
	setup := dockerhost.Setup{Mirror: strings.TrimRight(mirror, "/"), Paths: f.paths, Certificates: f.certs, Out: cmd.OutOrStdout()}
	if !slices.Contains(append([]string{"docker"}, dockerhost.OtherClients()...), f.client) {
		return settings.UsageError{Err: fmt.Errorf("--for %s: the clients are docker, %s", f.client, strings.Join(dockerhost.OtherClients(), ", "))}
	}
	var err error
	if setup.Registries, err = f.which(cmd, s); err != nil {
		return err
	}
	switch f.client {
	case "docker":
		if setup.Engine, err = f.host.local(cmd, s); err != nil {
			return err
		}
		return setup.Run(cmd.Context(), f.apply, f.undo)
	case "containerd":
		return setup.RunContainerd(cmd.Context(), f.containerd, f.apply, f.undo)
	}
	if f.certs != (dockerhost.Certificates{}) {
		return settings.UsageError{Err: errors.New("--ca, --client-cert and --client-key are for docker and containerd; docs/use/clients.md says where other clients look for these files")}
	}
	if f.apply || f.undo {
		return settings.UsageError{Err: fmt.Errorf("--for %s prints the file and changes nothing: --apply and --undo are for docker and containerd", f.client)}
	}
	text, err := setup.ClientFile(f.client)
	if err == nil {
		_, err = io.WriteString(cmd.OutOrStdout(), text)
	}
	return err
}

// which are the registries that the cache serves: those that the user has named, or those of the
// running server, or else of the settings.
func (f *setupFlags) which(cmd *cobra.Command, s *settings.Settings) (list []dockerhost.Registry, err error) {
	if len(f.registries) == 0 {
		list, err := dockerhost.FindRegistries(cmd.Context(), *f.find, s)
		if err != nil && !f.undo {
			cmd.PrintErrf("the server can't be asked for its registries, so those of this host's settings are taken; --registry names others (%v)\n", err)
		}
		return list, nil
	}
	names := append([]string{"docker.io"}, f.registries...)
	for i, name := range names {
		if !dockerhost.ValidRegistry(name) {
			return nil, settings.UsageError{Err: fmt.Errorf("--registry: %q is not the name of a registry in references, such as ghcr.io or registry.lan:5000", name)}
		}
		if !slices.Contains(names[:i], name) {
			list = append(list, dockerhost.NewRegistry(name, ""))
		}
	}
	return list, nil
}
