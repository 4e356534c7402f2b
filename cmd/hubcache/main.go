// Command hubcache is a pull-through cache for Docker Hub: the server, and the commands
// around it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func main() {
	dockerhost.BecomeCommand(os.Args)
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes beside 0 and 1; every command uses the same.
const (
	exitUsage      = 2
	exitIncomplete = 3
	exitTryAgain   = 75 // EX_TEMPFAIL of sysexits(3)
)

// exitCode ends the program with that code and without another message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

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
	server.PrintError(stderr, err)
	if _, ok := errors.AsType[settings.UsageError](err); ok {
		return exitUsage
	}
	return 1
}

// checkSettings finds what the parts of the program refuse of the settings.
func checkSettings(s *settings.Settings) error {
	if err := server.Check(s); err != nil {
		return err
	}
	return dockerhost.Check(s)
}

func newRootCommand() *cobra.Command {
	l := &settings.Loader{Check: checkSettings}
	root := &cobra.Command{
		Use:   "hubcache",
		Short: "A pull-through cache for Docker Hub",
		Long: `hubcache stands between Docker and Docker Hub. It gets an image from Docker Hub
once, with an access token, and serves every later pull of it from the local
disk, within a byte budget.`,
		Example:       "  hubcache serve --budget 50GiB\n  hubcache stats --watch",
		Version:       versionString(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("hubcache {{.Version}}\n")
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return settings.UsageError{Err: fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	l.BindFile(root.PersistentFlags())
	load := func() (*settings.Settings, error) {
		s, err := l.Load()
		if err != nil {
			return nil, err
		}
		return s.Settings, nil
	}
	root.AddCommand(
		newServeCommand(l), newStatsCommand(l), newLsCommand(l), newInspectCommand(l), newPinCommand(l), newUnpinCommand(l), newPurgeCommand(l), newReleaseCommand(l), newVerifyCommand(l), newConfigCommand(l), newVersionCommand(), newDocsCommand(root),
		newDockerCommand(l, load), newDoctorCommand(l), newImportCommand(load), newExportCommand(l),
		newWarmCommand(l),
	)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			c.Example = "  source <(hubcache completion bash)"
		case "help":
			c.Example = "  hubcache help docker prune"
		}
	}
	wrongArgs(root)
	return root
}

// helpColumns is how wide help is.
const helpColumns = 80

// usageTemplate is the help below the description. It is cobra's, but shorter: all flags are in one
// list, so that every help fits a screen.
var usageTemplate = `Usage:{{if and .Runnable (not .HasAvailableSubCommands)}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} [command]{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Available Commands:{{range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableFlags}}

Flags:
{{.Flags.FlagUsagesWrapped ` + strconv.Itoa(helpColumns) + ` | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

Use "{{.CommandPath}} [command] --help" for more information about a command.{{end}}
`

// wrongArgs makes it a usage error, with a hint, when a command gets arguments that it
// doesn't take. Cobra answers some of them with the help and exit code 0.
func wrongArgs(cmd *cobra.Command) {
	explain := wrongArguments
	switch {
	case cmd.Name() == "help":
		cmd.Args, explain = helpTopic, nil
	case cmd.HasSubCommands() && !cmd.Runnable():
		cmd.Args, explain = noCommand, nil
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				return nil
			}
			if explain != nil {
				err = explain(cmd, args)
			}
			return settings.UsageError{Err: err}
		}
	}
	for _, c := range cmd.Commands() {
		wrongArgs(c)
	}
}

// wrongArguments says what the command takes.
func wrongArguments(cmd *cobra.Command, args []string) error {
	what := "an argument is missing"
	if len(args) > 0 {
		what = "wrong arguments: " + strings.Join(args, " ")
	}
	usage := cmd.UseLine()
	if cmd.Example != "" {
		usage += "\nExamples:\n" + cmd.Example
	}
	return fmt.Errorf("%s\nUsage: %s", what, usage)
}

// noCommand says that a word is not a command, and which command may be meant.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := fmt.Sprintf("See '%s --help'", cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = fmt.Sprintf("Did you mean '%s %s'? %s", cmd.CommandPath(), like[0], hint)
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], hint)
}

// helpTopic finds the word that is not a command in the arguments of help.
func helpTopic(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	if err != nil {
		return err
	}
	return noCommand(found, rest)
}

// printJSON prints a document; each has the field "schema".
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
