package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

const pinsPath = "/api/v1/pins"

func newPinCommand(l *settings.Loader) *cobra.Command {
	var (
		find   *adminclient.Finder
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "pin [REF…]",
		Short: "Keep images from being evicted, or list those that are kept",
		Long: `Pins cached images: nothing of them is evicted, however long nobody uses them. A
pin by tag follows the tag. It covers the platforms that are cached, and what
refers to them, such as signatures. Pins may take 90 % of the budget; one that
would take more is refused. Without a REF, it lists the pins.

The exit code is 3 if something of an image is missing, or if it can be evicted
because its tag has moved to an image that doesn't fit. What is missing is
pinned when it comes.`,
		Example: "  hubcache pin redis:7 postgres:17\n  hubcache pin",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := find.Find()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(args) == 0 {
				var doc admin.Pins
				if err := c.Do(cmd.Context(), http.MethodGet, pinsPath, nil, &doc); err != nil {
					return err
				}
				if asJSON {
					return printJSON(out, doc)
				}
				return printPins(out, doc, time.Now())
			}
			if args, err = wholeReferences(cmd.Context(), find, args); err != nil {
				return err
			}
			all := admin.Pins{Schema: admin.Schema, Pins: []admin.Pin{}}
			short := false
			err = eachReference(cmd, args, func(ref name.Reference) error {
				var done admin.Pinned
				if err := c.Do(cmd.Context(), http.MethodPut, pinsPath+"/"+ref.String(), nil, &done); err != nil {
					return err
				}
				all.Pins = append(all.Pins, done.Pin)
				short = short || done.Missing > 0 || !done.Protected
				if !asJSON {
					fmt.Fprintln(out, pinned(done.Pin))
				}
				return nil
			})
			if asJSON {
				if err := printJSON(out, pinnedNow{all.Schema, all.Pins}); err != nil {
					return err
				}
			}
			if err == nil && short {
				return exitCode(exitIncomplete)
			}
			return err
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 0)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was pinned, or the document of GET /api/v1/pins")
	return cmd
}

func newUnpinCommand(l *settings.Loader) *cobra.Command {
	var find *adminclient.Finder
	cmd := &cobra.Command{
		Use:   "unpin REF…",
		Short: "Let pinned images be evicted again",
		Long: `Takes pins back. The images stay in the cache until they are evicted like all
others, by their last use. 'hubcache pin' lists the pins.`,
		Example: "  hubcache unpin redis:7",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := find.Find()
			if err != nil {
				return err
			}
			if args, err = wholeReferences(cmd.Context(), find, args); err != nil {
				return err
			}
			return eachReference(cmd, args, func(ref name.Reference) error {
				var done admin.Unpinned
				if err := c.Do(cmd.Context(), http.MethodDelete, pinsPath+"/"+ref.String(), nil, &done); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is not pinned any more\n", name.Familiar(done.Reference))
				return err
			})
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			return completePins(cmd.Context(), find, typed), cobra.ShellCompDirectiveNoFileComp
		},
	}
	find = bindAdmin(cmd, l)
	return cmd
}

// pinnedNow is the document of pin --json with references.
type pinnedNow struct {
	Schema int         `json:"schema"`
	Pins   []admin.Pin `json:"pins"`
}

// eachReference is each for references. It reads all first, so that a misspelt one changes nothing.
func eachReference(cmd *cobra.Command, args []string, do func(name.Reference) error) error {
	var refs []name.Reference
	for _, arg := range args {
		ref, err := parseReference(arg)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	return each(cmd, refs, do)
}

// each calls do for all of these. One that fails stops none of the others: its error is printed,
// and the exit code is 1.
func each[T any](cmd *cobra.Command, all []T, do func(T) error) error {
	failed := false
	for _, one := range all {
		err := do(one)
		switch {
		case err == nil:
		case len(all) == 1 || cmd.Context().Err() != nil || adminclient.Status(err) == 0: // the others would fail, too
			return err
		default:
			server.PrintError(cmd.ErrOrStderr(), err)
			failed = true
		}
	}
	if failed {
		return exitCode(1)
	}
	return nil
}

// pinned says what a pin does.
func pinned(p admin.Pin) string {
	line := fmt.Sprintf("%s is pinned: %s", name.Familiar(p.Reference), human(p.Bytes))
	if p.Missing > 0 {
		line += fmt.Sprintf("; %s more are missing, and are pinned when somebody pulls them", human(p.Missing))
	}
	if !p.Protected {
		line += "; it can be evicted, because the older pins leave no room for it"
	}
	return line
}

// printPins prints the table, with bytes rounded to powers of 1024.
func printPins(out io.Writer, doc admin.Pins, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if len(doc.Pins) > 0 {
		fmt.Fprintln(w, "IMAGE\tSIZE\tMISSING\tPROTECTED\tPINNED")
	}
	for _, p := range doc.Pins {
		protected := "yes"
		switch {
		case p.Bytes == 0:
			protected = "not cached"
		case !p.Protected:
			protected = "no room"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s ago\n", shortReference(p.Reference), human(p.Bytes), human(p.Missing), protected, inWords(now.Sub(p.Since)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s; %s of the %s that may be pinned\n", plural(int64(len(doc.Pins)), "pinned image"), human(doc.PinnedBytes), human(doc.LimitBytes))
	return err
}

// completePins returns the references of pinned images that begin with what is typed. Without a
// server there are none.
func completePins(ctx context.Context, find *adminclient.Finder, typed string) (refs []string) {
	var doc admin.Pins
	if !askForCompletion(ctx, find, pinsPath, &doc) {
		return nil
	}
	for _, p := range doc.Pins {
		if ref := name.Begins(p.Reference, typed); ref != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}
