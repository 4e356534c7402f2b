package main

import (
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/compose"
	"github.com/hubcache/hubcache/warm"
)

func newConfigCommand(l *settings.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Check and show the settings",
		Example: "  hubcache config show",
	}
	check := &cobra.Command{
		Use: "check [FILE]", Short: "Check the settings, without starting anything", Args: cobra.MaximumNArgs(1),
		Example: "  hubcache config check\n  hubcache config check new.yaml",
		Long: `Checks the settings of file and environment. Files that they name, such as the
one with the access token, need not be on this machine; but if hubcache.service
is installed here and uses these settings, it has to be able to read the token
and the files of warm.files.
Exits with 2 when something is wrong.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				l.File = args[0]
			}
			s, err := l.Load()
			if err != nil {
				return err
			}
			if err := checkService("", s); err != nil {
				return settings.UsageError{Err: err}
			}
			for _, path := range s.Warm.Files {
				if _, _, err := warm.Images(cmd.Context(), compose.Project{Files: []string{path}}); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
					s.Warn("warm.files: " + err.Error())
				}
			}
			if doubt := s.DiskDoubt(); doubt != "" {
				s.Warn(doubt)
			}
			s.Warn(checkPruneService("", s)...)
			if path := string(s.Upstream.PasswordFile); dockerhost.Exposed(path) {
				s.Warn("every user of this machine may read " + path + ": chmod o-r " + path)
			}
			if s.File == settings.DefaultFile { // systemd listens for the packaged service
				s.Warn(server.CheckSockets(cmd.Context(), s)...)
			}
			warn(cmd, s)
			from := s.File
			if from == "" {
				from = "no file, defaults and environment"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "ok (%s)\n", from)
			return nil
		},
	}
	var asJSON bool
	show := &cobra.Command{
		Use: "show", Short: "Print every setting and where it comes from", Args: cobra.NoArgs,
		Example: "  hubcache config show\n  hubcache config show --json --budget 30%",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := l.Load()
			if err != nil {
				return err
			}
			warn(cmd, s)
			return showSettings(cmd, s.Show(), asJSON)
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	l.BindFlags(show.Flags()) // the flags of serve, so that its command line can be tried
	cmd.AddCommand(check, show, newConfigSocketsCommand(l))
	return cmd
}

// checkService finds out whether the installed service, if it uses these settings, can read the
// access token. root is where the file system begins; "" is /.
func checkService(root string, s *settings.Loaded) error {
	service, err := dockerhost.InstalledService(root)
	if err != nil || !service.Uses(s.File) {
		return nil // there is none, or it is not about it
	}
	if err := service.CheckPasswordFile(string(s.Upstream.PasswordFile)); err != nil {
		return fmt.Errorf("upstream.password_file: %w", err)
	}
	return errors.Join(service.CheckWarmFiles(s.Warm.Files)...)
}

// checkPruneService finds out whether the installed prune, if it uses these settings, can read the
// files that they name.
func checkPruneService(root string, s *settings.Loaded) []string {
	service, err := dockerhost.InstalledPrune(root)
	if err != nil || !service.Uses(s.File) {
		return nil
	}
	return service.CheckKeepFiles(s.Docker.Prune.KeepFiles)
}

// warn prints what has no effect, or is probably not meant so.
func warn(cmd *cobra.Command, s *settings.Loaded) {
	for _, w := range s.Warnings() {
		fmt.Fprintln(cmd.ErrOrStderr(), "hubcache: warning:", w)
	}
}

func showSettings(cmd *cobra.Command, rows []settings.Shown, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "settings": rows})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tSOURCE")
	for _, r := range rows {
		value := r.Value
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Key, value, r.Source)
	}
	return w.Flush()
}
