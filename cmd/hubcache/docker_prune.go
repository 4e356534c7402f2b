package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/prune"
)

func newDockerPruneCommand(load loadFunc) *cobra.Command {
	var apply, asJSON bool
	var flags pruneFlags
	var host hostFlag
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nothing here needs, when the disk is full",
		Long: `Removes images of this Docker host one by one, least recently used first, when a
disk is above the high watermark, until it is at the low one. Without --apply it
only shows what it would remove, what it would keep, and why. Containers,
volumes and networks are never touched.

Exit codes: 0 done or nothing to do, 1 failed (nothing was removed after that),
2 wrong usage, 3 done, but the low watermark was not reached, 75 not now, try
again later.`,
		Example: "  hubcache docker prune\n  hubcache docker prune --apply --min-age 7d",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			policy, d := dockerhost.PrunePolicy(s), s.Docker
			if err := flags.over(cmd, &policy); err != nil {
				return settings.UsageError{Err: err}
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
			p := prune.Pruner{
				Engine: engine, Policy: policy, Holds: prune.Holds{Dir: string(d.HoldDir)}, Uses: prune.Uses{Path: string(d.State)},
				Transfers: transfersOf(string(d.Admin)), Logger: pruneLogger(cmd.ErrOrStderr()),
			}
			extendTimeout(policy.MaxWait)
			report, failure := p.Run(cmd.Context(), apply)
			switch deleted := slices.ContainsFunc(report.Images, prune.ImageDecision.Deleted); {
			case asJSON:
				err = printJSON(cmd.OutOrStdout(), report)
			case failure == nil || deleted: // otherwise there is nothing to say but the error
				err = writePruneReport(cmd.OutOrStdout(), report, time.Now())
			}
			if failure != nil {
				return failure
			}
			if err != nil {
				return err
			}
			return pruneExit(report.Decision)
		},
	}
	cmd.Flags().BoolVar(&apply, "apply", false, "delete; without it nothing is deleted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	flags.register(cmd)
	host.register(cmd)
	return cmd
}

// deletionsTake is how long a run may take beside its waiting for holds. The timeout of the packaged
// unit is this and the default of max_wait.
const deletionsTake = 90 * time.Minute

// extendTimeout tells systemd, if it runs this, that the run may wait for holds that long. Else the
// timeout of the unit would end a run with a longer max_wait than the default.
func extendTimeout(maxWait time.Duration) {
	const year = 365 * 24 * time.Hour // so that the sum is no overflow
	daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (min(maxWait, year)+deletionsTake).Microseconds()))
}

// pruneLogger returns the log of a run. On a terminal it has no line for each deletion, which the
// report has.
func pruneLogger(stderr io.Writer) *slog.Logger {
	if server.IsTerminal(stderr) {
		return server.NewTerminalLogger(stderr, slog.LevelWarn)
	}
	return server.NewLogger(stderr)
}

// pruneExit is the exit code of a run that did not fail.
func pruneExit(d prune.Decision) error {
	switch d {
	case prune.Deferred:
		return exitCode(exitTryAgain)
	case prune.Incomplete:
		return exitCode(exitIncomplete)
	}
	return nil
}

// pruneFlags are the flags of docker.prune. They are used before the settings.
type pruneFlags struct {
	high, low, critical    settings.Percent
	minAge, quiet, maxWait settings.Duration
	tagged                 bool
	keep, keepFiles        []string
}

// register defines the flags.
func (f *pruneFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(settings.Flag(&f.high), "high-watermark", "start above this share of a disk")
	fs.Var(settings.Flag(&f.low), "low-watermark", "stop at this share")
	fs.Var(settings.Flag(&f.critical), "critical-watermark", "above this share, new holds wait for prune")
	fs.Var(settings.Flag(&f.minAge), "min-age", "keep what was used, first seen or tagged less than this ago")
	fs.Var(settings.Flag(&f.quiet), "quiet", "wait until the last pull or container start is this long ago")
	fs.Var(settings.Flag(&f.maxWait), "max-wait", "above the critical watermark, wait this long for holds")
	fs.BoolVar(&f.tagged, "tagged", false, "remove images that have a tag, too")
	fs.StringSliceVar(&f.keep, "keep", nil, "keep images that match this pattern (repeatable)")
	fs.StringSliceVar(&f.keepFiles, "keep-files", nil, "keep the images of this compose file (repeatable)")
}

// over sets in the policy what flags were given for, and checks the result.
func (f *pruneFlags) over(cmd *cobra.Command, p *prune.Policy) error {
	given := cmd.Flags().Changed
	set(given("high-watermark"), &p.High, float64(f.high))
	set(given("low-watermark"), &p.Low, float64(f.low))
	set(given("critical-watermark"), &p.Critical, float64(f.critical))
	set(given("min-age"), &p.MinAge, time.Duration(f.minAge))
	set(given("quiet"), &p.Quiet, time.Duration(f.quiet))
	set(given("max-wait"), &p.MaxWait, time.Duration(f.maxWait))
	set(given("tagged"), &p.Tagged, f.tagged)
	set(given("keep"), &p.Keep, f.keep)
	set(given("keep-files"), &p.KeepFiles, f.keepFiles)
	return p.Validate()
}

func set[T any](given bool, to *T, value T) {
	if given {
		*to = value
	}
}

// transfersOf returns a function that asks the cache at an admin address how many
// downloads are in flight; nil for no address. Where nobody listens, none is: the address may be
// a package's, and its service not in use.
func transfersOf(addr string) func(context.Context) (int, error) {
	if addr == "" {
		return nil
	}
	return func(ctx context.Context) (int, error) {
		stats, err := adminclient.Stats(ctx, addr)
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return len(stats.Inflight), err
	}
}
