package main

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

const (
	// completeWithin is how long a person may wait for the shell.
	completeWithin = 2 * time.Second
	// completions is how many references a shell is given. Nobody looks through more.
	completions = 200
)

// parseReference is name.ParseReference for an argument of a command: what it refuses is a wrong
// use.
func parseReference(arg string) (name.Reference, error) {
	ref, err := name.ParseReference(arg)
	if err != nil {
		return ref, settings.UsageError{Err: err}
	}
	return ref, nil
}

// completeReferences completes up to so many references of cached images, 0 for any number, as the
// running server has them. Without a server, or when that is slow, there are none.
func completeReferences(find *adminclient.Finder, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		refs := slices.DeleteFunc(cachedReferences(cmd.Context(), find, typed), func(ref string) bool { return slices.Contains(args, ref) })
		return refs, cobra.ShellCompDirectiveNoFileComp
	}
}

// cachedReferences returns references of cached images that begin with what is typed, as people
// write them if that is how it begins.
func cachedReferences(ctx context.Context, find *adminclient.Finder, typed string) (refs []string) {
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	c, err := find.Find()
	if err != nil {
		return nil
	}
	query := url.Values{"prefix": {typed}, "limit": {strconv.Itoa(completions)}}
	var doc admin.Images
	if c.Do(ctx, http.MethodGet, "/api/v1/images?"+query.Encode(), nil, &doc) != nil {
		return nil
	}
	for _, i := range doc.Images {
		if ref := name.Begins(i.Reference, typed); ref != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}
