package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

func newPurgeCommand(l *settings.Loader) *cobra.Command {
	var (
		find               *adminclient.Finder
		dry, unpin, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "purge REF|DIGEST…",
		Short: "Remove images, or single blobs, from the cache",
		Long: `Removes cached images. The next pull asks Docker Hub again. Layers that other
images need stay. A tag is forgotten with all that no other image needs; a
REF with a digest means the image and all tags of the repository that name it.
A DIGEST alone means that one blob or manifest, whatever needs it: when it is
damaged, for example.

What is pinned is refused without --unpin. Pulls that are under way go on.`,
		Example: "  hubcache purge redis:7 --dry-run\n  hubcache purge redis:7 org/app@sha256:…",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := wholeReferences(cmd.Context(), find, args)
			if err != nil {
				return err
			}
			paths, err := purgePaths(args, dry, unpin)
			if err != nil {
				return err
			}
			c, err := find.Find()
			if err != nil {
				return err
			}
			all := []admin.Purged{}
			err = each(cmd, paths, func(path string) error {
				var done admin.Purged
				if err := c.Do(cmd.Context(), http.MethodDelete, path, nil, &done); err != nil {
					return err
				}
				all = append(all, done)
				if !asJSON {
					fmt.Fprint(cmd.OutOrStdout(), purged(done))
				}
				return nil
			})
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), purgedNow{admin.Schema, all}); err != nil {
					return err
				}
			}
			return err
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 0)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	cmd.Flags().BoolVar(&unpin, "unpin", false, "also remove what is pinned, and take the pins back")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answers of DELETE /api/v1/images/<reference>")
	return cmd
}

// purgedNow is the document of purge --json.
type purgedNow struct {
	Schema int            `json:"schema"`
	Purged []admin.Purged `json:"purged"`
}

// purgePaths returns the paths of what is to be purged. Errors: settings.UsageError.
func purgePaths(args []string, dry, unpin bool) (paths []string, err error) {
	query := url.Values{}
	if dry {
		query.Set("dry_run", "1")
	}
	if unpin {
		query.Set("unpin", "1")
	}
	for _, arg := range args {
		path := "/api/v1/blobs/" + arg
		if !name.ValidDigest(arg) {
			ref, err := parseReference(arg)
			if err != nil {
				return nil, err
			}
			path = "/api/v1/images/" + ref.String()
		}
		if len(query) > 0 {
			path += "?" + query.Encode()
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// purged says what a purge has done, or would do, in lines.
func purged(p admin.Purged) string {
	is, isNot := "is purged", "is not pinned any more"
	if p.DryRun {
		is, isNot = "would be purged", "would not be pinned any more"
	}
	var out strings.Builder
	for _, ref := range p.Unpinned {
		fmt.Fprintf(&out, "%s %s\n", name.Familiar(ref), isNot)
	}
	what := p.References
	if len(what) == 0 {
		what = p.Blobs
	}
	fmt.Fprintf(&out, "%s %s: %s in %s", some(what), is, human(p.Freed), plural(int64(len(p.Blobs)), "blob"))
	if p.Kept > 0 {
		fmt.Fprintf(&out, "; %s stay for %s", human(p.Kept), some(p.KeptFor))
	}
	if len(p.Partial) > 0 {
		fmt.Fprintf(&out, "; it is missing in %s until it is pulled again", some(p.Partial))
	}
	out.WriteByte('\n')
	return out.String()
}

// some names up to three references, and says how many more there are.
func some(references []string) string {
	var names []string
	for _, ref := range references[:min(3, len(references))] {
		names = append(names, shortReference(ref))
	}
	text := strings.Join(names, ", ")
	if more := len(references) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
