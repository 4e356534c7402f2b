package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
			return list(cmd.Context(), c, "/api/v1/images?"+query.Encode(), cmd.OutOrStdout(), asJSON)
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

// list prints the images that the server lists at path, as a table or as they come.
func list(ctx context.Context, c *adminclient.Client, path string, out io.Writer, asJSON bool) error {
	body, _, err := c.Download(ctx, path)
	if adminclient.Status(err) == http.StatusBadRequest {
		return settings.UsageError{Err: err}
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if asJSON {
		_, err := io.Copy(out, body)
		return err
	}
	table := newImageTable(time.Now())
	doc, err := readImages(bufio.NewReaderSize(body, 64<<10), table.add)
	if err != nil {
		return fmt.Errorf("the answer of %s: %w", c, err)
	}
	return table.print(out, doc)
}
