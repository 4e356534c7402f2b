package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

// warmFlags are the flags of warm.
type warmFlags struct {
	names                  imageFlags
	platforms              []string
	check, refresh, asJSON bool
}

func newWarmCommand(l *settings.Loader) *cobra.Command {
	var (
		find  *adminclient.Finder
		flags warmFlags
	)
	cmd := &cobra.Command{
		Use:   "warm [REF...]",
		Short: "Fetch images into the cache before anybody pulls them",
		Long: `Has the running server fetch images as a pull would, with their attestations and
signatures. What is cached already is not fetched again. Clients come first, and
an interrupted warm goes on where it was. With -f, all images that compose files
name are fetched, as 'docker compose config' has them. Without REF and -f, the
files are those of COMPOSE_FILE, in the environment or in --env-file.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 there is no room, or with --check
not everything is cached, 75 not now: less than quota.reserve is left of the
pulls.`,
		Example: "  hubcache warm redis:7 --platform linux/amd64 --platform linux/arm64\n  hubcache warm -f compose.yml --check",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.verify(); err != nil {
				return err
			}
			refs, fromFiles, err := flags.names.references(cmd, args)
			if err != nil {
				return err
			}
			c, err := find.Find()
			if err != nil {
				return err
			}
			w := &warmRun{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), flags: &flags, fromFiles: fromFiles}
			return w.run(cmd.Context(), c, refs)
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 0)
	fs := cmd.Flags()
	flags.names.bind(cmd, "fetch")
	fs.StringArrayVar(&flags.platforms, "platform", nil, "`platform` like linux/arm64 (repeatable) (default those that are cached of an image, else the server's own)")
	fs.BoolVar(&flags.check, "check", false, "fetch nothing, and say whether the images are cached")
	fs.BoolVar(&flags.refresh, "refresh", false, "ask what the tags name now, whatever their TTL")
	fs.BoolVar(&flags.asJSON, "json", false, "print the results as JSON")
	return cmd
}

// verify finds what is wrong with the flags. Each error is a wrong use.
func (f *warmFlags) verify() error {
	if f.check && f.refresh {
		return settings.UsageError{Err: errors.New("--check asks nothing of the upstream, and --refresh does: give one of them")}
	}
	for _, p := range f.platforms {
		if _, err := platforms.Parse(p); err != nil || !strings.Contains(p, "/") {
			return settings.UsageError{Err: fmt.Errorf("--platform: %q is not a platform like linux/amd64 or linux/arm/v7", p)}
		}
	}
	return nil
}

// warmRun is one run of the command.
type warmRun struct {
	out, err  io.Writer
	flags     *warmFlags
	fromFiles map[string]bool
	results   []warmImage
}

// warmImage is a row of the result.
type warmImage struct {
	Reference string `json:"reference"`
	admin.WarmResult
}

// run has the server do the work, and shows it.
func (w *warmRun) run(ctx context.Context, c *adminclient.Client, refs []string) error {
	show := newWarmProgress(w.err, len(refs), w.flags.check)
	body := admin.WarmRequest{References: refs, Platforms: append([]string{}, w.flags.platforms...), Refresh: w.flags.refresh, Check: w.flags.check}
	err := c.Stream(ctx, http.MethodPost, "/api/v1/warm", body, func(line []byte) error {
		var e admin.WarmEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if e.Result != nil {
			w.results = append(w.results, warmImage{e.Reference, *e.Result})
		}
		show.event(e)
		return nil
	})
	show.end()
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; what has come is kept, and the same command goes on from there")
	case adminclient.Status(err) == http.StatusBadRequest:
		return settings.UsageError{Err: err}
	case err != nil && len(w.results) < len(refs):
		return err
	}
	slices.SortFunc(w.results, func(a, b warmImage) int { return slices.Index(refs, a.Reference) - slices.Index(refs, b.Reference) })
	if err := w.print(); err != nil {
		return err
	}
	return w.exit()
}

// print prints the results.
func (w *warmRun) print() error {
	if w.flags.asJSON {
		return printJSON(w.out, struct {
			Schema int         `json:"schema"`
			Images []warmImage `json:"images"`
		}{admin.Schema, w.results})
	}
	t := tabwriter.NewWriter(w.out, 0, 8, 2, ' ', 0)
	last := "FETCHED"
	if w.flags.check {
		last = "MISSING"
	}
	fmt.Fprintf(t, "IMAGE\tSTATE\tSIZE\t%s\n", last)
	for _, r := range w.results {
		n, state := r.Fetched, r.State
		if w.flags.check {
			n = r.Missing
		}
		if r.Stale {
			state += ", not checked"
		}
		if r.Error != nil {
			state = "failed"
			if w.skipped(r) {
				state = "skipped"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name.Familiar(r.Reference), state, human(r.Bytes), human(n))
	}
	return t.Flush()
}

// skipped reports whether a compose file names an image of a registry that isn't cached. That is
// nobody's fault.
func (w *warmRun) skipped(r warmImage) bool {
	return r.Reason == "unserved" && w.fromFiles[r.Reference]
}

// exit says what went wrong, and returns the exit code: 1 if anything has failed, else 3 if there is
// no room or something is missing, else 75 if the rest has to wait for pulls.
func (w *warmRun) exit() error {
	codes := map[int]bool{}
	for _, r := range w.results {
		switch {
		case r.Error == nil && w.flags.check && r.State != "complete":
			codes[exitIncomplete] = true
		case r.Error == nil:
			if r.Stale {
				fmt.Fprintf(w.err, "hubcache: %s: what the tag names now could not be asked; the cached image is complete\n", name.Familiar(r.Reference))
			}
		default:
			fmt.Fprintf(w.err, "hubcache: %s: %s\n", name.Familiar(r.Reference), *r.Error)
			switch {
			case w.skipped(r):
			case r.Reason == "no_room":
				codes[exitIncomplete] = true
			case r.Reason == "quota_reserve":
				codes[exitTryAgain] = true
			default:
				codes[1] = true
			}
		}
	}
	for _, code := range []int{1, exitIncomplete, exitTryAgain} {
		if codes[code] {
			return exitCode(code)
		}
	}
	return nil
}
