package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/compose"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/warm"
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
	query := url.Values{"prefix": {typed}, "limit": {strconv.Itoa(completions)}}
	var doc admin.Images
	if !askForCompletion(ctx, find, "/api/v1/images?"+query.Encode(), &doc) {
		return nil
	}
	for _, i := range doc.Images {
		if ref := name.Begins(i.Reference, typed); ref != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}

// askForCompletion reads a document of the running server for a completion, and reports whether it
// came. It gives up after completeWithin, since a person waits at the prompt.
func askForCompletion(ctx context.Context, find *adminclient.Finder, path string, doc any) bool {
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	c, err := find.Find()
	return err == nil && c.Do(ctx, http.MethodGet, path, nil, doc) == nil
}

// imageFlags are the flags of a command that takes references, or the images of compose files.
type imageFlags struct{ files, envFiles []string }

// bind adds the flags. verb is what the command does to images.
func (f *imageFlags) bind(cmd *cobra.Command, verb string) {
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.files, "file", "f", nil, verb+" the images of this compose `file`; a further one is merged over it (repeatable)")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "`file` with variables of the compose files (repeatable) (default .env beside the first compose file)")
}

// references returns the whole names of the images. fromFiles says which of them are named by compose files
// alone. Each error is a wrong use.
func (f *imageFlags) references(cmd *cobra.Command, args []string) (refs []string, fromFiles map[string]bool, err error) {
	fromFiles = map[string]bool{}
	for _, arg := range args {
		ref, err := parseReference(arg)
		if err != nil {
			return nil, nil, err
		}
		refs = append(refs, ref.String())
		fromFiles[ref.String()] = false
	}
	project, ok, err := f.project(len(args) > 0)
	if err != nil {
		return nil, nil, settings.UsageError{Err: err}
	}
	if !ok && len(args) == 0 {
		return nil, nil, settings.UsageError{Err: errors.New("name an image, or a compose file with -f, or set COMPOSE_FILE\nExamples:\n" + cmd.Example)}
	}
	if !ok {
		return refs, fromFiles, nil
	}
	images, notes, err := warm.Images(cmd.Context(), project)
	if err != nil {
		return nil, nil, settings.UsageError{Err: err}
	}
	for _, note := range notes {
		fmt.Fprintln(cmd.ErrOrStderr(), "hubcache: warning:", note)
	}
	for _, ref := range images {
		if _, named := fromFiles[ref.String()]; !named {
			refs = append(refs, ref.String())
			fromFiles[ref.String()] = true
		}
	}
	return refs, fromFiles, nil
}

// project returns the compose files. ok is false if there are none.
func (f *imageFlags) project(named bool) (p compose.Project, ok bool, err error) {
	if len(f.files) > 0 {
		return compose.Project{Files: f.files, EnvFiles: f.envFiles}, true, nil
	}
	if named {
		if len(f.envFiles) > 0 {
			return p, false, errors.New("--env-file is for compose files: name one with -f")
		}
		return p, false, nil
	}
	return compose.FromEnvironment(f.envFiles)
}
