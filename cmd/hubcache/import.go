package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/transfer"
)

// importRun is one run of the command.
type importRun struct {
	out, err             io.Writer
	path, data           string // where from, and the data directory
	naming               transfer.Naming
	dryRun, public, move bool
	asJSON               bool
}

// imported is the document of import --json. Sizes are in bytes.
type imported struct {
	Schema   int             `json:"schema"`
	DryRun   bool            `json:"dry_run"`
	Images   []importedImage `json:"images"`   // what comes in, the oldest first
	NoRoom   []string        `json:"no_room"`  // what is left out, because budget and min_free leave no room for it
	Problems []string        `json:"problems"` // what is damaged, or has no name
	Bytes    int64           `json:"bytes"`    // that come in; what was there already doesn't count
}

type importedImage struct {
	Reference string `json:"reference"`
	Partial   bool   `json:"partial"` // something of it isn't there; it is fetched when a client asks for it
}

func newImportCommand(load loadFunc) *cobra.Command {
	var r importRun
	cmd := &cobra.Command{
		Use:   "import DIR|TAR",
		Short: "Take over images from a registry:2, or from an OCI layout",
		Long: `Brings images into the cache from the data directory of a registry:2, or from an
OCI layout: a folder or a tar, as 'hubcache export', skopeo and Docker 25 write
it. Nothing is asked of Docker Hub. The server must be stopped. Run it as root,
or as the owner of the data directory, who owns the files then.

What is in the cache stays; beyond the budget the oldest images are left out.
With an access token, the registry is asked whether a repository is public
before it is served; --public says that all of them are.

The exit code is 3 if something was left out, or is damaged.`,
		Example: "  hubcache import /var/lib/docker/volumes/registry/_data --dry-run\n  hubcache import images.tar --public",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			r.out, r.err, r.path = cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0]
			return r.run(cmd.Context(), s)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&r.dryRun, "dry-run", false, "say what would come in, and change nothing")
	fs.BoolVar(&r.public, "public", false, "vouch for all repositories being public")
	fs.BoolVar(&r.move, "move", false, "delete from DIR what has come in")
	fs.StringVar(&r.naming.Registry, "registry", "", "the `registry` of the settings that a registry:2 was a mirror of (default docker.io)")
	fs.StringVar(&r.naming.As, "as", "", "the `name` of the one image of a layout without names")
	fs.BoolVar(&r.asJSON, "json", false, "print the result as JSON")
	return cmd
}

// check finds what is wrong with the flags. served are the registries of the settings.
func (r *importRun) check(isFolder bool, served map[string]bool) error {
	if r.naming.As != "" {
		ref, err := name.ParseReference(r.naming.As)
		if err == nil {
			err = unserved(ref.Repository, served)
		}
		if err != nil {
			return fmt.Errorf("--as: %w", err)
		}
	}
	if r.naming.Registry != "" {
		if err := unserved(r.naming.Registry, served); err != nil {
			return fmt.Errorf("--registry: %w", err)
		}
	}
	if r.move && !isFolder {
		return errors.New("--move: nothing can be taken out of a tar; import it, and delete it afterwards")
	}
	return nil
}

func (r *importRun) run(ctx context.Context, s *settings.Settings) error {
	served := map[string]bool{}
	for _, u := range s.Upstreams() {
		served[u.Name] = true
	}
	if err := r.check(isFolder(r.path), served); err != nil {
		return settings.UsageError{Err: err}
	}
	if inside(r.path, string(s.DataDir)) {
		return settings.UsageError{Err: fmt.Errorf("%s is the data directory itself", r.path)}
	}
	src, err := transfer.OpenSource(r.path, r.naming)
	if _, ok := errors.AsType[transfer.NamingError](err); ok {
		return settings.UsageError{Err: err}
	}
	if err != nil {
		return err
	}
	src = servedSource{src, served}
	defer src.Close()
	r.data = string(s.DataDir)
	o, err := server.OpenOffline(s, !r.dryRun, func(dir string) bool { return r.move && server.SameDisk(dir, r.path) })
	if err != nil {
		return err
	}
	err = r.bring(ctx, src, o)
	if o.Store != nil {
		err = errors.Join(err, o.Store.Close())
	}
	return err
}

