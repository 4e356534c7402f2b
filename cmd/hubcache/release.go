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
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

const quarantinePath = "/api/v1/quarantine"

func newReleaseCommand(l *settings.Loader) *cobra.Command {
	var (
		find   *adminclient.Finder
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "release [REF…]",
		Short: "Let an image out of quarantine, or list those that wait",
		Long: `Lets clients of a tag have what it names now, although a rule of tags.rules says
quarantine and it has not been known for so long. What the tag names later waits
again. Nothing is fetched. Without a REF, it lists the tags that wait.`,
		Example: "  hubcache release\n  hubcache release redis:7",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := find.Find()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(args) == 0 {
				var doc admin.Quarantined
				if err := c.Do(cmd.Context(), http.MethodGet, quarantinePath, nil, &doc); err != nil {
					return err
				}
				if asJSON {
					return printJSON(out, doc)
				}
				if len(doc.Waiting) == 0 {
					_, err := fmt.Fprintln(out, "Nothing waits in quarantine.")
					return err
				}
				return printWaiting(out, doc.Waiting, time.Now())
			}
			all := releasedNow{admin.Schema, []admin.Released{}}
			err = eachReference(cmd, args, func(ref name.Reference) error {
				var done admin.Released
				if err := c.Do(cmd.Context(), http.MethodDelete, quarantinePath+"/"+ref.String(), nil, &done); err != nil {
					return err
				}
				all.Released = append(all.Released, done)
				if asJSON {
					return nil
				}
				_, err := fmt.Fprintf(out, "%s is %s from now on\n", name.Familiar(done.Reference), shortDigestOf(done.Digest))
				return err
			})
			if asJSON {
				if err := printJSON(out, all); err != nil {
					return err
				}
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			return completeWaiting(cmd.Context(), find, typed), cobra.ShellCompDirectiveNoFileComp
		},
	}
	find = bindAdmin(cmd, l)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was released, or the document of GET "+quarantinePath)
	return cmd
}

// releasedNow is the document of release --json with references.
type releasedNow struct {
	Schema   int              `json:"schema"`
	Released []admin.Released `json:"released"`
}

// printWaiting prints the tags that wait.
func printWaiting(out io.Writer, all []admin.Waiting, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "IN QUARANTINE\tDIGEST\tLEFT")
	for _, one := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\n", name.Familiar(one.Reference), shortDigestOf(one.Digest), inWords(max(one.Until.Sub(now), 0)))
	}
	return w.Flush()
}

// completeWaiting are the tags that wait and begin like what was typed.
func completeWaiting(ctx context.Context, find *adminclient.Finder, typed string) (refs []string) {
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	c, err := find.Find()
	if err != nil {
		return nil
	}
	var doc admin.Quarantined
	if c.Do(ctx, http.MethodGet, quarantinePath, nil, &doc) != nil {
		return nil
	}
	for _, w := range doc.Waiting {
		if ref := name.Begins(w.Reference, typed); ref != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}
