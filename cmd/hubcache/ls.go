package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

func newLsCommand(l *settings.Loader) *cobra.Command {
	var (
		find   *adminclient.Finder
		sort   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "ls [PATTERN]",
		Short: "List the cached images",
		Long: `Lists the images that the running server has cached, by repository and tag;
those without a tag, which a swarm pulls, by digest. SIZE is all that is cached
of an image, SHARED the part of it that other images need too. An image is
partial when a layer of it has gone, or has not come yet. One that is PINNED
isn't evicted; "no room" says that its pin doesn't fit any more. PULLS is how
often it was asked for, by its tag or its digest.

A pattern is redis, redis:7*, library/* or ghcr.io/*/*. A * matches no slash.`,
		Example: "  hubcache ls\n  hubcache ls 'redis:7*' --sort size",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := find.Find()
			if err != nil {
				return err
			}
			query := url.Values{"sort": {sort}}
			if len(args) > 0 {
				query.Set("pattern", args[0])
			}
			var doc admin.Images
			if err := c.Do(cmd.Context(), http.MethodGet, "/api/v1/images?"+query.Encode(), nil, &doc); err != nil {
				if adminclient.Status(err) == http.StatusBadRequest {
					return settings.UsageError{Err: err}
				}
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), doc)
			}
			return printImages(cmd.OutOrStdout(), doc, time.Now())
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 1)
	cmd.Flags().StringVar(&sort, "sort", "name", "`order`: name, last-use (newest first), size (largest first) or pulls (most first)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the document of GET /api/v1/images")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]string{"name", "last-use", "size", "pulls"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that isn't there
	return cmd
}

// shortReference is a whole reference as people write it, with a short digest.
func shortReference(reference string) string {
	ref := name.Familiar(reference)
	if repository, digest, ok := strings.Cut(ref, "@"); ok {
		algorithm, _, _ := strings.Cut(digest, ":")
		ref = repository + "@" + algorithm + ":" + shortDigest(digest)
	}
	return ref
}

// printImages prints the table, with bytes rounded to powers of 1024.
func printImages(out io.Writer, doc admin.Images, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if len(doc.Images) > 0 {
		fmt.Fprintln(w, "IMAGE\tSIZE\tSHARED\tSTATE\tPINNED\tPULLS\tLAST USE")
	}
	for _, i := range doc.Images {
		state := "complete"
		if !i.Complete {
			state = "partial"
		}
		pinned := "no"
		switch {
		case i.Protected:
			pinned = "yes"
		case i.Pinned:
			pinned = "no room"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s ago\n", shortReference(i.Reference), human(i.Bytes), human(i.Shared), state, pinned, i.Pulls, inWords(now.Sub(i.LastUse)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s; %s of the cache belong to no image\n", plural(int64(doc.Total), "image"), human(doc.Other))
	return err
}