// unserved says that the registry of a repository isn't one of these; nil if it is.
func unserved(repository string, served map[string]bool) error {
	registry, _, _ := strings.Cut(repository, "/")
	if served[registry] {
		return nil
	}
	return fmt.Errorf("the settings have no registry %s, so nothing of it would be served: name it in registries first", registry)
}

// servedSource leaves out the images of registries that the settings don't have.
type servedSource struct {
	transfer.Source
	served map[string]bool
}

// Images implements transfer.Source.
func (s servedSource) Images() ([]transfer.Image, []string, error) {
	images, problems, err := s.Source.Images()
	images = slices.DeleteFunc(images, func(i transfer.Image) bool {
		err := unserved(i.Repository, s.served)
		if err != nil {
			problems = append(problems, i.Reference()+": "+err.Error())
		}
		return err != nil
	})
	return images, problems, err
}

// inside reports whether a path is a folder or something in it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(real(dir), real(path))
	return err == nil && filepath.IsLocal(rel)
}

func real(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	if p, err := filepath.Abs(path); err == nil {
		path = p
	}
	return path
}

// bring makes the plan and follows it.
func (r *importRun) bring(ctx context.Context, src transfer.Source, o *server.Offline) error {
	var has transfer.Holder
	if o.Store != nil {
		has = o.Store
	}
	plan, err := transfer.MakePlan(ctx, src, has, o.Room)
	if err != nil {
		return interruptedImport(ctx, err)
	}
	doc := imported{Schema: admin.Schema, DryRun: r.dryRun, Images: []importedImage{}, NoRoom: []string{}, Problems: plan.Problems, Bytes: plan.Bytes}
	for _, i := range plan.Images {
		doc.Images = append(doc.Images, importedImage{i.Reference(), i.Partial})
	}
	for _, i := range plan.NoRoom {
		doc.NoRoom = append(doc.NoRoom, i.Reference())
	}
	if !r.dryRun {
		private := o.Private
		if r.public {
			private = nil
		}
		show := newByteProgress(r.err, plan.Bytes)
		done, err := transfer.Run(ctx, plan, src, o.Store, transfer.Options{
			Private: private, Public: r.public, Move: r.move, Progress: show.add,
		})
		show.end()
		doc.Problems, doc.Bytes = append(doc.Problems, done.Problems...), done.Bytes
		if errors.Is(err, storage.ErrNoRoom) {
			err = fmt.Errorf("%w: the disk has filled up meanwhile; what has come in is kept", err)
		}
		if err != nil {
			return interruptedImport(ctx, err)
		}
	}
	if doc.Problems == nil {
		doc.Problems = []string{}
	}
	return r.report(doc)
}

// interruptedImport says it when the user has ended the work.
func interruptedImport(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; what has come in is kept, and the same command goes on from there")
	}
	return err
}

// report prints the result.
func (r *importRun) report(doc imported) error {
	if r.asJSON {
		if err := printJSON(r.out, doc); err != nil {
			return err
		}
	} else {
		r.table(doc)
	}
	if len(doc.NoRoom) > 0 || len(doc.Problems) > 0 {
		return exitCode(exitIncomplete)
	}
	return nil
}

func (r *importRun) table(doc imported) {
	for _, i := range doc.Images {
		note := ""
		if i.Partial {
			note = "  (a part of it isn't there)"
		}
		fmt.Fprintln(r.out, shortReference(i.Reference)+note)
	}
	for _, ref := range doc.NoRoom {
		fmt.Fprintln(r.out, shortReference(ref)+"  left out: budget and min_free leave no room for it")
	}
	verb := "came into"
	if doc.DryRun {
		verb = "would come into"
	}
	fmt.Fprintf(r.out, "%s, %s %s %s", plural(int64(len(doc.Images)), "image"), human(doc.Bytes), verb, r.data)
	if n := len(doc.NoRoom); n > 0 {
		fmt.Fprintf(r.out, "; %s left out", plural(int64(n), "older image"))
	}
	fmt.Fprintln(r.out)
	for _, p := range doc.Problems {
		fmt.Fprintln(r.err, "hubcache:", p)
	}
}
