package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func newExportCommand(l *settings.Loader) *cobra.Command {
	var (
		find  *adminclient.Finder
		names imageFlags
		to    string
	)
	cmd := &cobra.Command{
		Use:   "export [REF...] -o FILE",
		Short: "Write cached images into a tar, to import or load elsewhere",
		Long: `Writes images that the running server has into a tar, for a machine that can't
reach Docker Hub. 'hubcache import', 'docker load', skopeo and podman read it.
Of an image for several platforms it has those that are cached as a whole;
docker load gets the server's own. With -f, all images that compose files name
are written, but for private ones, which have to be named.

Nothing is fetched for it: 'hubcache warm' does that. FILE is replaced when all
is there; - is stdout.`,
		Example: "  hubcache export redis:7 postgres:17 -o images.tar\n  hubcache export -f compose.yml -o - | ssh host docker load",
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return settings.UsageError{Err: errors.New("-o names the file to write; - is stdout")}
			}
			if f, ok := cmd.OutOrStdout().(*os.File); ok && to == "-" && term.IsTerminal(int(f.Fd())) {
				return settings.UsageError{Err: errors.New("a tar is no text for a terminal: name a file with -o")}
			}
			if to != "-" { // before the server reads all images for it
				if _, err := os.Stat(filepath.Dir(to)); err != nil {
					return fmt.Errorf("-o %s: the folder isn't there: %w", to, err)
				}
			}
			args, err := wholeReferences(cmd.Context(), find, args)
			if err != nil {
				return err
			}
			refs, fromFiles, err := names.references(cmd, args)
			if err != nil {
				return err
			}
			c, err := find.Find()
			if err != nil {
				return err
			}
			query := url.Values{}
			for _, ref := range refs {
				key := "reference"
				if fromFiles[ref] {
					key = "listed"
				}
				query.Add(key, ref)
			}
			body, size, err := c.Download(cmd.Context(), "/api/v1/export?"+query.Encode())
			if adminclient.Status(err) == http.StatusBadRequest {
				return settings.UsageError{Err: err}
			}
			if err != nil {
				return err
			}
			defer body.Close()
			return saveExport(cmd.Context(), body, size, to, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 0)
	names.bind(cmd, "write")
	cmd.Flags().StringVarP(&to, "output", "o", "", "`file` to write; - is stdout")
	return cmd
}

// saveExport writes what comes to a file, which is there as a whole or not at all.
func saveExport(ctx context.Context, body io.Reader, size int64, to string, stdout, stderr io.Writer) error {
	out := stdout
	if to != "-" {
		tmp, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name()) // after the rename there is none
		defer tmp.Close()
		out = tmp
	}
	show := newByteProgress(stderr, size)
	n, err := io.Copy(out, io.TeeReader(body, show))
	show.end()
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; nothing was written")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the server broke the export off: its log says why")
	case err != nil:
		return err
	}
	if tmp, ok := out.(*os.File); ok && to != "-" {
		if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close(), os.Rename(tmp.Name(), to)); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %s\n", to, human(n))
	}
	return nil
}
